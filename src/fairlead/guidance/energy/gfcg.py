"""Gradient-free classifier guidance: away from the class a sample is mistaken for."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

from torch import Tensor

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.energy.base import Energy, Judge, of
from fairlead.guidance.algebra import Context, Place, Predictions, Term, register
from fairlead.guidance.branch import COND, Branch, Transform
from fairlead.guidance.context import Run, Weight
from fairlead.guidance.energy.term import EnergyLike, per_sample
from fairlead.parameters import Range, nearest

Choice = Callable[[Tensor, Tensor], Tensor]
"""From class probabilities `(B, K)` and wanted classes `(B,)` to one value a sample, `(B,)`."""


class _Carried(str):
    """The name of a function that carries the function along; equal to its name."""

    function: Choice

    def __new__(cls, function: Choice) -> "_Carried":
        name = super().__new__(cls, getattr(function, "__name__", "function").strip("<>"))
        name.function = function
        return name

    def __reduce__(self) -> tuple[Any, ...]:
        return _Carried, (self.function,)


def likeliest(p: Tensor, wanted: Tensor) -> Tensor:
    """The class that is likeliest beside the wanted one."""
    return p.scatter(1, wanted[:, None], -math.inf).argmax(1)


def doubt(p: Tensor, wanted: Tensor) -> Tensor:
    """`1 - p_c`."""
    return 1 - p.gather(1, wanted[:, None])[:, 0]


REFERENCES: dict[str, Choice] = {
    "likeliest": likeliest,
    "wanted": lambda p, wanted: wanted,
    "null": lambda p, wanted: wanted,
}
SCALES: dict[str, Choice] = {
    "doubt": doubt,
    "constant": lambda p, wanted: p.new_ones(len(p)),
}


def _function(name: str, known: dict[str, Choice], run: Run) -> Choice:
    if isinstance(name, _Carried):
        return name.function
    return known[name] if name in known else run.reward("gfcg", name)  # type: ignore[return-value]


@dataclass(frozen=True)
class _Reference(Transform):
    """The condition with the class that the sample is to be led away from."""

    energy: str
    condition: str
    reference: str
    scale: str

    def __call__(self, condition: Condition, denoiser: Denoiser, ctx: Context) -> Condition:
        own = condition if ctx.given is None else ctx.given("cond")
        wanted = own[self.condition]
        assert ctx.done is not None
        judge = ctx.run.energy("gfcg", self.energy)
        assert isinstance(judge, Judge)
        p = judge.log_probs(ctx.done[COND]).exp()
        if bool((wanted >= p.shape[1]).any()):
            raise ValueError(
                f"gfcg: {self.condition} must be one of the {p.shape[1]} classes of the energy "
                f"{judge.name!r}, got {int(wanted.max())}"
            )
        index = wanted.long()
        ctx.memo["share", self] = _function(self.scale, SCALES, ctx.run)(p, index)
        if self.reference == "null":
            return condition
        chosen = _function(self.reference, REFERENCES, ctx.run)(p, index)
        return condition.replace(**{self.condition: chosen.to(wanted.dtype)})

    def check(self, condition: Condition, denoiser: Denoiser) -> None:
        """Refuses a condition without classes."""
        if self.condition not in condition or condition[self.condition].is_floating_point():
            raise ValueError(
                f"gfcg: needs whole numbers of classes under the condition {self.condition!r}; "
                f"{nearest(self.condition, condition)}"
            )


@register("gfcg", ids=("S008",), nfe=1, neutral="'classifier', 0.0")
@dataclass(frozen=True)
class GFCG(Term):
    r"""Extrapolates from the class that a sample is mistaken for to the wanted one.

    A classifier reads the conditional estimate ``D_c``; no gradient is taken. With ``p`` its
    probabilities, per sample and evaluation, a reference class ``K(p, c)`` and a scale ``W(p, c)``
    of at most ``w_max``:

    .. math:: k = K(p, c), \qquad w = 1 + w_\mathrm{max} W(p, c), \qquad D = D_k + w (D_c - D_k)

    by default ``K`` the likeliest class beside ``c``, and ``W = 1 - p_c``. The published abstract
    says that both follow the classifier's confusion; these two formulas are this library's. Where
    the classifier is sure of ``c`` the guide switches itself off, for each sample.

    * Cost: 1 NFE (the reference class) and one forward of the classifier.
    * Neutral: ``w_max = 0``. ``reference="null", scale="constant"`` is ``cfg(1 + w_max)``;
      ``reference="wanted", scale="constant", model="weak"`` is ``autoguidance(1 + w_max)``.

    Args:
        energy: A classifier of clean samples: ``fl.energy.Classifier`` or its name. Its own label
            is not used.
        w_max: Largest ``w - 1``, >= 0.
        condition: Name of the class condition; whole numbers.
        reference: ``K``: ``likeliest``, ``wanted`` (for a weak model), ``null``, or a function
            from ``p`` ``(B, K)`` and ``c`` ``(B,)`` to classes ``(B,)``; the name of one is looked
            up in ``fl.sample(rewards=...)``.
        scale: ``W``: ``doubt``, ``constant`` (1), or such a function, to numbers.
        model: Name of the model of the reference branch; empty is the sampled one.

    Raises:
        ValueError: ``w_max`` is out of range; the energy has no class probabilities, or judges
            noisy samples; a function is not known.

    Example:
        >>> import fairlead as fl
        >>> str(fl.GFCG("classifier", 2.0))
        "gfcg('classifier', w_max=2.0)"

    Source:
        Hwang, Kim, Shin (2024), Gradient-Free Classifier Guidance, arXiv:2411.15393.
    """

    affine: ClassVar[bool] = False

    energy: EnergyLike
    w_max: Annotated[float, Range(0, math.inf, closed="left")] = 1.0
    condition: str = "label"
    reference: str | Choice = "likeliest"
    scale: str | Choice = "doubt"
    model: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "energy", of(self.name, self.energy))
        for name in ("reference", "scale"):
            value = getattr(self, name)
            if not isinstance(value, str):
                if not callable(value):
                    raise ValueError(
                        f"gfcg: {name} must be a name or a function of class probabilities and "
                        f"wanted classes, got {value!r}"
                    )
                object.__setattr__(self, name, _Carried(value))
        super().__post_init__()

    @property
    def energies(self) -> tuple[str, ...]:
        """Names of the energies that it asks for."""
        assert isinstance(self.energy, str)
        return (self.energy,)

    def suits(self, energy: Energy) -> None:
        """Refuses an energy that has no class probabilities of clean samples."""
        if not isinstance(energy, Judge) or energy.noisy:
            raise ValueError(
                f"gfcg: the energy {energy.name!r} must give class log-probabilities of clean "
                "samples, such as fl.energy.Classifier"
            )

    @property
    def strength(self) -> float:
        return self.w_max

    @cached_property
    def chosen(self) -> _Reference:
        """What chooses the reference."""
        assert isinstance(self.reference, str)
        assert isinstance(self.scale, str)
        return _Reference(self.energies[0], self.condition, self.reference, self.scale)

    @property
    def negative(self) -> Branch:
        state = "null" if self.reference == "null" else "cond"
        return Branch(
            "mistaken", state=state, model=self.model, transforms=(self.chosen,), needs=(COND,)
        )

    def update(
        self, predictions: Predictions, ctx: Context, place: Place
    ) -> tuple[Tensor | None, Weight]:
        update, total = super().update(predictions, ctx, place)
        if update is None:
            return None, 0.0
        # where a policy provided the branch, nothing says how mistaken the sample is
        share = ctx.memo.get(("share", self.chosen))
        return update * (0.0 if share is None else per_sample(share, update)), total
