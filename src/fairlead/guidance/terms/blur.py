"""Blur guidance, and what self-attention guidance shares with it."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from fairlead.guidance.algebra import Context, Gains, Place, Range, Scale, Term, register
from fairlead.guidance.blur import gaussian_blur
from fairlead.guidance.branch import Branch, Point, Predictions
from fairlead.parameters import choose

State = Literal["cond", "null"]


@dataclass(frozen=True)
class Degraded(Point):
    """The point of the same noise whose clean estimate is blurred."""

    keeps_noise: ClassVar[bool] = True

    of: Branch
    width: float
    kernel: int
    clip: bool

    def __call__(self, x: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        estimate = predictions[self.of]
        plain = estimate.clamp(-1, 1) if self.clip else estimate
        mask = self.mask(estimate, predictions)
        blurred = gaussian_blur(plain, self.width, self.kernel)
        degraded = blurred if mask is None else plain.where(~mask, blurred)
        return x + ctx.alpha * (degraded - estimate)

    def mask(self, estimate: Tensor, predictions: Predictions) -> Tensor | None:
        """Where it blurs, or `None` for everywhere."""
        return None


@dataclass(frozen=True)
class Blurring(Term):
    """Guides away from the prediction at a degraded input; `degraded` says which."""

    @abstractmethod
    def degraded(self, source: Branch) -> Point:
        """Where the weak branch is evaluated, given the one it belongs to."""

    @cached_property
    def positive(self) -> Branch:
        state: str = getattr(self, "state", "cond")
        return Branch(state, state=state)

    @cached_property
    def negative(self) -> Branch:
        return self.weak(self.positive)

    def weak(self, source: Branch) -> Branch:
        """The branch at the degraded input of another."""
        return replace(source, name=self.name, needs=(source,), point=self.degraded(source))

    def plan(self, ctx: Context, gains: Gains, gain: float, place: Place) -> None:
        weight = self.weigh(self.strength_at(ctx), ctx, gains, gain)
        if isinstance(weight, float) and weight == 0.0:
            return
        source = self.seen(self.positive, ctx, gains)
        ctx.plan.enter(place, [(weight, source, self.weak(source))])
        for _, capture in self.captures:
            ctx.plan.capture(source, capture)


def check_blur(term: "BlurGuidance | Blurring", kernel: int, state: str) -> None:
    """Refuses an even kernel and an unknown state."""
    if isinstance(kernel, bool) or not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"{term.name}: kernel must be an odd number of pixels, got {kernel}")
    choose(term.name, "state", state, ("cond", "null"))


@register("blur", ids=("S027",), nfe=1, neutral="0.0")
@dataclass(frozen=True)
class BlurGuidance(Blurring):
    r"""Guides away from the prediction at an input whose clean estimate was blurred.

    .. math::
        \tilde x &= \alpha \, G D(x) + \sigma \, \epsilon(x), \\
        \epsilon &\gets \epsilon(x) + s \, (\epsilon(x) - \epsilon(\tilde x)), \qquad
        D \gets D - s \, (D(\tilde x) - G D)

    ``G`` is a Gaussian blur of the last two dimensions with reflected borders; the noise is that
    of the first prediction, and the step starts from ``x``. What the blur leaves alone is not
    guided, and the rest contracts towards its modes.

    * Cost: 1 NFE beside the conditional one (the null one if that is degraded), after it: the two
      share no batch.
    * Neutral: ``s = 0``; a kernel of 1.
    * Defaults by family: as ``sag``; large ``s`` saturates soon, the authors stay below 1.

    Args:
        s: Scale; one number, or one a sample.
        width: Standard deviation of the blur in pixels (of latents as they are), above 0;
            infinite gives the mean over the image.
        kernel: Taps a side, odd; cut to what the image allows.
        state: Which prediction is degraded: ``cond``, or ``null`` as in Stable Diffusion with CFG.
        clip: Clip the estimate to [-1, 1] before the blur, as the authors' pixel code does.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.BlurGuidance(0.5, width=3.0))
        'blur(0.5, width=3.0)'

    Source:
        Hong, Lee, Jang, Kim (2022), arXiv:2210.00939.
    """

    s: Scale
    width: Annotated[float, Range(0, inf, closed="right")] = 1.0
    kernel: int = 9
    state: State = "cond"
    clip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_blur(self, self.kernel, self.state)

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return self.s

    def degraded(self, source: Branch) -> Point:
        return Degraded(source, self.width, self.kernel, self.clip)
