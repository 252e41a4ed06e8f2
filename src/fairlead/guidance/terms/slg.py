"""Skip-layer guidance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Context, Scale, Term, register
from fairlead.guidance.branch import Branch, Perturbation
from fairlead.layers import find_blocks, match_layers


@dataclass(frozen=True)
class Skipped(Perturbation):
    """The blocks return what they are given."""

    layers: str | tuple[str, ...]

    def modules(self, denoiser: Denoiser) -> list[nn.Module]:
        blocks = find_blocks(denoiser.network)
        return match_layers("slg", self.layers, blocks, "residual block")

    def __call__(
        self, inputs: Mapping[str, Any], output: Any, rows: Sequence[int], ctx: Context
    ) -> Any:
        if isinstance(output, tuple):
            return tuple(_stream(inputs, part) for part in output)
        return _stream(inputs, output)


def _stream(inputs: Mapping[str, Any], output: Any) -> Any:
    """The input that a block turned into an output: the one of its shape."""
    if not isinstance(output, Tensor):
        return output
    fits = [v for v in inputs.values() if isinstance(v, Tensor) and v.shape == output.shape]
    if not fits or len({v.data_ptr() for v in fits}) > 1:
        raise ValueError(
            f"slg: {len(fits)} arguments of a block have the shape of its output, "
            f"{tuple(output.shape)}, so it cannot be skipped"
        )
    return fits[0]


@register("slg", ids=("XC8",), nfe=1, neutral="0.0, 'mid'")
@dataclass(frozen=True)
class SLG(Term):
    r"""Guides away from the model with some of its blocks left out.

    .. math:: D = D_c + s (D_c - D_\mathrm{skip})

    A skipped block returns its input, in every stream that it has. ``cfg(w) + slg(s, layers)`` is
    the three-branch form; the window of a few early steps is ``slg(...) | interval(0.01, 0.2)``
    inside the sum.

    * Effective ``w``: ``s = w - 1`` between the skipped and the plain prediction.
    * Cost: 1 NFE beside the conditional one; all rows share one network call.
    * Neutral: ``s = 0``.
    * Defaults by family: SD3.5-Medium ``blocks.7,blocks.8,blocks.9``, ``s = 2.8``.

    Args:
        s: Scale; one number, or one a sample.
        layers: Residual blocks by name, as attention layers for ``pag``.

    Raises:
        ValueError: ``s`` is NaN or infinite; a pattern names no block (lists them); a block's
            output looks like none or several of its arguments.

    Example:
        >>> import fairlead as fl
        >>> str(fl.SLG(2.8, layers="mid"))
        "slg(2.8, 'mid')"

    Source:
        Stability AI, reference code of Stable Diffusion 3.5 (2024).
    """

    s: Scale
    layers: str | tuple[str, ...]

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return self.s

    @cached_property
    def negative(self) -> Branch:
        return Branch("slg", perturbations=(Skipped(self.layers),))
