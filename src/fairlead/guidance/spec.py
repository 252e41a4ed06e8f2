"""The text form of guides: `cfg(4) + pag(3) | rescale(0.7)`, a subset of Python's grammar."""

import ast
import inspect
import math
from typing import Any

from fairlead.guidance.algebra import REGISTRY, Guide, Node, Policy, Rule, Schedule, Sum, Term
from fairlead.parameters import nearest


class GuideSyntaxError(ValueError):
    """Text that is no guide; says the token, the position and the nearest valid name."""

    def __init__(self, message: str, text: str, position: int) -> None:
        super().__init__(f"{message}\n  {text}\n  {' ' * position}^")
        self.position = position


def guide(spec: Guide | str | None) -> Guide:
    """A guide from its text; guides pass through, `None` and `none` are no guidance.

    `fl.guide(str(g)) == g` holds for every guide. Nothing is executed: names are looked up
    among the registered methods, and arguments are literals.

    Raises:
        GuideSyntaxError: A `ValueError` that names the token, its position and the nearest name.
        ValueError: An argument is out of its range.

    Example:
        >>> import fairlead as fl
        >>> fl.guide("cfg(4) | apg(eta=0.5)") == fl.CFG(4.0) | fl.APG(eta=0.5)
        True
    """
    if spec is None:
        return Sum(())
    if isinstance(spec, Guide):
        return spec
    if not isinstance(spec, str):
        raise TypeError(f"guide: expected a guide or text, got {type(spec).__name__}")
    text = spec.strip()
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        position = max(0, (error.offset or 1) - 1)
        raise GuideSyntaxError(f"guide: {error.msg}", text, position) from None
    return _guide(tree.body, text)


def _guide(node: ast.expr, text: str) -> Guide:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _guide(node.left, text) + _guide(node.right, text)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left = _guide(node.left, text)
        return left | _pipe(node.right, text)
    if isinstance(node, ast.Name) and node.id == "none":
        return Sum(())
    if isinstance(node, ast.BinOp):
        raise _error("guide: only + and | combine guides", text, node.right)
    made = _call(node, text, Term, "a term, or a guide in parentheses")
    assert isinstance(made, Term)
    return made


def _pipe(node: ast.expr, text: str) -> Rule | Schedule:
    made = _call(node, text, (Rule, Schedule), "a rule, a schedule or a policy")
    assert isinstance(made, (Rule, Schedule))
    return made


def _call(node: ast.expr, text: str, kinds: Any, expected: str) -> Node:
    call = node if isinstance(node, ast.Call) else None
    function = call.func if call else node
    if not isinstance(function, ast.Name):
        raise _error(f"guide: expected {expected}", text, node)
    fitting = [name for name, cls in REGISTRY.items() if issubclass(cls, kinds)]
    if function.id not in fitting:
        kind = REGISTRY[function.id].kind if function.id in REGISTRY else None
        said = f"{function.id!r} is a {kind}" if kind else f"unknown name {function.id!r}"
        raise _error(
            f"guide: {said}; expected {expected}; {nearest(function.id, fitting)}", text, function
        )
    cls = REGISTRY[function.id]
    arguments = [_literal(a, text) for a in call.args] if call else []
    keywords = {}
    for keyword in call.keywords if call else []:
        if keyword.arg is None:
            raise _error("guide: ** is not allowed", text, keyword.value)
        keywords[keyword.arg] = _literal(keyword.value, text)
    signature = inspect.signature(cls)
    for name in keywords:
        if name not in signature.parameters:
            raise _error(
                f"guide: {function.id} has no parameter {name!r}; "
                f"{nearest(name, signature.parameters)}",
                text,
                function,
            )
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise _error(f"guide: {function.id}: {error}", text, function) from None
    return cls(*arguments, **keywords)


def _literal(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, type(None))):
        return node.value
    if isinstance(node, ast.Name) and node.id in ("inf", "nan"):
        return getattr(math, node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _literal(node.operand, text)
        if isinstance(value, (int, float)):
            return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, (ast.List, ast.Tuple)):
        return tuple(_literal(e, text) for e in node.elts)
    raise _error("guide: arguments are numbers, text in quotes, None or lists of them", text, node)


def _error(message: str, text: str, node: ast.expr) -> GuideSyntaxError:
    return GuideSyntaxError(message, text, getattr(node, "col_offset", 0))


__all__ = ["GuideSyntaxError", "Policy", "guide"]
