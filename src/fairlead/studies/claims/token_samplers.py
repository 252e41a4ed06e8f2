"""Claims of the samplers of tokens, most by exact enumeration."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairlead.discrete import BayesianFlow, Dirichlet, Masked, Uniform, sample
from fairlead.exact import GOLDEN, TokenTable, golden_tokens, token_law
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, equals


def _joint(seed: int, concentration: float = 0.3) -> TokenTable:
    """Two classes of four ternary tokens, 98 parts Dirichlet and 2 uniform."""
    drawn = np.random.default_rng(seed).dirichlet(concentration * np.ones(81), 2)
    joint = torch.from_numpy(0.98 * drawn + 0.02 / 81).reshape(2, 3, 3, 3, 3)
    return TokenTable(joint, torch.tensor([0.5, 0.5]))


def _law(table: TokenTable, guide: str, sampler: str, steps: int) -> Tensor:
    """The law of clean sequences of class 0 under the masked process."""
    denoiser = table.denoiser(Masked(table.tokens, eps=0.0))
    law = token_law(denoiser, {"label": 0}, guide=guide, sampler=sampler, steps=steps)
    k, length = table.tokens, table.length
    return law.reshape(*[k + 1] * length)[(slice(0, k),) * length].flatten()


def _distance(a: Tensor, b: Tensor) -> float:
    """Total variation."""
    return float((a - b).abs().sum()) / 2


def _posterior(table: TokenTable, law: Tensor) -> float:
    """Mean probability of class 0."""
    joint = table.laws[:2] * table.prior[:, None]
    return float(law @ (joint[0] / joint.sum(0)))


@claim(
    "ancestral",
    ids=("S129", "XD7"),
    claim="Normalised tempering of the clean prediction of masked tokens is, in the limit, the "
    "average over all orders of tokenwise guidance; uniform noise is another law.",
    setting="two binary tokens in two classes, exact denoisers, a_t = 1 - t, laws enumerated",
    expected="masked, 16 steps, w = 2: .749832 .067342 .028594 .154232; extrapolated from 128 and "
    "256 steps the average of the orders at w = 2 and 3; uniform, 400 steps, w = 2: .78529 .04444 "
    ".00832 .16194",
)
def ancestral() -> Finding:
    """Three rows of the toy."""
    table = golden_tokens()
    sixteen = _law(table, "cfg(2)", "ancestral", 16)
    row = torch.tensor([0.749832, 0.067342, 0.028594, 0.154232]).double()
    measured: dict[str, Any] = {"masked, 16 steps": sixteen}
    checks: dict[str, Check] = {"masked, 16 steps": bool((sixteen - row).abs().max() < 6e-7)}
    for w in (2.0, 3.0):
        few, many = (_law(table, f"cfg({w})", "ancestral", n) for n in (128, 256))
        limit = 2 * many - few
        golden = torch.tensor(GOLDEN["masked"][w]).double()
        measured[f"masked, limit, w = {w:g}"] = limit
        checks[f"average of the orders, w = {w:g}"] = bool((limit - golden).abs().max() < 1e-6)
    denoiser = table.denoiser(Uniform(2, eps=0.0))
    uniform = token_law(denoiser, {"label": 0}, guide="cfg(2)", steps=400)
    row = torch.tensor([0.78529, 0.04444, 0.00832, 0.16194]).double()
    measured["uniform, 400 steps"] = uniform
    checks["uniform, 400 steps"] = bool((uniform - row).abs().max() < 6e-6)
    return Finding(measured, checks, nfe=32)


@claim(
    "rates",
    ids=("XD8", "XD9"),
    claim="Guided rates carry their normaliser and write tokens too fast; keeping the total rate "
    "helps where guidance is strong and steps are few.",
    setting="two binary tokens, w = 2 and 3, many steps; four ternary tokens in two classes, "
    "joints default_rng(seed).dirichlet(.3, 2) mixed 98:2 with the uniform law, Euler; laws "
    "enumerated",
    expected="raw rows of the toy; total variation to the tilt at 4 steps, w = 5, normalised and "
    "raw: .243 and .269 (seed 0), .221 and .266 (seed 1); within .006 at 32 steps and w = 2",
    seed=[0, 1],
)
def rates() -> Finding:
    """The limit of raw rates, and both forms with few and with many steps."""
    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    for w in (2.0, 3.0):
        few, many = (_law(golden_tokens(), f"cfg({w})", "rates", n) for n in (128, 256))
        limit = 2 * many - few
        golden = torch.tensor(GOLDEN["rates"][w]).double()
        measured[f"raw, limit, w = {w:g}"] = limit
        checks[f"raw row, w = {w:g}"] = bool((limit - golden).abs().max() < 1e-5)
    samplers = {
        "normalised": "rates(normalise='column', method='euler')",
        "raw": "rates(method='euler')",
    }
    for seed, numbers in ((0, (0.243, 0.269)), (1, (0.221, 0.266))):
        table = _joint(seed)
        found = {}
        for (name, sampler), number in zip(samplers.items(), numbers, strict=True):
            law = _law(table, "cfg(5)", sampler, 4)
            found[name] = _distance(law, table.tilted(5.0, 0))
            measured[f"{name}, seed {seed}, w = 5, 4 steps"] = found[name]
            checks[f"{name}, seed {seed}: {number}"] = equals(found[name], number, 0.0006)
        checks[f"normalised is closer, seed {seed}"] = found["normalised"] < found["raw"]
        gentle = {
            name: _distance(_law(table, "cfg(2)", sampler, 32), table.tilted(2.0, 0))
            for name, sampler in samplers.items()
        }
        measured[f"seed {seed}, w = 2, 32 steps"] = gentle
        gap = abs(gentle["normalised"] - gentle["raw"])
        checks[f"they agree at w = 2, seed {seed}"] = gap <= 0.006
    return Finding(measured, checks, nfe=8)


@claim(
    "vq",
    ids=("S044",),
    claim="Fewer tokens an evaluation bring the law closer to the conditional one and let guidance "
    "work.",
    setting="four ternary tokens in two classes, joint default_rng(0).dirichlet(.3, 2) mixed 98:2 "
    "with the uniform law, masks only, one step with a plan of 4 tokens; laws enumerated",
    expected="total variation to p_c at P = 4, 2, 1: .523, .235, .212, and 0 at P = 1 without the "
    "left-over clause; mean p(c|x) at P = 1, w = 1, 2, 3, 5: .678, .735, .761, .784",
)
def vq() -> Finding:
    """Total variation by P, and the class by w."""
    table = _joint(0)
    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    for per, number in ((4, 0.523), (2, 0.235), (1, 0.212)):
        gap = _distance(_law(table, "cfg(1)", f"vq(per={per})", 2), table.laws[0])
        measured[f"total variation, P = {per}"] = gap
        checks[f"P = {per}: {number}"] = equals(gap, number, 0.0006)
    alone = _law(table, "cfg(1)", "vq(per=1, leftover=False)", 2)
    measured["total variation, P = 1, no clause"] = _distance(alone, table.laws[0])
    checks["P = 1 without the clause is exact"] = _distance(alone, table.laws[0]) < 1e-9
    for w, number in ((1.0, 0.678), (2.0, 0.735), (3.0, 0.761), (5.0, 0.784)):
        value = _posterior(table, _law(table, f"cfg({w})", "vq(per=1)", 2))
        measured[f"p(c|x), P = 1, w = {w:g}"] = value
        checks[f"w = {w:g}: {number}"] = equals(value, number, 0.0006)
    return Finding(measured, checks, nfe=6)


@claim(
    "maskgit",
    ids=("XD6",),
    claim="A scale that rises over the rounds serves better than its mirror image.",
    setting="four ternary tokens in two classes, joints default_rng(seed).dirichlet(a, 2) mixed "
    "98:2 with the uniform law, a = .3 and 1, seeds 0-2, confidence at temperature 4.5, 4 rounds, "
    "mean scale 2; laws enumerated",
    expected="rising has the higher mean p(c|x) in 6 of 6, .872 against .817 for .3 and seed 0",
    seed=[0, 1, 2],
)
def maskgit() -> Finding:
    """The class under both schedules."""
    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    for concentration in (0.3, 1.0):
        for seed in range(3):
            table = _joint(seed, concentration)
            up, down = (
                _posterior(table, _law(table, f"cfg(2) | curve('{shape}')", "maskgit", 4))
                for shape in ("linear", "inverse_linear")
            )
            name = f"a = {concentration:g}, seed {seed}"
            measured[name] = {"rising": up, "falling": down}
            checks[f"rising is higher, {name}"] = up > down
            if (concentration, seed) == (0.3, 0):
                checks["rising .872"] = equals(up, 0.872, 0.003)
                checks["falling .817"] = equals(down, 0.817, 0.003)
    return Finding(measured, checks, nfe=8)


@claim(
    "best_of",
    ids=("S013",),
    claim="Keeping one of several candidates by its value steers a discrete diffusion without a "
    "gradient; the best alone collapses to one mode.",
    setting="two binary tokens, the mixture, rewards 1, 0, .5, -1 on 00, 01, 10, 11, temperature "
    ".5, 8 steps, value of the likeliest clean tokens, 20,000 samples",
    expected="total variation to the tilt for M = 1, 2, 4, 16: .371, .139, .062, .028 (within "
    ".012); with the best alone M = 4 puts .965 on 00 (within .01)",
)
def best_of() -> Finding:
    """Total variation by M, and the collapse."""
    table, n = golden_tokens(), 20_000
    denoiser = table.denoiser(Masked(2, eps=0.0))
    reward = torch.tensor([1.0, 0.0, 0.5, -1.0]).double()
    tilt = table.laws[2] * (reward / 0.5).exp()
    tilt = tilt / tilt.sum()

    def shares(m: int, lam: float) -> Tensor:
        out = sample(
            denoiser,
            {"label": 2},
            sampler=f"best_of(m={m}, lam={lam})",
            steps=8,
            n=n,
            rewards={"reward": lambda z: reward[z[:, 0] * 2 + z[:, 1]]},
            record=False,
        ).x
        return torch.bincount(out[:, 0] * 2 + out[:, 1], minlength=4).double() / n

    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    for m, number in ((1, 0.371), (2, 0.139), (4, 0.062), (16, 0.028)):
        gap = _distance(shares(m, 0.5), tilt)
        measured[f"total variation, M = {m}"] = gap
        checks[f"M = {m}: {number}"] = equals(gap, number, 0.012)
    best = shares(4, 0.0)[0].item()
    measured["share of 00, best of 4"] = best
    checks["best of 4: .965"] = equals(best, 0.965, 0.01)
    return Finding(measured, checks, nfe=8 * 5)


@claim(
    "dirichlet",
    ids=("S068",),
    claim="Guidance of a flow on the simplex combines probabilities; combining scores instead is "
    "the same map until an entry is negative.",
    setting="one token, K = 4, p_c = (.7, .1, .1, .1), p_u = (.4, .3, .2, .1), exact "
    "probabilities, al from 1 to 8, 200 Euler steps, 10,000 starts",
    expected="w = 1 .693 .102 .104 .102; w = 2 .870 .023 .035 .072 projected and .877 .021 .033 "
    ".069 not; w = 3 .930 .010 .014 .046 against .951 .004 .010 .035 (each within .012)",
)
def dirichlet() -> Finding:
    """End laws at three scales, in both forms."""
    c, u = torch.tensor([0.7, 0.1, 0.1, 0.1]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    table = TokenTable(torch.stack([c, 2 * u - c]).double(), torch.tensor([0.5, 0.5]))
    denoiser, n = table.denoiser(Dirichlet(4)), 10_000
    published = {
        (1, "linear"): (0.693, 0.102, 0.104, 0.102),
        (2, "linear"): (0.870, 0.023, 0.035, 0.072),
        (2, "score"): (0.877, 0.021, 0.033, 0.069),
        (3, "linear"): (0.930, 0.010, 0.014, 0.046),
        (3, "score"): (0.951, 0.004, 0.010, 0.035),
    }
    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    for (w, form), numbers in published.items():
        out = sample(
            denoiser,
            {"label": 0},
            guide=f"cfg({w})",
            sampler=f"dirichlet('{form}')",
            steps=200,
            n=n,
            record=False,
        ).x
        shares = torch.bincount(out[:, 0], minlength=4).double() / n
        measured[f"w = {w}, {form}"] = shares
        gap = (shares - torch.tensor(numbers).double()).abs().max().item()
        checks[f"w = {w}, {form}"] = gap <= 0.012
    return Finding(measured, checks, nfe=400)


@claim(
    "bfn",
    ids=("S033",),
    claim="Guided Bayesian flows draw the conditional law at w = 1 and sharpen beyond; taking the "
    "likeliest token in place of a draw changes the law.",
    setting="three ternary tokens, one joint of Dirichlet(.7) (seed 0) parted by an even sum of "
    "tokens, exact beliefs, 100 steps, 4000 samples",
    expected="drawn: total variation below .05 to p at w = 0 and to p_c at w = 1; with argmax "
    "above .08 at w = 0; the property in all samples at w = 1, 2, 5; entropy falls with w",
)
def bfn() -> Finding:
    """Laws at w = 0 and 1, and the entropy by w."""
    n = 4000
    flat = torch.from_numpy(np.random.default_rng(0).dirichlet(0.7 * np.ones(27)))
    even = torch.cartesian_prod(*[torch.arange(3)] * 3).sum(1) % 2 == 0
    parts = torch.stack([flat * even, flat * ~even])
    prior = parts.sum(1)
    table = TokenTable((parts / prior[:, None]).reshape(2, 3, 3, 3), prior)
    denoiser = table.denoiser(BayesianFlow(3))
    measured: dict[str, Any] = {"share of the property in p": float(prior[0])}
    checks: dict[str, Check] = {}
    entropies = []
    for receiver, w in (
        ("draw", 0), ("draw", 1), ("draw", 2), ("draw", 5), ("argmax", 0)
    ):  # fmt: skip
        out = sample(
            denoiser,
            {"label": 0},
            guide=f"cfg({w})",
            sampler=f"bfn('{receiver}')",
            steps=100,
            n=n,
            record=False,
        ).x
        index = (out * torch.tensor([9, 3, 1])).sum(1)
        shares = torch.bincount(index, minlength=27).double() / n
        name = f"{receiver}, w = {w}"
        if w in (0, 1):
            gap = _distance(shares, table.laws[0 if w else 2])
            measured[f"total variation, {name}"] = gap
            checks[name] = gap < 0.05 if receiver == "draw" else gap > 0.08
        if receiver == "draw" and w:
            held = float(shares[even].sum())
            measured[f"property, {name}"] = held
            checks[f"property, w = {w}"] = held > 0.995
            entropies.append(-float((shares[shares > 0] * shares[shares > 0].log()).sum()))
            measured[f"entropy, {name}"] = entropies[-1]
    checks["entropy falls"] = entropies == sorted(entropies, reverse=True)
    return Finding(measured, checks, nfe=202)
