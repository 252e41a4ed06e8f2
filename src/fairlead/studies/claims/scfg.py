"""Claim of semantic-aware CFG."""

import torch
from torch import Tensor, nn

import fairlead as fl
from fairlead.condition import Condition
from fairlead.metrics import mean_interval
from fairlead.models.layers import Attention
from fairlead.schedules import EDM, Level
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, difference

SHARE = (torch.tensor([0.95, 0.7]).double(), torch.tensor([0.5, 0.5]).double())
"""Of both objects: under the condition, and without."""

PIXELS = 32
"""Pixels of one half."""


class Planted(nn.Module):
    """Cross-attention in which the left half of 4x4 cells sees token 1 and the right token 2."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Attention("cross")
        self.attention_layers = {"text": self.core}

    def forward(self, named: Tensor) -> Tensor:
        """Attends; a null row, where `named` is false, sees all three tokens alike."""
        tokens = torch.tensor([1, 1, 2, 2]).repeat(4)
        q = 20 * torch.eye(3)[tokens] * named.reshape(-1, 1, 1, 1)
        k = torch.eye(3).expand(len(named), 1, 3, 3)
        seen: Tensor = self.core(q, k, k)
        return seen


class TwoObjects(fl.Denoiser):
    """Halves of an 8x8 image, each of one grey value that says whether its object is there.

    Along the unit vector of a half that value is normal with deviation 0.5 around 2 (there) or
    -2, independently; label 0 shifts the shares of both, label -1 is null.
    """

    def __init__(self) -> None:
        super().__init__(Planted(), EDM(), "sample", null={"label": -1}, shape=(1, 8, 8))

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The posterior mean."""
        named = condition["label"] == 0
        self.network(named.float())
        share = torch.where(named[:, None], SHARE[0], SHARE[1])
        z = coordinates(x)
        v = 0.25 + level.sigma**2
        there = torch.sigmoid(torch.logit(share) + 4 * z / v)  # odds of +2 against -2
        mean = z + level.sigma**2 / v * ((2 * there - 1) * 2 - z)
        row: Tensor = (mean / PIXELS**0.5).repeat_interleave(4, 1)
        return row[:, None, None].expand(x.shape)


def coordinates(x: Tensor) -> Tensor:
    """Both halves along their unit vectors, `(B, 2)`."""
    halves: Tensor = x.reshape(len(x), 8, 2, 4).sum((1, 3)) / PIXELS**0.5
    return halves


@claim(
    "scfg",
    ids=("S005",),
    claim="Evening out guidance over the regions of the words strengthens the object that CFG "
    "neglects.",
    setting="8x8 image of two objects, exact denoiser, planted attention; conditional shares 0.95 "
    "and 0.7, null 0.5 and 0.5; sigma 80 to 0.002, 64 DDIM steps, 2000 samples, w = 2 and 4",
    expected="share of the second object up against CFG at both w, share of the first above 0.95, "
    "95 % intervals",
)
def objects() -> Finding:
    """Both changes clear of zero, the first object kept."""
    measured, checks = {}, {}
    for w in (2.0, 4.0):
        shares = {}
        for name, guide in (("CFG", f"cfg({w})"), ("S-CFG", f"cfg({w}) | scfg(ratio=2)")):
            out = fl.sample(
                TwoObjects(),
                {"label": torch.zeros(2000, dtype=torch.long)},
                guide=guide,
                sampler="ddim",
                steps=64,
                dtype=torch.float64,
                record=False,
            )
            first, second = (coordinates(out.x) > 0).double().unbind(1)
            shares[name] = {"first": mean_interval(first), "second": mean_interval(second)}
        measured[f"w = {w:g}"] = shares
        change = difference(shares["S-CFG"]["second"], shares["CFG"]["second"])
        checks[f"second object up, w = {w:g}"] = above(change)
        checks[f"first object kept, w = {w:g}"] = above(shares["S-CFG"]["first"], 0.95)
    return Finding(measured, checks, nfe=128)
