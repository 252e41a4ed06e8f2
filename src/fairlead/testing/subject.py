"""What a check is given: one method inside a guide that can run."""

import ast
import inspect
import typing
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch

from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Guide, Node, Pipe, Rule, Schedule, Term
from fairlead.guidance.spec import guide as parse
from fairlead.guidance.terms.cfg import CFG
from fairlead.testing.networks import tiny_denoiser


class NotApplicable(Exception):
    """Raised by a check that says nothing about the method at hand; carries the reason."""


@dataclass(frozen=True)
class Subject:
    """A method, or a whole guide without one method in focus.

    Attributes:
        guide: A guide that contains the method: a term alone, or `cfg(3)` through it.
        node: The method; `None` for a guide of several parts.
    """

    guide: Guide
    node: Node | None = None

    @classmethod
    def of(cls, method: Any) -> "Subject":
        """From a registered class, a term, rule, schedule or policy, a guide or its text.

        A class is tried with the arguments of its docstring's example, whose last line is the
        text form.

        Raises:
            TypeError: It is none of these.
            ValueError: The docstring of a class has no such example.
        """
        if isinstance(method, str):
            method = parse(method)
        if isinstance(method, type) and issubclass(method, Node):
            method = example(method)
        if isinstance(method, Term):
            return cls(method, method)
        if isinstance(method, Guide):
            return cls(method)
        if isinstance(method, (Rule, Schedule)):
            return cls(CFG(3.0) | method, method)
        raise TypeError(f"check_guide: expected a guide or a method, got {method!r}")

    @property
    def method(self) -> Node:
        """The method, for checks that need one."""
        if self.node is None:
            raise NotApplicable("a guide of several parts")
        return self.node

    def tiny(self, dtype: torch.dtype = torch.float32) -> Denoiser:
        """A tiny denoiser that serves the guide: with a text, or an adapter, if it asks."""
        nodes = list(self.guide.nodes())
        adapter = any(n.reads_style for n in nodes)
        text = adapter or any(n.reads_text for n in nodes)
        return tiny_denoiser(dtype=dtype, text=text, adapter=adapter)

    @property
    def plain(self) -> Guide:
        """What the method's neutral setting must equal: `cfg(3)`, or no guidance for a term."""
        return parse("none") if isinstance(self.method, Term) else CFG(3.0)

    def framed(self, text: str) -> Guide:
        """A guide that holds the method given by its text."""
        return parse(text if isinstance(self.method, Term) else f"cfg(3.0) | {text}")

    @cached_property
    def moves_base(self) -> bool:
        """Whether a schedule of the guide replaces the base branch."""
        return any(
            isinstance(n, Schedule) and type(n).branch is not Schedule.branch
            for n in self.guide.nodes()
        )

    def beside(self, term: Term) -> Guide:
        """The guide with another term in the sum, under the same base."""
        return _below(self.guide, term) if self.moves_base else self.guide + term

    def scaled(self, weights: tuple[float, ...] | float) -> Guide:
        """The guide with the scale of its term set, one value or one a sample."""
        if not isinstance(self.method, Term):
            return CFG(weights) | self.method  # type: ignore[operator]
        hints = typing.get_type_hints(type(self.method))
        for f in fields(self.method):
            if tuple[float, ...] in typing.get_args(hints[f.name]):
                return replace(self.method, **{f.name: weights})
        raise NotApplicable("the term has no scale per sample")


def _below(guide: Guide, term: Term) -> Guide:
    """The guide with a term in its innermost sum."""
    return _below(guide.left, term) | guide.right if isinstance(guide, Pipe) else guide + term


def example(cls: type[Node]) -> Node:
    """An instance of a method, read from the text form at the end of its docstring's example.

    Raises:
        ValueError: There is no such text, or it does not hold the method.
    """
    lines = inspect.cleandoc(cls.__doc__ or "").splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("Example")), len(lines))
    quoted = [line.strip() for line in lines[start:] if line.strip()[:1] in ("'", '"')]
    try:
        guide = parse(ast.literal_eval(quoted[0]))
        return next(n for n in guide.nodes() if type(n) is cls)
    except (IndexError, StopIteration, SyntaxError):
        raise ValueError(
            f"check_guide: the docstring of {cls.__name__} has no example that ends with its text "
            "form; add one, or pass an instance"
        ) from None
