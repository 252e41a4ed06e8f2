"""(b) A guided step of a DiT against the raw network on as many rows; (c) one batch against n."""

import torch

import fairlead as fl
from benchmarks.timing import Ratio, ratio
from fairlead.condition import Condition
from fairlead.guidance.context import Run
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel
from fairlead.models.dit import DiT

B = 8


def dit() -> DiT:
    """A random DiT of at least 10 M parameters on 32x32 images."""
    torch.manual_seed(0)
    network = DiT(size=32, channels=3, classes=10, patch=4, width=320, depth=8, heads=5).eval()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.02)
    size = sum(p.numel() for p in network.parameters())
    assert size >= 10_000_000, size
    return network


def guided_step() -> Ratio:
    """Two branches at batch 8 against the raw network on 16 rows."""
    network = dit()
    schedule = fl.schedules.EDM()
    denoiser = fl.Denoiser(network, schedule, "edm", null={"label": 10})
    states = {"cond": Condition({"label": torch.arange(B)})}
    model = GuidedModel(fl.CFG(4.0), Evaluator(denoiser, states), Run(0, range(B), 50))
    level = schedule.level(1.0)
    x = torch.randn(B, 3, 32, 32)
    rows, t, label = torch.randn(2 * B, 3, 32, 32), torch.zeros(2 * B), torch.arange(2 * B) % 11

    def ours() -> object:
        model.begin(level)
        return model(x, level)

    with torch.no_grad():
        return ratio(ours, lambda: network(rows, t, label), repeats=40, number=2, warmup=3)


def one_batch() -> tuple[Ratio, float]:
    """Eight samples in one batch against eight batches of one: time, and largest difference."""
    d = fl.load("digits")
    labels = torch.arange(B)

    def together() -> torch.Tensor:
        return fl.sample(d, {"label": labels}, guide="cfg(2)", steps=4, sampler="ddim").x

    def apart() -> torch.Tensor:
        parts = [
            fl.sample(
                d, {"label": labels[i : i + 1]}, guide="cfg(2)", steps=4, sampler="ddim", first=i
            ).x
            for i in range(B)
        ]
        return torch.cat(parts)

    difference = (together() - apart()).abs().max().item()
    return ratio(together, apart, repeats=10, number=1, warmup=1), difference
