"""What all parts of a guide share: a registered name, checked fields, a text form."""

from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from torch import Tensor

from fairlead.parameters import FINITE, check_fields

if TYPE_CHECKING:
    from fairlead.guidance.branch import Branch, Capture

CONTINUOUS = frozenset({"continuous"})
TOKEN_DOMAINS = frozenset({"logprob", "posterior", "rates", "simplex"})
"""Where predictions are over a vocabulary, the last dimension.

* `logprob`: log-probabilities of the clean or the next token; combined, then normalised.
* `posterior`: log-probabilities of a token one step later; combined, then normalised.
* `rates`: rates of jumping to a token; their logarithms are combined, nothing is normalised
  unless asked for.
* `simplex`: probabilities, combined as they are, then projected onto the simplex.
"""
ALL_DOMAINS = CONTINUOUS | TOKEN_DOMAINS

REGISTRY: dict[str, type["Node"]] = {}
"""Every method by name."""

N = TypeVar("N", bound="type[Node]")


def register(
    name: str, ids: tuple[str, ...] = (), *, nfe: int = 0, neutral: str | None = None
) -> Any:
    """Class decorator: gives a method its name in text and its row in `fairlead methods`.

    Args:
        name: Name in text, lower case.
        ids: Ids of the papers it implements.
        nfe: Evaluations a step that it adds to the conditional one.
        neutral: Arguments, as text, at which it changes nothing; `None` if there are none.
    """

    def enter(cls: N) -> N:
        if name in REGISTRY:
            raise ValueError(f"register: {name!r} is taken by {REGISTRY[name].__name__}")
        cls.name, cls.ids, cls.nfe, cls.neutral = name, ids, nfe, neutral
        REGISTRY[name] = cls
        return cls

    return enter


@dataclass(frozen=True)
class Node:
    """What all parts of a guide share: checked fields, a name, a text form."""

    name: ClassVar[str] = ""
    ids: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str] = ""
    nfe: ClassVar[int] = 0
    neutral: ClassVar[str | None] = None
    domains: ClassVar[frozenset[str]] = CONTINUOUS
    reads_text: ClassVar[bool] = False
    """Whether it needs a model with attention over a text."""
    reads_style: ClassVar[bool] = False
    """Whether it needs a model with an adapter for image prompts."""

    @property
    def captures(self) -> tuple[tuple["Branch", "Capture"], ...]:
        """What it wants kept of the attention of branches, for `Predictions.maps`."""
        return ()

    @property
    def rewards(self) -> tuple[str, ...]:
        """Names of the functions that it scores samples with, which are asked for at the start."""
        return ()

    def __post_init__(self) -> None:
        for f in fields(self):
            value = _plain(getattr(self, f.name))
            if f.type in (float, "float") or "float" in str(f.type):
                value = _floats(value)
            object.__setattr__(self, f.name, value)
        check_fields(self)

    def __str__(self) -> str:
        given = []
        for f in fields(self):
            value = getattr(self, f.name)
            if f.default is MISSING:
                given.append(_text(value))
            elif value != f.default:
                given.append(f"{f.name}={_text(value)}")
        return f"{self.name}({', '.join(given)})"


Scale = Annotated[float | tuple[float, ...], FINITE]
"""A weight: one number, or one a sample (a tensor or list becomes a tuple)."""


def less_one(scale: float | tuple[float, ...]) -> float | tuple[float, ...]:
    """`w - 1`, the weight of a direction, from a guidance scale `w`."""
    return tuple(w - 1 for w in scale) if isinstance(scale, tuple) else scale - 1


def _plain(value: Any) -> Any:
    """Tensors and lists as tuples of numbers, so that a node can be compared and hashed."""
    if isinstance(value, Tensor):
        if value.ndim > 1:
            raise ValueError(
                f"a weight must be a number or one a sample, got shape {tuple(value.shape)}"
            )
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else value


def _floats(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_floats(v) for v in value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_text(v) for v in value)}]"
    return repr(value)
