"""Classifier guidance, with noise-aware classifiers or clean ones."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from torch import Tensor

from fairlead.guidance.algebra import Context, Predictions, Scale, register
from fairlead.guidance.branch import Branch
from fairlead.guidance.energy.term import EnergyLike, GradientTerm, score_shift
from fairlead.parameters import choose
from fairlead.schedules import Level


@register("classifier_guidance", ids=("XP1", "S056"), neutral="'classifier', 0.0")
@dataclass(frozen=True)
class ClassifierGuidance(GradientTerm):
    r"""Adds the gradient of a log-probability to the score.

    With ``g = grad_x log p(c | x)`` and a scale ``k``:

    .. math:: s = s_\mathrm{rest} + k \, g, \qquad D = D_\mathrm{rest} + k \frac{\sigma^2}{\alpha} g

    With the exact model and classifier ``k = w`` on the unconditional model is CFG at ``w``. An
    energy that judges noisy samples (a noise-aware classifier, ``ClosedFormJudge``, a similarity
    in a noise-aware feature space) is differentiated at ``x``, without a network call between. One
    that judges clean samples is differentiated at ``D``, and then ``point`` decides: ``network``
    goes on through the network to ``x``, ``estimate`` stops at ``D``, which leaves out the factor
    ``(alpha / sigma^2) Cov(x0 | x)``.

    * Cost: 0 NFE; one gradient of the energy, and for ``network`` one backward through the model.
    * Neutral: ``scale=0``. Nothing is added where ``alpha = 0``.
    * Defaults by family: 0.5 to 1 for conditional, 1 to 10 for unconditional image models.

    Args:
        energy: Minus a log-probability; a name, an energy or a function.
        scale: ``k``, one number or one a sample.
        form: ``score``, for every sampler; ``mean`` adds ``k V g`` to the next sample, ``V`` the
            variance of the DDPM posterior, as ancestral sampling was first guided.
        point: Where the gradient of a clean energy stops.
        branch: Condition state whose clean estimate a clean energy sees.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(1.5) + fl.ClassifierGuidance("classifier", 2.0))
        "cfg(1.5) + classifier_guidance('classifier', scale=2.0)"

    Source:
        Dhariwal, Nichol (2021), arXiv:2105.05233; similarity of features as the energy: Nichol et
        al. (2021), arXiv:2112.10741.
    """

    wants: ClassVar[str] = "any"

    energy: EnergyLike
    scale: Scale = 1.0
    form: Literal["score", "mean"] = "score"
    point: Literal["network", "estimate"] = "network"
    branch: str = "cond"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.name, "form", self.form, ("score", "mean"))
        choose(self.name, "point", self.point, ("network", "estimate"))

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return self.scale

    @property
    def apart(self) -> bool:
        return self.form == "mean"

    def differentiates(self, ctx: Context) -> bool:
        """Whether the network lies between the energy and `x`."""
        noisy = ctx.run.energy(self.name, self.energies[0]).noisy
        return self.point == "network" and not noisy

    def shift(self, branch: Branch, predictions: Predictions, ctx: Context) -> Tensor:
        if ctx.run.energy(self.name, self.energies[0]).noisy:
            assert ctx.x is not None
            base = predictions.base
            g = self.log_f(ctx.x.to(base.dtype), ctx)[1]
        else:
            g = self.log_f(predictions[branch], ctx)[1]
            if self.point == "network":
                g = ctx.pull(branch, g)
        if self.form == "score":
            return score_shift(g, ctx)
        return g * (posterior_variance(ctx.level, ctx.target) / ctx.target.alpha)


def posterior_variance(s: Level, t: Level) -> float:
    """Variance of `q(x_t | x_s, x0)`, the small variance of DDPM."""
    share = 1 - (s.alpha * t.sigma / (t.alpha * s.sigma)) ** 2 if s.sigma else 0.0
    return t.sigma**2 * max(share, 0.0)
