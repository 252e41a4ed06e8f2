"""What a tiny pipeline is: how it is built and one cheap call of it."""

import zlib
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PROMPT = "a lighthouse in a storm"
NEGATIVE = "fog"


@dataclass(frozen=True)
class Recipe:
    """How one tiny pipeline is built and called.

    Attributes:
        name: Its name in `PIPELINES` or `MODULAR`.
        build: Makes the pipeline; weights are drawn afterwards.
        call: Arguments of one cheap call, without a generator.
        knob: The argument that scales guidance; for a modular pipeline, None.
        off: The value of the knob at which the prediction is the conditional one: 1 where the
            pipeline computes ``u + w (c - u)``, 0 where it computes ``c + s (c - u)``.
        networks: Names of the components that predict.
    """

    name: str
    build: Callable[[], Any]
    call: Mapping[str, Any]
    knob: str | None = "guidance_scale"
    off: float = 1.0
    networks: tuple[str, ...] = ("transformer",)

    @property
    def arguments(self) -> dict[str, Any]:
        """A fresh copy of the arguments of one cheap call."""
        return {name: copy(value) for name, value in self.call.items()}

    def scale(self, w: float) -> dict[str, float]:
        """The argument that asks the pipeline for scale `w`, with 1 the conditional."""
        if self.knob is None:
            raise ValueError(f"{self.name}: a modular pipeline has a guider instead of a scale")
        return {self.knob: w - 1 + self.off}

    def run(self, pipe: Any, *, seed: int = 0, **changes: Any) -> Tensor:
        """The latents of one call.

        Args:
            pipe: What `tiny_pipeline` or `tiny_modular` built.
            seed: Seed of the call's generator.
            changes: Arguments that differ from `arguments`.
        """
        generator = torch.Generator().manual_seed(seed)
        arguments = {**self.arguments, "generator": generator, **changes}
        modular = self.knob is None
        result = pipe(**arguments, output="latents") if modular else pipe(**arguments)[0]
        if not isinstance(result, Tensor):
            raise TypeError(f"{self.name}: the call gave {type(result).__name__}, not latents")
        return result


def redraw(module: nn.Module, name: str) -> None:
    """Draws all weights anew, in evaluation mode: fixed by `name`, none left zero or unset.

    Networks start some layers at zero (a ControlNet its outputs) or leave them unset, and a guide
    could then do nothing without a test noticing. Ones, the weights of norms, stay.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for parameter in module.parameters():
            if bool((parameter == 1).all()):
                continue
            std = 0.1 if parameter.ndim < 2 else (parameter[0].numel()) ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    module.eval().requires_grad_(False)


def prepare(pipe: Any) -> Any:
    """Draws the weights of each component of a pipeline and silences its progress bar."""
    for name, component in pipe.components.items():
        if isinstance(component, nn.Module):
            redraw(component, name)
    pipe.set_progress_bar_config(disable=True)
    return pipe
