"""Inpainting: the known part of a sample is put back at every level, with jumps that settle it."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from torch import Tensor

from fairlead.parameters import Range, choose, nearest
from fairlead.prediction import Prediction
from fairlead.samplers.base import Model, added_variance, register
from fairlead.samplers.wrapper import Wrapper
from fairlead.schedules import Level

REMEMBERING = ("dpmpp_2m", "dpmpp_2m_sde", "unipc", "dc", "recurrence")


@register("repaint", ids=("XI8", "S056"))
@dataclass(frozen=True)
class RePaint(Wrapper):
    r"""Fills in the rest of samples of which a part is known, by another sampler's steps.

    The known part ``y`` is ``fl.sample(reference=y)``, where it is known says a mask ``M`` of
    ``fl.sample(masks={"known": M})``, 1 where it is; in between the two are mixed. After each step
    the known part is replaced by its noised version at the new level ``t``:

    .. math:: x_t \gets M (\alpha_t y + \sigma_t n) + (1 - M) x_t

    so that the result agrees with ``y`` exactly. Replacement alone leaves the rest biased, because
    it never hears of the known part in time. So at every ``jump``-th level the sample is noised
    back by ``jump`` levels and these are walked again, ``times`` in all:

    .. math:: x_s = \frac{\alpha_s}{\alpha_t} x_t
              + \sqrt{\sigma_s^2 - \alpha_s^2 \sigma_t^2 / \alpha_t^2} \; n

    * Order that of ``sampler``; about ``times`` its evaluations. The step to the clean sample is
      not repeated.
    * ``times=1`` is plain replacement; a mask of zeros is then ``sampler``.

    Args:
        times: How often each stretch of levels is walked, >= 1; 10 in the paper.
        jump: Levels of a stretch, >= 1; 10 in the paper, with 250 steps.
        place: What is replaced: the ``sample`` as above, or the clean ``estimate``, whose known
            part becomes ``y`` before each step.
        mask: Name of the mask.
        sampler: Text of the sampler; one that adds noise and has no memory between steps, such as
            ``ddpm`` or ``ddim(eta=1.0)``.

    Raises:
        ValueError: A parameter is out of range; the sampler keeps a memory between steps;
            ``reference`` or the mask was not given.

    Example:
        >>> import torch, fairlead as fl
        >>> p = fl.exact.GaussianMixture([[0.0, 0.0]], [[[1.0, 0.9], [0.9, 1.0]]])
        >>> out = fl.sample(
        ...     p.denoiser(fl.schedules.VP()), sampler="repaint(times=5)", steps=20, n=3,
        ...     reference=torch.tensor([[2.0, 0.0]]), masks={"known": [1, 0]},
        ... )
        >>> out.x[:, 0]
        tensor([2., 2., 2.])

    Source:
        Lugmayr et al. (2022), arXiv:2201.09865; ``estimate``: Nichol et al. (2021),
        arXiv:2112.10741.
    """

    times: Annotated[int, Range(1, math.inf, closed="left")] = 10
    jump: Annotated[int, Range(1, math.inf, closed="left")] = 1
    place: Literal["sample", "estimate"] = "sample"
    mask: str = "known"
    sampler: str = "ddpm"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("repaint", "place", self.place, ("sample", "estimate"))
        for name in ("times", "jump"):
            value = getattr(self, name)
            if value != int(value):
                raise ValueError(f"repaint: {name} must be a whole number, got {value}")
        if self.inner.name in REMEMBERING:
            raise ValueError(
                "repaint: sampler must keep no memory between steps, got "
                f"{self.sampler!r}; did you mean 'ddpm' or 'ddim(eta=1.0)'?"
            )

    @property
    def order(self) -> int:
        """That of the sampler."""
        return self.inner.order

    @property
    def evaluations(self) -> int:
        """`times` those of the sampler."""
        return self.times * self.inner.evaluations

    def check(self, model: Model) -> None:
        super().check(model)
        if model.reference is None:
            raise ValueError("repaint: the known part is missing: pass fl.sample(reference=...)")
        if self.mask not in model.masks:
            raise ValueError(
                f"repaint: the mask {self.mask!r} is missing: pass "
                f"fl.sample(masks={{{self.mask!r}: ...}}); {nearest(self.mask, model.masks)}"
            )

    def walk(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """A step, and at the end of a stretch that stretch again."""
        x = self._once(model, x, s, t)
        first = model.step + 1 - self.jump
        # the last stretch ends one step before the clean sample, and the first is walked in full
        if (model.steps - 2 - model.step) % self.jump or first < 0 or t.sigma == 0:
            return x
        stretch = model.levels[first : model.step + 2]
        for _ in range(self.times - 1):
            up = stretch[0]
            noise = math.sqrt(added_variance(up, t)) * model.noise(x)
            x = up.alpha / t.alpha * x + noise
            for i, (a, b) in enumerate(pairwise(stretch)):
                with model.revisit(first + i):
                    x = self._once(model, x, a, b)
        return x

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        return self.walk(model, x, s, t)

    def _once(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """One step, after which the known part is in place."""
        known = model.reference
        assert known is not None
        mask = model.masks[self.mask]
        if self.place == "estimate":
            return self.inner.walk(_Overwritten(model, mask, known), x, s, t)
        x = self.inner.walk(model, x, s, t)
        there = t.alpha * known
        if t.sigma:
            there = there + t.sigma * model.noise(x)
        return mask * there + (1 - mask) * x


class _Overwritten:
    """A model whose clean estimates show what is known."""

    def __init__(self, model: Model, mask: Tensor, known: Tensor) -> None:
        self._model, self._mask, self._known = model, mask, known

    def __call__(self, x: Tensor, level: Level, *, gain: float = 1.0) -> Prediction:
        found, mask = self._model(x, level, gain=gain), self._mask
        ends = (mask * self._known + (1 - mask) * d for d in (found.denoise, found.renoise))
        return Prediction(*ends)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
