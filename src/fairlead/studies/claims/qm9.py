"""Claims of guided molecules: what guidance moves, and what it costs."""

from dataclasses import asdict
from typing import Any

import torch

from fairlead.discrete import sample
from fairlead.metrics import Estimate, mean_interval
from fairlead.metrics.molecules import describe, evaluate, known
from fairlead.models import zoo
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, above, difference

N, STEPS = 400, 16
TENTH = 9
GUIDES = {
    "unconditional": ("none", False),
    "D-CFG 1": ("cfg(1)", True),
    "D-CFG 2": ("cfg(2)", True),
    "D-CFG 4": ("cfg(4)", True),
    "D-CBG 3": ("dcbg('qed', 3)", False),
}
"""Guides, and whether the model itself is told what is asked for."""


@claim(
    "qm9",
    ids=("S129",),
    claim="Guided discrete diffusion raises drug-likeness of QM9 molecules, at a cost in validity "
    "and diversity; uniform noise is steered further than masks.",
    setting=f"qm9-masked and qm9-uniform, asked for the top tenth of QED, {N} molecules in {STEPS} "
    "steps each; D-CBG of the unconditional model, to first order; QED is the mean over valid "
    "unique molecules",
    expected="QED at D-CFG 2 and D-CBG 3 above the unconditional model's for both; fewer distinct "
    "valid molecules at D-CFG 4 than at 1; the best QED of uniform above the best of masked",
    models=("qm9",),
)
def molecules() -> Finding:
    """Every guide on both models: counts, mean QED and rings."""
    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    best: dict[str, Estimate] = {}
    known_ones = known("qm9")
    for kind in ("masked", "uniform"):
        denoiser: Any = zoo.load(f"qm9-{kind}")
        end = denoiser.vocabulary.index("<end>")
        judge = zoo.judge(f"qm9-{kind}", TENTH, "qed")
        qed: dict[str, Estimate] = {}
        distinct: dict[str, int] = {}
        for name, (guide, told) in GUIDES.items():
            out = sample(
                denoiser,
                {"qed": TENTH if told else denoiser.null["qed"], "rings": denoiser.null["rings"]},
                guide=guide,
                steps=STEPS,
                n=N,
                space="posterior" if "dcbg" in guide else None,
                energies={"qed": judge},
                record=False,
            )
            smiles = denoiser.decode(out.x, end)
            found = {m.smiles: m.qed for m in map(describe, smiles) if m is not None}
            report = asdict(evaluate(smiles, known_ones))
            values = torch.tensor(list(found.values()) or [0.0])
            qed[name], distinct[name] = mean_interval(values), len(found)
            measured[f"{kind}, {name}"] = {k: report[k] for k in ("valid", "unique", "novel")}
            measured[f"QED, {kind}, {name}"] = qed[name]
        for name in ("D-CFG 2", "D-CBG 3"):
            gain = difference(qed[name], qed["unconditional"])
            checks[f"{kind}: {name} raises QED"] = above(gain)
        checks[f"{kind}: D-CFG 4 costs distinct molecules"] = (
            distinct["D-CFG 4"] < distinct["D-CFG 1"]
        )
        best[kind] = max(qed.values(), key=lambda e: e.value)
    checks["uniform is steered further"] = above(difference(best["uniform"], best["masked"]))
    return Finding(measured, checks, nfe=2 * STEPS)


ASKED = (0, 2, 5)
EACH = 100
RING_GUIDES = {"D-CFG 1": "cfg(1)", "D-CFG 3": "cfg(3)"}


@claim(
    "qm9-rings",
    ids=("S129",),
    claim="The number of rings of QM9 molecules follows what is asked for, more so under guidance.",
    setting=f"qm9-masked and qm9-uniform, asked for 0, 2 and 5 rings, {EACH} molecules in {STEPS} "
    "steps each, and as many of the unconditional model; shares of the valid molecules, with "
    "repetitions",
    expected="share with the asked number at D-CFG 1 above the unconditional model's, and at "
    "D-CFG 3 not below that at 1, for each number and both models; at D-CFG 3 the mean number "
    "rises with the number asked",
    models=("qm9",),
)
def rings() -> Finding:
    """Shares of molecules with the number of rings asked for, and mean numbers."""
    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    for kind in ("masked", "uniform"):
        denoiser: Any = zoo.load(f"qm9-{kind}")
        end = denoiser.vocabulary.index("<end>")
        null = denoiser.null

        def counted(
            guide: str, asked: int, denoiser: Any = denoiser, end: int = end, null: Any = null
        ) -> torch.Tensor:
            out = sample(
                denoiser,
                {"qed": null["qed"], "rings": asked},
                guide=guide,
                steps=STEPS,
                n=EACH,
                record=False,
            )
            found = map(describe, denoiser.decode(out.x, end))
            return torch.tensor([float(m.rings) for m in found if m is not None] or [-1.0])

        free = counted("none", null["rings"])
        measured[f"{kind}, unconditional"] = {"valid": len(free), "rings": mean_interval(free)}
        means = []
        for asked in ASKED:
            base = mean_interval((free == asked).float())
            shares = {}
            for name, guide in RING_GUIDES.items():
                found = counted(guide, asked)
                shares[name] = mean_interval((found == asked).float())
                measured[f"{kind}, asked for {asked}, {name}"] = {
                    "valid": len(found),
                    "share with it": shares[name],
                    "rings": mean_interval(found),
                }
            means.append(found.mean().item())
            weak, strong = (shares[name] for name in RING_GUIDES)
            measured[f"{kind}, share with {asked}, unconditional"] = base
            checks[f"{kind}, {asked}: asked is above free"] = above(difference(weak, base))
            checks[f"{kind}, {asked}: D-CFG 3 is not below 1"] = strong.high >= weak.low
        checks[f"{kind}: mean rises with the number asked"] = means == sorted(means)
    return Finding(measured, checks, nfe=2 * STEPS)
