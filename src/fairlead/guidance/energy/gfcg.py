"""Gradient-free classifier guidance: away from the class a sample is mistaken for."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.energy.base import Energy, Judge, of
from fairlead.guidance.algebra import Context, Place, Predictions, Term, register
from fairlead.guidance.branch import COND, Branch, Transform
from fairlead.guidance.context import Weight
from fairlead.guidance.energy.term import EnergyLike, per_sample
from fairlead.parameters import Range, nearest


@dataclass(frozen=True)
class _Mistaken(Transform):
    """The condition with the class that the classifier finds likeliest beside the wanted one."""

    energy: str
    condition: str

    def __call__(self, condition: Condition, denoiser: Denoiser, ctx: Context) -> Condition:
        wanted = condition[self.condition]
        assert ctx.done is not None
        judge = ctx.run.energy("gfcg", self.energy)
        assert isinstance(judge, Judge)
        log_p = judge.log_probs(ctx.done[COND])
        if bool((wanted >= log_p.shape[1]).any()):
            raise ValueError(
                f"gfcg: {self.condition} must be one of the {log_p.shape[1]} classes of the energy "
                f"{judge.name!r}, got {int(wanted.max())}"
            )
        index = wanted.long()[:, None]
        ctx.memo["doubt", self.energy] = 1 - log_p.gather(1, index)[:, 0].exp()
        others = log_p.scatter(1, index, -math.inf)
        return condition.replace(**{self.condition: others.argmax(1).to(wanted.dtype)})

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
    probabilities, per sample and evaluation:

    .. math:: k = \arg\max_{j \ne c} p_j, \qquad w = 1 + w_\mathrm{max} (1 - p_c), \qquad
              D = D_k + w (D_c - D_k)

    The published abstract says that the reference class and the scale follow the classifier's
    confusion; these two formulas are this library's. Where the classifier is sure of ``c`` the
    guide switches itself off, for each sample.

    * Cost: 1 NFE (the reference class) and one forward of the classifier.
    * Neutral: ``w_max = 0``.

    Args:
        energy: A classifier of clean samples: ``fl.energy.Classifier`` or its name. Its own label
            is not used.
        w_max: Largest ``w - 1``, >= 0.
        condition: Name of the class condition; whole numbers.

    Raises:
        ValueError: ``w_max`` is out of range; the energy has no class probabilities, or judges
            noisy samples.

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "energy", of(self.name, self.energy))
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

    @property
    def negative(self) -> Branch:
        mistaken = _Mistaken(self.energies[0], self.condition)
        return Branch("mistaken", transforms=(mistaken,), needs=(COND,))

    def update(
        self, predictions: Predictions, ctx: Context, place: Place
    ) -> tuple[Tensor | None, Weight]:
        update, total = super().update(predictions, ctx, place)
        if update is None:
            return None, 0.0
        # where a policy provided the branch, nothing says how mistaken the sample is
        doubt = ctx.memo.get(("doubt", self.energies[0]))
        return update * (0.0 if doubt is None else per_sample(doubt, update)), total
