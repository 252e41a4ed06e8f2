"""The text form of guides: `cfg(4) + pag(3) | rescale(0.7)`, a subset of Python's grammar."""

import ast
from typing import cast

from fairlead.guidance.algebra import REGISTRY, Guide, Rule, Schedule, Sum, Term
from fairlead.guidance.recipes import RECIPES
from fairlead.parameters import nearest
from fairlead.text import Reader


def guide(spec: Guide | str | None) -> Guide:
    """A guide from its text; guides pass through, `None` and `none` are no guidance.

    `fl.guide(str(g)) == g` holds for every guide. Nothing is executed: names are looked up
    among the registered methods, and arguments are literals.

    Raises:
        TextError: A `ValueError` that names the token, its position and the nearest name.
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
    reader = Reader("guide", spec)
    return _guide(reader.body, reader)


def _guide(node: ast.expr, reader: Reader) -> Guide:
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Add):
            return _guide(node.left, reader) + _guide(node.right, reader)
        if isinstance(node.op, ast.BitOr):
            left = _guide(node.left, reader)
            right = _node(node.right, reader, (Rule, Schedule), "a rule, a schedule or a policy")
            return left | cast(Rule | Schedule, right)
        raise reader.error("only + and | combine guides", node.right)
    if isinstance(node, ast.Name) and node.id == "none":
        return Sum(())
    function = node.func if isinstance(node, ast.Call) else node
    if isinstance(function, ast.Name) and function.id in RECIPES:
        return _recipe(node, function.id, reader)
    return cast(Term, _node(node, reader, (Term,), "a term, or a guide in parentheses"))


def _recipe(node: ast.expr, name: str, reader: Reader) -> Guide:
    made = reader.make(node, RECIPES, [name])
    if not isinstance(made, Guide):
        raise reader.error(f"{name!r} does not make a guide", node)
    return made


def _node(node: ast.expr, reader: Reader, kinds: tuple[type, ...], expected: str) -> object:
    function = reader.name(node, expected)
    fitting = [name for name, cls in REGISTRY.items() if issubclass(cls, kinds)]
    known = [*fitting, *RECIPES] if Term in kinds else fitting
    if function.id not in fitting:
        kind = REGISTRY[function.id].kind if function.id in REGISTRY else None
        said = f"{function.id!r} is a {kind}" if kind else f"unknown name {function.id!r}"
        message = f"{said}; expected {expected}; {nearest(function.id, known)}"
        raise reader.error(message, function)
    return reader.make(node, REGISTRY, fitting)
