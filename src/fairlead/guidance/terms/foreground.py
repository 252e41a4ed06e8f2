"""A region under a condition of its own, over plain colours at first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from fairlead.denoiser import working_dtype
from fairlead.guidance.algebra import Context, Difference, Range, Scale, Term, register
from fairlead.guidance.branch import COND, NULL, Branch, Point, Predictions
from fairlead.guidance.states import absent, branch

Colours = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class OverColour(Point):
    """The sample inside a mask, and a noised constant colour outside of it."""

    mask: str
    colours: Colours

    def __call__(self, x: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        mask, run = ctx.run.masks[self.mask], ctx.run
        x = x.to(working_dtype(x))
        like, key = x.new_empty(len(x), x.shape[1]), f"colour around {self.mask}"
        if self.colours:
            if len(self.colours[0]) != x.shape[1]:
                raise ValueError(
                    f"foreground: each of colours must be {x.shape[1]} numbers, one a channel, got "
                    f"{self.colours[0]}"
                )
            drawn = torch.tensor(self.colours)[run.integers(len(x), len(self.colours), key)]
        else:
            drawn = 2 * run.rand(like, key) - 1
        colour = drawn.to(x).reshape(*like.shape, *[1] * (x.ndim - 2))
        noise = run.fixed(x, f"noise around {self.mask}")
        return mask * x + (1 - mask) * (ctx.alpha * colour + ctx.sigma * noise)


@register("foreground", ids=("XM3",), nfe=3)
@dataclass(frozen=True)
class Foreground(Term):
    r"""Guides a region to a condition of its own, over plain colours at first (bootstrapping).

    In the first steps the region's predictions do not see what surrounds it, but a constant
    colour, so that its object is made inside the mask ``m`` and not across its border:

    .. math::
        D &= D_\mathrm{rest} + w \, [D(x_m, c_r) - D(x, c)] - (w - 1) \, [D(x_m) - D(x)], \\
        x_m &= m \, x + (1 - m) (\alpha b + \sigma n) \text{ for } i/N < \text{until, else } x

    with a colour ``b`` drawn anew each step and noise ``n`` that is fixed. Beside ``cfg(w)`` and
    kept to its mask it is the region's own guided prediction: ``cfg(w) + (foreground('text',
    'cat', w) | region('cat'))``, which ``regions(..., bootstrap=0.4)`` writes.

    * Cost: 3 NFE beside the conditional one in the first steps, of which ``cfg`` shares one, then
      1; in all regions together one more than ``regions``, and one a region, in the first steps.
    * Neutral: ``until = 0`` is the term of ``regions``. A model that predicts each pixel by itself
      is the same for every ``until``, where masks are 0 or 1.

    Args:
        condition: Name.
        state: State that holds the region's value, given to ``fl.sample(states=...)``.
        w: Guidance scale, that of ``cfg``; one number, or one a sample.
        mask: Name of the mask, given to ``fl.sample(masks=...)``; default: as the state.
        until: Share of the steps that see the colours; 0.4 in the paper.
        colours: Colours to draw from, a number a channel each; default: uniform in [-1, 1]. For
            latents give those of encoded plain images.

    Raises:
        ValueError: A parameter is out of range, or the colours differ in length (at once) or have
            not the channels of the sample.

    Example:
        >>> import fairlead as fl
        >>> str(fl.Foreground("label", "negative", 4.5, mask="left", until=1.0))
        "foreground('label', 'negative', 4.5, mask='left', until=1.0)"

    Source:
        Bar-Tal, Yariv, Lipman, Dekel (2023), arXiv:2302.08113.
    """

    condition: str
    state: str
    w: Scale
    mask: str = ""
    until: Annotated[float, Range(0, 1)] = 0.4
    colours: Sequence[Sequence[float]] = ()

    def __post_init__(self) -> None:
        colours = tuple(tuple(float(v) for v in c) for c in self.colours)
        object.__setattr__(self, "colours", colours)
        super().__post_init__()
        if len({len(c) for c in colours}) > 1:
            raise ValueError(f"foreground: colours must have one length, got {self.colours!r}")
        _ = self.plain

    @property
    def masks(self) -> tuple[str, ...]:
        """Names of the masks that it needs."""
        return (self.mask or self.state,)

    @cached_property
    def plain(self) -> tuple[Difference, ...]:
        """What it adds once the surroundings are seen."""
        known = absent(self.name, [self.condition])
        towards = branch(self.name, f"{next(iter(known))}={self.state}", known)
        return ((self.w, towards, COND),)

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        ((w, towards, _),) = self.plain
        point = OverColour(self.masks[0], self.colours)  # type: ignore[arg-type]
        null = tuple(1 - v for v in w) if isinstance(w, tuple) else 1 - w
        return (
            (w, _moved(towards, point), COND),
            (null, _moved(NULL, point), NULL),
        )

    def differences_at(self, ctx: Context) -> tuple[Difference, ...]:
        first = self.until > 0 and ctx.fraction < self.until
        return self.differences if first else self.plain

    @property
    def strength(self) -> float | tuple[float, ...]:
        return self.w

    @property
    def negative(self) -> Branch:
        return NULL


def _moved(source: Branch, point: OverColour) -> Branch:
    """A branch over colours."""
    return replace(source, name=f"{source.name} in {point.mask}", point=point)
