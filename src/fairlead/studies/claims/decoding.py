"""Claims of guidance in models that write token by token, on laws that can be enumerated."""

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

import fairlead as fl
from fairlead import recipes
from fairlead.autoregressive import combine_heads
from fairlead.exact.tokens import GOLDEN, golden_tokens
from fairlead.guidance.algebra import Guide
from fairlead.metrics import mean_interval
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, above, agrees, below, equals
from fairlead.studies.claims.contrastive import chains, stationary

HALF = 0.0005 + 1e-9
"""Half a unit of the third digit."""


def combine(guide: Guide | str, values: Mapping[str, Tensor]) -> Tensor:
    """Guided probabilities of the next token from those of the branches."""
    logs = {name: p.log() for name, p in values.items()}
    return fl.combine(guide, logs, domain="logprob").exp()


def written(guide: Guide | str, laws: Mapping[str, Tensor]) -> Tensor:
    """The law of whole strings `(K, ..., K)` that are written left to right under a guide."""
    shape = next(iter(laws.values())).shape
    total = torch.ones((), dtype=torch.float64)
    for i in range(len(shape)):
        rows = {}
        for name, p in laws.items():
            marginal = p.sum(tuple(range(i + 1, len(shape)))) if i + 1 < len(shape) else p
            rows[name] = marginal.reshape(-1, shape[i])
            rows[name] = rows[name] / rows[name].sum(1, keepdim=True)
        total = total[..., None] * combine(guide, rows).reshape(shape[: i + 1])
    return total


def dirichlet(seed: int, alpha: float, shape: tuple[int, ...], count: int) -> Tensor:
    """Random tables, each adding up to 1, `(count, *shape)`."""
    flat = np.random.default_rng(seed).dirichlet(alpha * np.ones(math.prod(shape)), count)
    return torch.from_numpy(flat).reshape(count, *shape)


def apart(p: Tensor, q: Tensor) -> float:
    """Total variation."""
    return (p - q).abs().sum().item() / 2


@claim(
    "cfg-prompts",
    ids=("XD1", "S006"),
    claim="A language model that heeds its prompt too little comes closer to one that does when it "
    "is pushed away from the text without the prompt; too strong a push overshoots.",
    setting="20 random sets of 8 prompts with laws of strings of 3 tokens over 4 symbols "
    "(Dirichlet 0.3, mixed 98:2 with the uniform law); the model is 0.3 p(x | c) + 0.7 p(x), null "
    "is p(x); strings are written left to right, exact laws",
    expected="mean total variation to p(x | c) at w = 1.5, 2 and 3 below that at w = 1, at w = 10 "
    "above that at w = 3; mean p(c | x) rises with w; the golden tokens give .793403 at w = 2 and "
    ".904235 at w = 3 for their first string",
)
def prompts() -> Finding:
    """Enumeration of all strings."""
    scales = (1.0, 1.5, 2.0, 3.0, 10.0)
    distance, posterior = (torch.zeros(20, 8, len(scales)) for _ in range(2))
    for seed in range(20):
        laws = 0.98 * dirichlet(seed, 0.3, (4, 4, 4), 8) + 0.02 / 64
        null = laws.mean(0)
        for c, law in enumerate(laws):
            for i, w in enumerate(scales):
                p = written(f"cfg({w})", {"cond": 0.3 * law + 0.7 * null, "null": null})
                distance[seed, c, i] = apart(p, law)
                posterior[seed, c, i] = (p * law / laws.sum(0)).sum()
    far, follow = (x.mean(1) for x in (distance, posterior))  # a number a set
    checks: dict[str, Check] = {
        f"nearer at w = {w:g}": below(mean_interval(far[:, i] - far[:, 0]))
        for i, w in enumerate(scales[1:4], 1)
    }
    checks["overshoots at w = 10"] = above(mean_interval(far[:, 4] - far[:, 3]))
    checks["follows the prompt more"] = all(
        above(mean_interval(follow[:, i + 1] - follow[:, i])) for i in range(len(scales) - 1)
    )
    toy = golden_tokens().joint
    for w, expected in GOLDEN["left to right"].items():
        p = written(f"cfg({w})", {"cond": toy[0], "null": toy.mean(0)}).flatten()
        checks[f"golden tokens, w = {w:g}"] = apart(p, torch.tensor(expected)) < 2e-6
    measured = {
        "w": list(scales),
        "total variation": [mean_interval(x) for x in far.T],
        "p(c | x)": [mean_interval(x) for x in follow.T],
    }
    return Finding(measured, checks, nfe=2)


def bit(logit: Tensor) -> Tensor:
    """Probabilities of a bit from its log-odds, `(R, 2)`."""
    return torch.stack([torch.sigmoid(-logit), torch.sigmoid(logit)], -1)


@claim(
    "double",
    ids=("S112",),
    claim="Where a style speaks louder than a text, one scale on both lets the style win; pushing "
    "the text from the style as well balances them.",
    setting="a bit with log-odds t + 3 s, t, s = +-1, in the case t = -s; null is the mean over "
    "both, the style alone that over t; A = 3 and B = 1, 3, 5, 9; exact",
    expected="probability of what the text says .0025 (.003 in the entry), .087, .786, .9998, "
    "rising; below a half at B = 1 and above it at the paper's B = 5; at B = 1 as plain CFG",
)
def balance() -> Finding:
    """Closed form."""
    cond = bit(torch.tensor([1.0 - 3.0]).double())
    style = (cond + bit(torch.tensor([-1.0 - 3.0]).double())) / 2
    values = {"cond": cond, "style": style, "none": torch.full_like(cond, 0.5)}
    found = [
        combine(recipes.double(["style", "text"], 3.0, b), values)[0, 1].item()
        for b in (1.0, 3.0, 5.0, 9.0)
    ]
    plain = combine("cfg(3)", {"cond": cond, "null": values["none"]})[0, 1].item()
    published = (0.0025, 0.087, 0.786, 0.9998)
    checks: dict[str, Check] = {
        f"B = {b}": equals(x, y, HALF)
        for b, x, y in zip((1, 3, 5, 9), found, published, strict=True)
    }
    checks |= {
        "rises": all(x < y for x, y in pairwise(found)),
        "style wins at B = 1": found[0] < 0.5,
        "text wins at B = 5": found[2] > 0.5,
        "B = 1 is plain": equals(found[0], plain, 1e-12),
    }
    return Finding({"text, by B": found}, checks, nfe=3)


@claim(
    "voxinstruct",
    ids=("S042",),
    claim="Guidance nested over text and content makes both heard, each by its own scale; where "
    "they compete for one property, the scale of the content serves it only while the text's is 1.",
    setting="two independent bits with log-odds 1.5 T and S, T = S = 1, at scales 3 and 1.5; then "
    "one bit with log-odds 1.5 T + S, T and S evenly +-1, w_content = 1, 1.5, 3; a bit whose cause "
    "is hidden is the mean over it; exact",
    expected="P(b1 = T) = .9975 and P(b2 = S) = .8176; agreement with S .651, .712, .858 at "
    "w_text = 1 and .576, .568, .541 at w_text = 2",
)
def phases() -> Finding:
    """Closed form for two bits, enumeration of four cases for one."""
    zero = torch.zeros(1).double()
    first = {"cond": bit(zero + 1.5), "semantic": bit(zero), "text": bit(zero + 1.5)}
    second = {"cond": bit(zero + 1), "semantic": bit(zero + 1), "text": bit(zero)}
    both = [combine(recipes.voxinstruct(), v)[0, 1].item() for v in (first, second)]
    t = torch.tensor([1.0, 1.0, -1.0, -1.0]).double()
    s = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    values = {
        "cond": bit(1.5 * t + s),
        "semantic": (bit(1.5 + s) + bit(-1.5 + s)) / 2,
        "text": (bit(1.5 * t + 1) + bit(1.5 * t - 1)) / 2,
    }
    agreement = {}
    for w_text in (1.0, 2.0):
        for w_content in (1.0, 1.5, 3.0):
            p = combine(recipes.voxinstruct(w_text=w_text, w_content=w_content), values)
            agrees_with = torch.where(s > 0, p[:, 1], p[:, 0]).mean().item()
            agreement[f"{w_text:g}, {w_content:g}"] = agrees_with
    published = (0.651, 0.712, 0.858, 0.576, 0.568, 0.541)
    checks: dict[str, Check] = {
        "b1": equals(both[0], 0.9975, HALF / 10),
        "b2": equals(both[1], 0.8176, HALF / 10),
    } | {
        f"scales {k}": equals(x, y, HALF)
        for (k, x), y in zip(agreement.items(), published, strict=True)
    }
    return Finding({"two bits": both, "agreement with S": agreement}, checks, nfe=3)


@claim(
    "context_aware",
    ids=("XD2",),
    claim="Amplifying the difference that the context makes turns answers from what the model "
    "remembers to what the context says.",
    setting="one conflict with p_c = (.45, .5, .05) and p_u = (.08, .9, .02); then 2000 random "
    "conflicts of two answers, log-odds of the context's answer N(-1.5, .5) without the "
    "context and N(1.2, 1) more with it; greedy, a = 0, 0.5, 1",
    expected="the answer flips at w* = 1.0455, between 1.045 and 1.05; the share of answers that "
    "follow the context rises with a, and each flips where w exceeds L_u / (L_u - L_c)",
)
def conflicts() -> Finding:
    """Exact flips; shares with intervals."""
    one = {
        "cond": torch.tensor([[0.45, 0.5, 0.05]]).double(),
        "null": torch.tensor([[0.08, 0.9, 0.02]]).double(),
    }
    before, behind = (combine(f"cfg({w})", one).argmax().item() for w in (1.045, 1.05))
    odds = {name: (p[0, 0] / p[0, 1]).log().item() for name, p in one.items()}
    flip = odds["null"] / (odds["null"] - odds["cond"])
    draws = torch.Generator().manual_seed(0)
    l_u = -1.5 + 0.5 * torch.randn(2000, generator=draws, dtype=torch.float64)
    l_c = l_u + 1.2 + torch.randn(2000, generator=draws, dtype=torch.float64)
    values = {"cond": bit(l_c), "null": bit(l_u)}
    shares, exact = [], []
    for a in (0.0, 0.5, 1.0):
        follows = combine(recipes.context_aware(a), values)[:, 1] > 0.5
        shares.append(mean_interval(follows.double()))
        exact.append(bool((follows == (l_u + (1 + a) * (l_c - l_u) > 0)).all()))
    checks: dict[str, Check] = {
        "before w*": before == 1,
        "behind w*": behind == 0,
        "w*": equals(flip, 1.0455, 5e-5),
        "rises to a = 0.5": shares[1].low > shares[0].high,
        "rises to a = 1": shares[2].low > shares[1].high,
        "each at its own scale": all(exact),
    }
    return Finding({"w*": flip, "follow the context": shares}, checks, nfe=2)


@claim(
    "switti",
    ids=("S102",),
    claim="Guiding the coarse scales alone keeps what guidance does to them, gives back the "
    "variety of fine tokens, and costs one evaluation there.",
    setting="one coarse and one fine token of 4 symbols, random laws of two classes (Dirichlet 1), "
    "w = 4 on both, on the coarse token alone, on none; exact, mean over 20 draws",
    expected="p(y | coarse) .617, .617, .541, equal for the first two; entropy of the fine token "
    ".70, 1.03, 1.05; p(y | x) .811, .719, .666 (draws of the entry); null is not asked for at the "
    "fine token",
)
def pyramid() -> Finding:
    """The orders, clear of the spread between draws; numbers of other draws beside them."""
    guides = {"both": "cfg(4)", "coarse": "cfg(4) | interval(0, 0.5)", "none": "none"}
    found = {name: torch.zeros(20, 3, dtype=torch.float64) for name in guides}
    asked = []
    for seed in range(20):
        laws = dirichlet(seed, 1.0, (4, 4), 2)
        for name, guide in guides.items():
            run = fl.Run(steps=2)
            sums = torch.zeros(3, dtype=torch.float64)
            logs = {"cond": laws.sum(2).log(), "null": laws.sum(2).mean(0).expand(2, 4).log()}
            coarse = fl.combine(guide, logs, run=run, domain="logprob").exp()
            fine = {
                "cond": laws / laws.sum(2, keepdim=True),
                "null": (laws.sum(0) / laws.sum((0, 2))[:, None]).expand(2, 4, 4),
            }
            logs = {k: v.log() for k, v in fine.items()}
            p = fl.combine(guide, logs, run=run, domain="logprob").exp()
            whole = coarse[..., None] * p
            sums[0] = (coarse * laws.sum(2) / laws.sum((0, 2))).sum(-1).mean()
            sums[1] = -(whole * p.log()).sum((1, 2)).mean()
            sums[2] = (whole * laws / laws.sum(0)).sum((1, 2)).mean()
            found[name][seed] = sums
            if name == "coarse":
                asked.append([any(b.name == "null" for b in e.wanted) for e in run.report.entries])
    both, coarse_only, none = (found[k] for k in guides)
    checks: dict[str, Check] = {
        "coarse token as under both": (both - coarse_only)[:, 0].abs().max().item() < 1e-12,
        "coarse token guided": above(mean_interval((coarse_only - none)[:, 0])),
        "variety comes back": above(mean_interval((coarse_only - both)[:, 1])),
        "nearly that of no guidance": above(
            mean_interval((coarse_only - both)[:, 1] - 0.75 * (none - both)[:, 1])
        ),
        "the fine token's class is given up": below(mean_interval((coarse_only - both)[:, 2])),
        "and still above no guidance": above(mean_interval((coarse_only - none)[:, 2])),
        "null for the coarse token alone": all(a == [True, False] for a in asked),
    }
    names = ("p(y | coarse)", "entropy of the fine token", "p(y | x)")
    measured = {
        what: {k: mean_interval(v[:, i]) for k, v in found.items()} for i, what in enumerate(names)
    }
    return Finding(measured, checks, nfe=1.5)


@claim(
    "ssr_speech",
    ids=("S057",),
    claim="Random texts serve as null for a model that never saw one: the mean of their "
    "probabilities tends to the unconditional model, and pushing away from them removes what a "
    "wrong text brings, such as repetition.",
    setting="40 random conditions (Dirichlet 1) over 5 tokens, means of 1, 4, 16, 64, 256 draws, "
    "400 repeats; then 20 random chains over 8 symbols, 30 % repeats under the text and 50 % under "
    "a wrong one, whose chain is another; w = 1, 1.5, 2",
    expected="total variation to the unconditional law .31, .15, .074, .039, .018, halving each "
    "time; the mean of log-probabilities tends to another law (.033); repetition falls with w",
)
def random_texts() -> Finding:
    """Falling at each step, halves within a fifth; other draws than the entry's."""
    laws = dirichlet(0, 1.0, (5,), 40)
    mean = laws.mean(0)
    draws = torch.Generator().manual_seed(0)
    distances = []
    for count in (1, 4, 16, 64, 256):
        picked = laws[torch.randint(40, (400, count), generator=draws)].mean(1)
        distances.append(mean_interval((picked - mean).abs().sum(-1) / 2))
    logs = apart(laws.log().mean(0).softmax(-1), mean)
    rates = []
    for seed in range(20):
        _, text, _ = chains(seed)
        other, stay = chains(seed + 100)[0], torch.eye(8, dtype=torch.float64)
        wrong = 0.99 * (0.5 * other + 0.5 * stay) + 0.01 / 8
        tables = [combine(f"cfg({w})", {"cond": text, "null": wrong}) for w in (1.0, 1.5, 2.0)]
        rates.append([(stationary(t) * t.diagonal()).sum().item() for t in tables])
    falling = torch.tensor(rates)
    checks: dict[str, Check] = {
        f"halves at step {i}": abs(b.value / a.value - 0.5) < 0.1
        for i, (a, b) in enumerate(pairwise(distances), 1)
    }
    checks |= {
        "logarithms tend elsewhere": logs > 0.01,
        "repetition falls to w = 1.5": below(mean_interval(falling[:, 1] - falling[:, 0])),
        "repetition falls to w = 2": below(mean_interval(falling[:, 2] - falling[:, 1])),
    }
    measured = {
        "total variation": distances,
        "of mean logarithms": logs,
        "repetition": [mean_interval(x) for x in falling.T],
    }
    return Finding(measured, checks, nfe=2)


SIDE, MOVES = 7, ((-1, 0), (1, 0), (0, -1), (0, 1))


def grid_policies() -> tuple[Tensor, Tensor]:
    """Policies `(4, 49, 4)` of the goals, and where each move leads `(49, 4)`."""
    goals = [(0, 0), (0, SIDE - 1), (SIDE - 1, 0), (SIDE - 1, SIDE - 1)]
    policy = torch.zeros(4, SIDE**2, 4, dtype=torch.float64)
    leads = torch.zeros(SIDE**2, 4, dtype=torch.long)
    for row in range(SIDE):
        for column in range(SIDE):
            place = SIDE * row + column
            for m, (down, right) in enumerate(MOVES):
                r, c = row + down, column + right
                inside = 0 <= r < SIDE and 0 <= c < SIDE
                leads[place, m] = SIDE * r + c if inside else place
                for g, (gr, gc) in enumerate(goals):
                    nearer = abs(r - gr) + abs(c - gc) < abs(row - gr) + abs(column - gc)
                    policy[g, place, m] = float(inside and nearer)
    best = policy / policy.sum(-1, keepdim=True).clamp(min=1)
    none = policy.sum(-1, keepdim=True) == 0  # at the goal
    return 0.2 * torch.where(none, 0.25, best) + 0.8 / 4, leads


@claim(
    "steve1",
    ids=("S109",),
    claim="Guidance of the action logits makes a policy that follows its goal weakly reach it.",
    setting="7x7 grid, four goals in the corners, start in the centre, 16 moves; the policy is 0.2 "
    "optimal (even over shortest moves) and 0.8 uniform, null its mean over goals; exact",
    expected="the goal is reached with probability .06, .25, .58, .97, 1.00 at w = 0, 1, 2, 4, 7",
)
def goals() -> Finding:
    """Exact probabilities of the Markov chain."""
    policy, leads = grid_policies()
    ends = (0, SIDE - 1, SIDE * (SIDE - 1), SIDE**2 - 1)
    found = []
    for w in (0.0, 1.0, 2.0, 4.0, 7.0):
        reached = 0.0
        for g, end in enumerate(ends):
            values = {"cond": {"move": policy[g].log()}, "null": {"move": policy.mean(0).log()}}
            p = combine_heads(recipes.steve1(w - 1), values)["move"].exp()
            law = torch.zeros(SIDE**2, dtype=torch.float64)
            law[SIDE**2 // 2] = 1.0
            for _ in range(16):
                moved = torch.zeros_like(law)
                for m in range(4):
                    moved.index_add_(0, leads[:, m], torch.where(_at(end), 0.0, law * p[:, m]))
                moved[end] += law[end]
                law = moved
            reached += law[end].item() / 4
        found.append(reached)
    published = (0.06, 0.25, 0.58, 0.97, 1.0)
    checks: dict[str, Check] = {
        f"w = {w}": equals(x, y, 0.005 + 1e-9)
        for w, x, y in zip((0, 1, 2, 4, 7), found, published, strict=True)
    }
    checks["rises"] = all(x < y for x, y in pairwise(found))
    return Finding({"reached, by w": found}, checks, nfe=2)


def _at(place: int) -> Tensor:
    return torch.arange(SIDE**2) == place


@claim(
    "cfg-captions",
    ids=("S037",),
    claim="Greedy captions under guidance say more about their image and are less likely captions "
    "of it.",
    setting="six images, captions of three tokens of four symbols, random laws (Dirichlet 0.5, "
    "mixed 98:2 with the uniform law), greedy, w = 1, 2, 5, 100 draws; null is the mean of all",
    expected="mean log p(image | caption) -.609, -.527, -.503 and log p(caption | image) -2.427, "
    "-2.480, -2.563 (draws of the entry): the first rises, the second falls",
)
def captions() -> Finding:
    """Both move the right way clear of the spread; numbers agree with other draws."""
    scales = (1.0, 2.0, 5.0)
    found = torch.zeros(100, len(scales), 2, dtype=torch.float64)
    for seed in range(100):
        laws = 0.98 * dirichlet(seed, 0.5, (4, 4, 4), 6) + 0.02 / 64
        null = laws.mean(0).expand_as(laws)
        for i, w in enumerate(scales):
            here, there = laws, null
            for left in (2, 1, 0):
                dims = tuple(range(2, 2 + left))
                rows = {
                    "cond": here.sum(dims) if dims else here,
                    "null": there.sum(dims) if dims else there,
                }
                rows = {k: v / v.sum(1, keepdim=True) for k, v in rows.items()}
                best = combine(f"cfg({w})", rows).argmax(-1)
                here, there = (x[torch.arange(6), best] for x in (here, there))
            found[seed, i, 0] = (here / (6 * there)).log().mean()
            found[seed, i, 1] = here.log().mean()
    says, likely = (found[..., k] for k in (0, 1))
    checks: dict[str, Check] = {}
    for i in (0, 1):
        step = f"from w = {scales[i]:g} to {scales[i + 1]:g}"
        checks[f"says more, {step}"] = above(mean_interval(says[:, i + 1] - says[:, i]))
        checks[f"less likely, {step}"] = below(mean_interval(likely[:, i + 1] - likely[:, i]))
    for i, (one, other) in enumerate(
        zip((-0.609, -0.527, -0.503), (-2.427, -2.480, -2.563), strict=True)
    ):
        checks[f"log p(image | caption), w = {scales[i]:g}"] = agrees(
            mean_interval(says[:, i]), one, HALF
        )
        checks[f"log p(caption | image), w = {scales[i]:g}"] = agrees(
            mean_interval(likely[:, i]), other, HALF
        )
    measured = {
        "log p(image | caption)": [mean_interval(x) for x in says.T],
        "log p(caption | image)": [mean_interval(x) for x in likely.T],
    }
    return Finding(measured, checks, nfe=2)


@claim(
    "autoguidance-translation",
    ids=("S091",),
    claim="Extrapolating from the text model to the one adapted to images resolves more ambiguous "
    "words by the image and moves further from the text model where nothing is ambiguous.",
    setting="two senses, the text model prefers the wrong one by a margin U(0, 2), the adapter "
    "adds N(.8, .3) to the right one; unambiguous items: 5 tokens, the adapter adds N(0, .3) to "
    "each; greedy, w = 0, 1, 1.25, 2, 3, 20000 items",
    expected="accuracy 0, .39, .50, .75, .90; the divergence from the text model rises with w",
)
def translation() -> Finding:
    """Accuracies within sampling error, divergences clear of it."""
    scales = (0.0, 1.0, 1.25, 2.0, 3.0)
    draws = torch.Generator().manual_seed(0)
    size = 20000
    margin = 2 * torch.rand(size, generator=draws, dtype=torch.float64)
    shift = 0.8 + 0.3 * torch.randn(size, generator=draws, dtype=torch.float64)
    values = {"cond": bit(shift - margin), "text": bit(-margin)}
    clear = torch.randn(size, 5, generator=draws, dtype=torch.float64)
    moved = clear + 0.3 * torch.randn(size, 5, generator=draws, dtype=torch.float64)
    plain = {"cond": moved.softmax(-1), "text": clear.softmax(-1)}
    accuracy, divergence = [], []
    for w in scales:
        guide = f"autoguidance({w}, model='text')"
        accuracy.append(mean_interval((combine(guide, values)[:, 1] > 0.5).double()))
        p = combine(guide, plain)
        divergence.append(mean_interval((p * (p / plain["text"]).log()).sum(-1)))
    checks: dict[str, Check] = {"accuracy, w = 0": accuracy[0].value == 0.0}
    for w, x, y in zip(scales[1:], accuracy[1:], (0.39, 0.5, 0.75, 0.9), strict=True):
        checks[f"accuracy, w = {w:g}"] = agrees(x, y, 0.005)
    checks["divergence rises"] = all(a.high < b.low for a, b in pairwise(divergence))
    return Finding({"accuracy": accuracy, "divergence": divergence}, checks, nfe=2)


@claim(
    "cfg-objects",
    ids=("S011",),
    claim="Interpolating towards the prompt that lists the objects in an image makes the model "
    "name fewer objects that are not there.",
    setting="1000 images with 4 of 10 objects; the plain model is half the objects there and half "
    "a prior over all ten (Dirichlet 1, common to all images), the one with the list 0.9 and 0.1; "
    "gamma = 0, .25, .5, .7, 1",
    expected="the probability of an absent object falls with gamma, on average and for each image",
)
def objects() -> Finding:
    """At every step, on average clear of sampling error."""
    draws = torch.Generator().manual_seed(0)
    there = torch.rand(1000, 10, generator=draws).argsort(-1) < 4
    even = there.double() / 4
    prior = dirichlet(0, 1.0, (10,), 1)
    values = {"cond": 0.9 * even + 0.1 * prior, "plain": 0.5 * even + 0.5 * prior}
    absent = []
    for gamma in (0.0, 0.25, 0.5, 0.7, 1.0):
        p = combine(f"cfg({gamma}, against='plain')", values)
        absent.append((p * ~there).sum(-1))
    checks: dict[str, Check] = {
        "falls on average": all(above(mean_interval(a - b)) for a, b in pairwise(absent)),
        "falls for each image": all(bool((a > b).all()) for a, b in pairwise(absent)),
    }
    return Finding({"absent, by gamma": [mean_interval(a) for a in absent]}, checks, nfe=2)


@claim(
    "cfg-codes",
    ids=("S043", "S074"),
    claim="Guidance of each codebook of a codec model in a delay pattern makes the sound follow "
    "its text.",
    setting="20 random sets of 4 texts, two codebooks of 4 values over 2 frames (Dirichlet 0.3), "
    "the second codebook a step behind, codes of a step drawn side by side from their exact "
    "marginals; null is the mean over texts; w = 1, 2, 3; exact",
    expected="mean p(text | codes) rises with w, under the law that the unguided model writes",
)
def codes() -> Finding:
    """Enumeration of all codes, clear of the spread between sets."""
    scales = (1.0, 2.0, 3.0)
    found = torch.zeros(20, len(scales), dtype=torch.float64)
    for seed in range(20):
        laws = 0.98 * dirichlet(seed, 0.3, (4, 4, 4, 4), 4) + 0.02 / 256  # a1, b1, a2, b2
        null = laws.mean(0)
        for i, w in enumerate(scales):
            guided = torch.stack([delayed(f"cfg({w})", p, null) for p in laws])
            if w == 1:
                model = guided  # what the model writes without guidance
            posterior = model / model.sum(0)
            found[seed, i] = (guided * posterior).sum((1, 2, 3, 4)).mean()
    checks: dict[str, Check] = {
        f"rises to w = {scales[i + 1]:g}": above(mean_interval(found[:, i + 1] - found[:, i]))
        for i in (0, 1)
    }
    return Finding({"p(text | codes)": [mean_interval(x) for x in found.T]}, checks, nfe=2)


def delayed(guide: str, cond: Tensor, null: Tensor) -> Tensor:
    """The law of `(a1, b1, a2, b2)` written as a1, then a2 and b1 side by side, then b2."""

    def step(table: str) -> Tensor:
        """Guided conditionals of the last letter given those before it."""
        rows = {}
        for name, p in (("cond", cond), ("null", null)):
            marginal = torch.einsum(f"abcd->{table}", p)
            rows[name] = marginal / marginal.sum(-1, keepdim=True)
        return combine(guide, {k: v.reshape(-1, 4) for k, v in rows.items()}).reshape(
            rows["cond"].shape
        )

    first, above_, beside, last = step("a"), step("ac"), step("ab"), step("acbd")
    return torch.einsum("a,ac,ab,acbd->abcd", first, above_, beside, last)


@claim(
    "cfg-streams",
    ids=("S126",),
    claim="With the scene in both streams guidance amplifies what the text says and leaves what "
    "the scene says as it is.",
    setting="two independent bits, log-odds 1 of the text's and 1 of the scene's, w = 1, 3, 5; "
    "null with the scene, and null without it; closed form",
    expected="text sigmoid(w) with both nulls; scene sigmoid(1) with the scene in null, sigmoid(w) "
    "without",
)
def streams() -> Finding:
    """To 1e-12."""
    one, even = bit(torch.ones(1).double()), bit(torch.zeros(1).double())
    measured: dict[str, list[float]] = {"text": [], "scene, kept": [], "scene, dropped": []}
    checks: dict[str, Check] = {}
    for w in (1.0, 3.0, 5.0):
        kept = combine(f"cfg({w})", {"cond": one, "null": one})[0, 1].item()
        amplified = combine(f"cfg({w})", {"cond": one, "null": even})[0, 1].item()
        expected = 1 / (1 + math.exp(-w))
        checks[f"text, w = {w:g}"] = equals(amplified, expected, 1e-12)
        checks[f"scene, w = {w:g}"] = equals(kept, 1 / (1 + math.exp(-1)), 1e-12)
        for name, value in zip(measured, (amplified, kept, amplified), strict=True):
            measured[name].append(value)
    return Finding(measured, checks, nfe=2)
