"""Claim of AdaIN between attention to a text and to a style."""

import torch
from torch import Tensor

from fairlead.guidance.weight_schedules.adain import normalised
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check

SUMMED = {1.0: 0.707, 3.0: 0.316}
"""Correlation of a sum with its first part, by the deviation of the second: (1 + s^2)^(-1/2)."""


def correlation(a: Tensor, b: Tensor) -> float:
    """Over tokens, the mean of all rows, heads and channels."""
    a, b = (t - t.mean(2, keepdim=True) for t in (a, b))
    return torch.nn.functional.cosine_similarity(a, b, dim=2).mean().item()


@claim(
    "adain",
    ids=("S065",),
    claim="Adding attention to a style drowns what the text says where the style is strong; AdaIN "
    "keeps the text's layout at every strength and takes over the style's statistics.",
    setting="independent normal outputs of attention, 8 x 2 heads x 1024 tokens x 16 channels; "
    "the style has mean 1 and deviation 1 or 3; correlation over tokens with the text's output, "
    "of the sum and of AdaIN; no network, since the claim of text alignment needs a large one",
    expected="correlation 0.707, 0.316 to 0.005 of the sum; 1 to 1e-9 of AdaIN, mean and "
    "deviation over tokens those of the style to 1e-9",
)
def statistics() -> Finding:
    """Each number agrees."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(8, 2, 1024, 16, generator=generator, dtype=torch.float64)
    other = torch.randn(8, 2, 1024, 16, generator=generator, dtype=torch.float64)
    measured: dict[str, float] = {}
    checks: dict[str, Check] = {}
    for strength, expected in SUMMED.items():
        style = 1 + strength * other
        out = normalised(text, style)
        summed, kept = correlation(text + style, text), correlation(out, text)
        gaps = [(out.mean(2) - style.mean(2)), (out.std(2) - style.std(2))]
        gap = max(g.abs().max().item() for g in gaps)
        key = f"deviation {strength:g}"
        measured |= {f"sum, {key}": summed, f"AdaIN, {key}": kept, f"statistics, {key}": gap}
        checks[f"sum, {key}"] = abs(summed - expected) < 0.005
        checks[f"AdaIN, {key}"] = abs(kept - 1) < 1e-9
        checks[f"statistics, {key}"] = gap < 1e-9
    return Finding(measured, checks)
