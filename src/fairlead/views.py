"""Canvases larger than what a network takes: its predictions on overlapping windows, averaged."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from fairlead.attention import AttentionLayer
from fairlead.condition import Condition, concatenate
from fairlead.denoiser import Denoiser, working_dtype
from fairlead.schedules import Level

View = tuple[slice, ...]
"""A window of a canvas: a slice of each dimension behind the channels."""


class ViewsDenoiser(Denoiser):
    r"""MultiDiffusion: a canvas of any size, denoised by a network through overlapping windows.

    With ``F_v`` what window ``v`` cuts out, ``F_v^T`` what puts it back, and the weights ``m`` of
    the pixels of a window,

    .. math:: D(x) = \frac{\sum_v F_v^T \, m \, D_v}{\sum_v F_v^T \, m}, \quad
              D_v = D(F_v x), \qquad
              D(x) = \arg\min_J \sum_v \bigl\lVert \sqrt{m} \, (F_v J - D_v) \bigr\rVert^2 .

    The authors average the steps of the windows. Under a sampler whose step is affine in the
    prediction and the same for all (``ddim``, ``euler``, ``dpmpp_2m``, and ``ddpm``, whose noise is
    drawn for the canvas), this is that, to rounding; a weighted sum of branches is guided in each
    window. Rules that are not linear act on the canvas. Windows lie ``stride`` apart, and the
    last one of each dimension at its end, so every pixel is seen.

    * One window that covers the canvas is the model itself.
    * Cost: it counts as one evaluation and predicts every window, ``ceil((N - n)/stride) + 1`` in
      each dimension.
    * Guides that reach into the network (``pag``, ``slg``, ``tsg``, ...) cannot be used: its rows
      are windows.
    * Defaults by family: Stable Diffusion, windows of 64x64 latent pixels 8 apart.

    Args:
        denoiser: The model.
        size: Size of the canvas behind the channels: ``(H, W)``, ``(F, H, W)``, ``(L,)``.
        stride: Distance of two windows, >= 1: one number, or one a dimension.
        window: Size of a window; default: that of the model's samples.
        weight: ``m`` > 0, shaped like a window, with sizes of 1 where it does not change;
            default: 1 everywhere. Weights that fall towards the border hide seams.
        crop: Conditions that are pictures of the canvas, ``(B, ..., *size)``: each window sees its
            part.
        views: Most windows in one network call.

    Raises:
        ValueError: A size or stride does not fit, a window is larger than the canvas or leaves
            gaps, a weight is not positive, or the guide reaches into the network.

    Example:
        >>> import fairlead as fl
        >>> wide = fl.ViewsDenoiser(fl.testing.tiny_denoiser(), (8, 20), stride=4)
        >>> [(v[1].start, v[1].stop) for v in wide.windows((8, 20))]
        [(0, 8), (4, 12), (8, 16), (12, 20)]
        >>> fl.sample(wide, {"label": 3}, guide="cfg(3)", steps=4).x.shape
        torch.Size([1, 2, 8, 20])

    Source:
        Bar-Tal, Yariv, Lipman, Dekel (2023), arXiv:2302.08113.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        size: Sequence[int],
        stride: int | Sequence[int],
        *,
        window: Sequence[int] | None = None,
        weight: Tensor | None = None,
        crop: Iterable[str] = (),
        views: int = 1,
    ) -> None:
        if window is None and denoiser.shape is None:
            raise ValueError("views: window must be given, as the model knows no shape")
        window = tuple(denoiser.shape[1:] if window is None else window)  # type: ignore[index]
        steps = (stride,) * len(window) if isinstance(stride, int) else tuple(stride)
        for name, value in (("window", window), ("size", tuple(size)), ("stride", steps)):
            if len(value) != len(window) or min(value, default=0) < 1:
                raise ValueError(
                    f"views: {name} must be {len(window)} whole numbers of at least 1, one for "
                    f"each dimension behind the channels, got {value}"
                )
        if any(s > w for s, w in zip(steps, window, strict=True)):
            raise ValueError(
                f"views: stride must be at most the window, {window}, or there are gaps; got "
                f"{steps}"
            )
        if views < 1:
            raise ValueError(f"views: views must be at least 1, got {views}")
        super().__init__(
            _hidden,  # its rows are windows, so no guide may count them
            denoiser.schedule,
            "sample",
            denoiser.null,
            shape=None if denoiser.shape is None else (denoiser.shape[0], *size),
            trained=denoiser.trained,
            time_embedding=denoiser.time_embedding,
            embeddings=denoiser.embeddings,
            choices=denoiser.choices,
        )
        self.device, self.dtype = denoiser.device, denoiser.dtype
        self.inner, self.window, self.strides, self.views = denoiser, window, steps, views
        self.crop, self.weight = frozenset(crop), _positive(weight, window)
        options = {"window": window, "weight": weight, "crop": self.crop, "views": views}
        self.models = {
            k: ViewsDenoiser(m, size, stride, **options)  # type: ignore[arg-type]
            for k, m in denoiser.models.items()
        }
        self.windows(tuple(size))

    def windows(self, size: Sequence[int]) -> list[View]:
        """The windows of a canvas.

        Raises:
            ValueError: A window is larger than the canvas.
        """
        if any(n < w for n, w in zip(size, self.window, strict=True)):
            raise ValueError(
                f"views: a canvas must be at least as large as a window, {self.window}, got "
                f"{tuple(size)}"
            )
        starts = [
            [*range(0, n - w, step), n - w]
            for n, w, step in zip(size, self.window, self.strides, strict=True)
        ]
        return [
            tuple(slice(a, a + w) for a, w in zip(corner, self.window, strict=True))
            for corner in product(*starts)
        ]

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The average of the predictions on all windows, `(B, ...)`."""
        if x.ndim != len(self.window) + 2:
            raise ValueError(
                f"views: samples must have {len(self.window)} dimensions behind the channels, got "
                f"the shape {tuple(x.shape[1:])}"
            )
        found, total = self.windows(x.shape[2:]), None
        count = torch.zeros(x.shape[2:], dtype=working_dtype(x), device=x.device)
        weight = self.weight.to(count)
        for first in range(0, len(found), self.views):
            some = found[first : first + self.views]
            rows = torch.cat([x[_at(view)] for view in some])
            shown = concatenate([self._cropped(condition, view) for view in some])
            parts = self.inner.predict(rows, _repeated(level, len(some)), shown).chunk(len(some))
            total = parts[0].new_zeros(x.shape) if total is None else total
            for view, part in zip(some, parts, strict=True):
                total[_at(view)] += weight * part
                count[view] += weight
        assert total is not None
        mean: Tensor = total / count
        return mean

    def check(self, condition: Condition) -> None:
        """Refuses a condition that the model cannot take, or whose picture has another size."""
        for name in sorted(self.crop.intersection(condition)):
            size = None if self.shape is None else self.shape[1:]
            got = tuple(condition[name].shape[-len(self.window) :])
            if size is not None and got != size:
                raise ValueError(
                    f"views: the condition {name!r} is a picture of the canvas, {size}, got {got}"
                )
        self.inner.check(condition)

    def embed(self, condition: Condition) -> Condition:
        """The condition with every index replaced by its embedding."""
        return self.inner.embed(condition)

    @cached_property
    def attention_layers(self) -> dict[str, AttentionLayer]:
        """None that a guide may read: raises."""
        raise ValueError(_HIDDEN)

    def module(self, name: str) -> nn.Module:
        """None that a guide may change: raises."""
        raise ValueError(_HIDDEN)

    def _cropped(self, condition: Condition, view: View) -> Condition:
        own = {k: v[_at(view)] for k, v in condition.items() if k in self.crop}
        return condition.replace(**own) if own else condition


_HIDDEN = (
    "views: this guide reaches into the network, whose rows are windows of the canvas here; use "
    "guides over conditions or models (cfg, cfgpp, icg, multi, autoguidance)"
)


def _at(view: View) -> tuple[Any, ...]:
    """The index of a window in a batch."""
    return (..., *view)


def _hidden(*arguments: Any, **named: Any) -> Tensor:
    raise ValueError(_HIDDEN)


def _positive(weight: Tensor | None, window: tuple[int, ...]) -> Tensor:
    """The weights of a window's pixels."""
    if weight is None:
        return torch.ones(window)
    fits = weight.ndim == len(window) and all(
        s in (1, n) for s, n in zip(weight.shape, window, strict=True)
    )
    if not fits or not bool((weight > 0).all()) or not bool(weight.isfinite().all()):
        raise ValueError(
            f"views: weight must be positive numbers shaped like a window, {window}, with sizes of "
            f"1 where it does not change; got the shape {tuple(weight.shape)}, from "
            f"{weight.min().item():g} to {weight.max().item():g}"
        )
    return weight.expand(window)


def _repeated(level: Level, times: int) -> Level:
    """The level of so many windows, where it differs between samples."""
    if not isinstance(level.t, Tensor):
        return level
    parts = (torch.cat([torch.as_tensor(v)] * times) for v in (level.t, level.alpha, level.sigma))
    return Level(*parts)
