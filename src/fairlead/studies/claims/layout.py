"""Claims of layout guidance."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairlead as fl
from fairlead.denoiser import Denoiser
from fairlead.schedules import VP
from fairlead.studies.claims._harness import Finding, claim

SIDE, SQUARE, N = 8, 3, 64
PLACES = [(y, x) for y in range(SIDE - SQUARE + 1) for x in range(SIDE - SQUARE + 1)]
ASKED = [(y, x) for y in (0, 2, 5) for x in (0, 3, 5)]


def templates() -> Tensor:
    """Pictures of one square at each place, `(K, 1, 8, 8)`."""
    made = torch.zeros(len(PLACES), 1, SIDE, SIDE, dtype=torch.float64)
    for k, (y, x) in enumerate(PLACES):
        made[k, 0, y : y + SQUARE, x : x + SQUARE] = 1.0
    return made


class Squares(nn.Module):
    """The exact posterior mean of pictures of one square anywhere, as attention to a text.

    The text has two tokens, ground and square. The attention of a cell to the second is the
    probability that the square covers it, given `x`; the values are 0 and 1, so that the output is
    the posterior mean.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("templates", templates())
        self.core = Core()

    @property
    def attention_layers(self) -> dict[str, nn.Module]:
        """The one layer."""
        return {"text": self.core}

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """`E[x0 | x]`."""
        level = VP().level(float(t[0]) / VP().time_scale)
        flat, pictures = x.flatten(1), cast(Tensor, self.templates).flatten(1)
        distance = (flat[:, None] - level.alpha * pictures).square().sum(2)
        p = (-distance / (2 * level.sigma**2)).softmax(1)
        covered = (p @ pictures).clamp(1e-12, 1 - 1e-12)
        q = (covered.log() - (-covered).log1p())[:, None, :, None]
        k = q.new_tensor([[0.0], [1.0]]).expand(len(x), 1, 2, 1)
        made: Tensor = self.core(q, k, k).reshape(x.shape)
        return made


class Core(nn.Module):
    """Attention of one head, with logits as they are."""

    kind = "cross"

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The mean of `v` under a softmax of `q k`."""
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def drawn(guide: fl.Guide | str, seed: int) -> Tensor:
    """Samples of the toy model."""
    d = Denoiser(Squares(), VP(), "sample", shape=(1, SIDE, SIDE))
    return fl.sample(
        d, guide=guide, sampler="ddim", steps=40, n=N, seed=seed, dtype=torch.float64
    ).x


def nearest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Corner of the nearest picture of each sample, `(n, 2)`, and the distance to it."""
    distance, k = torch.cdist(x.flatten(1), templates().flatten(1)).min(1)
    return torch.tensor(PLACES, dtype=torch.float64)[k], distance


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's coefficient."""
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


@claim(
    "layout",
    ids=("S132",),
    claim="Moving the sample down an energy of cross-attention maps places an object in the box "
    "that is asked for, with a model whose prompts say nothing of places.",
    setting="exact model of 8x8 pictures of one 3x3 square at one of 36 places, written as "
    "cross-attention to the tokens ground and square; boxes at 9 places, 64 samples each; VP, 40 "
    "DDIM steps; the paper's stronger setting (scale 5, 5 moves before each of the first 10 steps, "
    "inside and outside 0.75, background 4) with its term of centres at 0.03; of squares exactly "
    "in the box, which fill more than the share the energy asks for, more than half were asked for "
    "at first, and 0.27 are",
    expected="the square follows the box: correlation of both coordinates above 0.9, and below 0.2 "
    "without the energy; squares exactly in the box over 3 times as often as without; at least "
    "95 % of the samples within 0.1 of a picture of a square",
)
def boxes() -> Finding:
    """Correlation of asked and found places, and whether samples stay samples."""
    asked, far = [], []
    found: dict[str, list[Tensor]] = {"layout": [], "plain": []}
    for i, (y, x) in enumerate(ASKED):
        box = (x / SIDE, y / SIDE, (x + SQUARE) / SIDE, (y + SQUARE) / SIDE)
        guide = fl.Layout(fl.energy.Boxes({1: box}, centre=0.03))
        place, distance = nearest(drawn(guide, i))
        found["layout"].append(place)
        found["plain"].append(nearest(drawn("none", i))[0])
        far.append(distance)
        asked.append(torch.tensor([[y, x]], dtype=torch.float64).expand(N, 2))
    wanted = torch.cat(asked)
    places = {k: torch.cat(v) for k, v in found.items()}
    follows = {k: [correlation(v[:, d], wanted[:, d]) for d in (0, 1)] for k, v in places.items()}
    exactly = {k: (v == wanted).all(1).double().mean().item() for k, v in places.items()}
    squares = (torch.cat(far) < 0.1).double().mean().item()
    return Finding(
        {"correlation, rows and columns": follows, "in the box": exactly, "are squares": squares},
        {
            "follows the box": min(follows["layout"]) > 0.9,
            "does not without": max(abs(v) for v in follows["plain"]) < 0.2,
            "in the box": exactly["layout"] > 3 * exactly["plain"],
            "samples stay samples": squares >= 0.95,
        },
        nfe=90,
    )
