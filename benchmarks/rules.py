"""(d) The combine of every rule against the network: at most 5 % of a 10 M DiT at batch 8.

Each rule stands after `cfg(3)`, or in its example. One evaluation is made as `fl.sample` makes it;
then putting the same branches together is timed, in turn with the network on eight rows.
"""

from collections.abc import Callable

import torch

import fairlead as fl
from benchmarks.network import B, dit
from benchmarks.timing import Ratio, ratio
from fairlead.condition import Condition
from fairlead.guidance import guided
from fairlead.guidance.algebra import REGISTRY, Guide, Rule
from fairlead.guidance.context import Run
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel
from fairlead.testing.checks import ENERGIES
from fairlead.testing.subject import Subject

LIMIT = 0.05
"""Largest share of the network's time that a combine may take."""


def rows() -> dict[str, Ratio]:
    """Each rule, and plain CFG, against one call of the network on eight rows."""
    network = dit()
    x, t, label = torch.randn(B, 3, 32, 32), torch.zeros(B), torch.arange(B)
    guides = {"cfg(3)": fl.guide("cfg(3)")}
    for cls in REGISTRY.values():
        if issubclass(cls, Rule) and "continuous" in cls.domains:
            subject = Subject.of(cls)
            if not subject.method.captures:  # this network has no text whose maps they read
                guides[str(subject.guide)] = subject.guide
    denoiser = fl.Denoiser(
        network,
        fl.schedules.EDM(),
        "edm",
        null={"label": 10},
        shape=(3, 32, 32),
        choices={"label": 10},
    )
    out = {}
    with torch.no_grad():
        for text, guide in guides.items():
            ours = combine(guide, denoiser)
            out[text] = ratio(
                ours, lambda: network(x, t, label), repeats=12, number=1, warmup=2, calls=10
            )
    return out


def combine(guide: Guide, denoiser: fl.Denoiser) -> Callable[[], object]:
    """Putting together the branches of one evaluation, again and again."""
    level, kept = denoiser.schedule.level(1.0), []
    finish = guided.finish

    def recorded(*given: object) -> object:
        kept.append(given)
        return finish(*given)  # type: ignore[arg-type]

    states = {
        "cond": Condition({"label": torch.arange(B)}),
        "negative": Condition({"label": torch.arange(B) + 1}),
    }
    run = Run(0, range(B), 2, energies=ENERGIES, levels=[level, denoiser.schedule.level(0.0)])
    model = GuidedModel(guide, Evaluator(denoiser, states), run)
    guided.finish = recorded  # type: ignore[assignment]
    try:
        model.begin(level)
        model(torch.randn(B, 3, 32, 32), level)
    finally:
        guided.finish = finish
    return lambda: finish(*kept[0])  # type: ignore[arg-type]
