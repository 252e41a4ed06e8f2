"""The claim that guidance moves the style of a masked language model, by a judge of its own."""

from typing import Any

import torch
from torch import Tensor

from fairlead.discrete import sample
from fairlead.metrics import mean_interval
from fairlead.models import zoo
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, above, difference

SPEAKERS, EACH, STEPS = 4, 16, 24
GRAM, BUCKETS, ADDED = 4, 1 << 16, 0.1
ARMS = {"unconditional": "none", "CFG 1": "cfg(1)", "CFG 3": "cfg(3)"}


def _grams(texts: Tensor) -> Tensor:
    """The runs of four characters of each text as numbers below `BUCKETS`, `(n, L - 3)`."""
    length = texts.shape[1] - GRAM + 1
    hashed = torch.zeros(len(texts), length, dtype=torch.long)
    for i in range(GRAM):
        hashed = (hashed * 131 + texts[:, i : i + length].long() + 1) % 1_000_003
    return hashed % BUCKETS


class _Bayes:
    """Which of some speakers a text is by: naive Bayes of runs of characters, no network."""

    def __init__(self, texts: list[Tensor]) -> None:
        counts = [torch.bincount(_grams(t).flatten(), minlength=BUCKETS) + ADDED for t in texts]
        self.log_p = torch.stack([(c / c.sum()).log() for c in counts])

    def __call__(self, texts: Tensor) -> Tensor:
        """The likeliest speaker of each text, all equally likely before."""
        grams = _grams(texts)
        return torch.stack([p[grams].sum(1) for p in self.log_p], 1).argmax(1)


def _shared(texts: Tensor) -> Tensor:
    """Share of each text's runs that occur in another of the texts, `(n,)`."""
    grams = _grams(texts)
    shares = []
    for i, own in enumerate(grams):
        others = torch.cat([grams[:i], grams[i + 1 :]]).flatten()
        shares.append(torch.isin(own, others).double().mean())
    return torch.stack(shares)


@claim(
    "speakers",
    ids=("S129", "XD6"),
    claim="Guidance of a masked language model moves its style towards the speaker asked for, at "
    "a cost in diversity.",
    setting=f"shakespeare-masked, the {SPEAKERS} speakers with most text, {EACH} texts of 128 "
    f"characters each in {STEPS} steps; the judge is naive Bayes of runs of {GRAM} characters, "
    "fitted to the training text of these speakers and measured on their test text; diversity "
    "falls as the share of a text's runs that the other texts of its speaker have rises",
    expected="the judge is right on more than half of the real test windows (balanced); the "
    "speaker is recognised in more than a quarter of the texts at w = 1, and in more at w = 3 "
    "than at 1; more runs are shared at w = 3 than at 1",
    models=("shakespeare-masked",),
)
def speakers() -> Finding:
    """Recognised speakers and shared runs, by scale."""
    from fairlead.training.tokens import shakespeare

    real, held = shakespeare("train"), shakespeare("test")
    label = real.conditions["speaker"]
    count = torch.bincount(label)[:-1]  # the last is everybody else
    chosen = count.argsort(descending=True)[:SPEAKERS]
    judge = _Bayes([real.tokens[label == s] for s in chosen])
    windows = [held.tokens[held.conditions["speaker"] == s] for s in chosen]
    right = [(judge(w) == i).double().mean() for i, w in enumerate(windows)]
    accuracy = torch.stack(right).mean().item()
    measured: dict[str, Any] = {
        "speakers": [real.classes["speaker"][s] for s in chosen],
        "judge on real text, balanced": accuracy,
    }
    denoiser: Any = zoo.load("shakespeare-masked")
    asked = torch.arange(SPEAKERS).repeat_interleave(EACH)
    recognised, shared = {}, {}
    for name, guide in ARMS.items():
        told = chosen[asked] if guide != "none" else torch.tensor(denoiser.null["speaker"])
        out = sample(
            denoiser, {"speaker": told}, guide=guide, steps=STEPS, n=len(asked), record=False
        ).x
        recognised[name] = mean_interval((judge(out) == asked).double())
        shared[name] = mean_interval(torch.cat([_shared(out[asked == i]) for i in range(SPEAKERS)]))
        measured[f"recognised, {name}"] = recognised[name]
        measured[f"shared runs, {name}"] = shared[name]
        measured[f"text, {name}"] = denoiser.decode(out[:1])[0][:60]
    checks: dict[str, Check] = {
        "judge is right on real text": accuracy > 0.5,
        "recognised at w = 1": above(recognised["CFG 1"], 1 / SPEAKERS),
        "recognised more at w = 3": above(difference(recognised["CFG 3"], recognised["CFG 1"])),
        "less diverse at w = 3": above(difference(shared["CFG 3"], shared["CFG 1"])),
    }
    return Finding(measured, checks, nfe=2 * STEPS)
