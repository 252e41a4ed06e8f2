"""Text forms: a name with literal arguments, read with the standard `ast` module.

Nothing is executed: names are looked up in a registry, and arguments are literals.
"""

import ast
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fairlead.parameters import nearest


class TextError(ValueError):
    """Text that cannot be read; says the token, the position and the nearest valid name."""

    def __init__(self, message: str, text: str, position: int) -> None:
        super().__init__(f"{message}\n  {text}\n  {' ' * position}^ (position {position})")
        self.position = position


class Reader:
    """Reads one text.

    Args:
        owner: What is read (`guide`, `sampler`), for errors.
        text: The text.

    Attributes:
        body: The expression.

    Raises:
        TextError: The text is no expression.
    """

    def __init__(self, owner: str, text: str) -> None:
        self.owner, self.text = owner, text.strip()
        try:
            self.body = ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            position = max(0, (error.offset or 1) - 1)
            raise TextError(f"{owner}: {error.msg}", self.text, position) from None

    def error(self, message: str, node: ast.AST) -> TextError:
        """An error at a node."""
        return TextError(f"{self.owner}: {message}", self.text, getattr(node, "col_offset", 0))

    def name(self, node: ast.expr, expected: str) -> ast.Name:
        """The name that a call, or a bare name, starts with."""
        function = node.func if isinstance(node, ast.Call) else node
        if not isinstance(function, ast.Name):
            raise self.error(f"expected {expected}", node)
        return function

    def make(
        self, node: ast.expr, registry: Mapping[str, Callable[..., Any]], fitting: Iterable[str]
    ) -> Any:
        """What a registered class or function makes of a call, or a bare name.

        Raises:
            TextError: The name is not among the fitting ones, a parameter is unknown or missing,
                or an argument is no literal.
            ValueError: An argument is out of its range.
        """
        function = node.func if isinstance(node, ast.Call) else node
        assert isinstance(function, ast.Name)
        name = function.id
        if name not in fitting:
            raise self.error(f"unknown name {name!r}; {nearest(name, fitting)}", function)
        signature = inspect.signature(registry[name])
        arguments, keywords = [], {}
        if isinstance(node, ast.Call):
            arguments = [self.literal(a) for a in node.args]
            for keyword in node.keywords:
                if keyword.arg is None:
                    raise self.error("** is not allowed", keyword)
                if keyword.arg not in signature.parameters:
                    hint = nearest(keyword.arg, signature.parameters)
                    raise self.error(f"{name} has no parameter {keyword.arg!r}; {hint}", keyword)
                keywords[keyword.arg] = self.literal(keyword.value)
        try:
            signature.bind(*arguments, **keywords)
        except TypeError as error:
            raise self.error(f"{name}: {error}", function) from None
        return registry[name](*arguments, **keywords)

    def literal(self, node: ast.expr) -> Any:
        """The value of a number, text in quotes, True, False, None, or a list of them."""
        if isinstance(node, ast.Name) and node.id in ("inf", "nan"):
            return getattr(math, node.id)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            value = self.literal(node.operand)
            if isinstance(value, (int, float)):
                return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, (ast.List, ast.Tuple)):
            return tuple(self.literal(e) for e in node.elts)
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, type(None))):
            return node.value
        token = ast.get_source_segment(self.text, node)
        raise self.error(
            f"arguments are numbers, text in quotes, True, False, None or lists, got {token}", node
        )
