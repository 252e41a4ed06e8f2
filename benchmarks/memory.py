"""Memory and time of guides that differentiate the network.

`python -m benchmarks.memory`: peak resident memory over 1,000 steps, which is flat since no graph
outlives a step; and the time of a step against an unguided one.
"""

import resource

import torch

import fairlead as fl
from benchmarks.network import dit
from benchmarks.timing import Ratio, ratio
from fairlead.condition import Condition
from fairlead.energy import Function
from fairlead.guidance.context import Run
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel
from fairlead.testing import tiny_denoiser

ENERGY = Function(lambda z: z.square().mean((1, 2, 3)), name="small")


def flat(steps: int = 1000) -> list[int]:
    """Peak resident memory in KiB at every tenth of the steps."""
    peaks = []

    def look(step: fl.Step) -> None:
        if (step.index + 1) % (steps // 10) == 0:
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    fl.sample(
        tiny_denoiser(),
        {"label": torch.arange(8) % 10},
        guide=fl.TFG(ENERGY, rho=0.1, mu=0.1),
        sampler="ddim",
        steps=steps,
        callback=look,
        record=False,
    )
    return peaks


def step(guide: fl.Guide | str, batch: int = 4) -> object:
    """One guided evaluation of a DiT of 10 M parameters."""
    schedule = fl.schedules.EDM()
    denoiser = fl.Denoiser(dit(), schedule, "edm", null={"label": 10})
    levels = schedule.grid(50)
    run = Run(0, range(batch), 50, levels=levels)
    states = {"cond": Condition({"label": torch.arange(batch)})}
    model = GuidedModel(fl.guide(guide), Evaluator(denoiser, states), run)
    x = torch.randn(batch, 3, 32, 32)

    def call() -> object:
        run.step = -1
        model.begin(levels[0])
        with torch.no_grad():
            return model(x, levels[0])

    return call


def ratios() -> dict[str, Ratio]:
    """Each guide against no guidance, in turn."""
    plain = step("none")
    guides = {
        "mpgd (no backward)": fl.MPGD(ENERGY, 0.1),
        "dps (one backward)": fl.DPS(ENERGY, 0.1),
        "tfg (one backward, four gradients)": fl.TFG(ENERGY),
    }
    return {k: ratio(step(g), plain, repeats=10, number=1, warmup=2) for k, g in guides.items()}


def main() -> None:
    peaks = flat()
    print("peak memory over 1,000 steps, MiB:", *(f"{p / 1024:.1f}" for p in peaks))
    for name, found in ratios().items():
        print(f"{name:40s} {found}")


if __name__ == "__main__":
    main()
