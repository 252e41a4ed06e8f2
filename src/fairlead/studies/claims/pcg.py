"""Claims of predictor-corrector guidance."""

from fairlead.exact import GaussianPair, t1_levels
from fairlead.schedules import DiscreteVP
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import equals


@claim(
    "pcg",
    ids=("S003",),
    claim="One Langevin step on the tilted density at 2w - 1 after a conditional DDIM step equals "
    "CFG at w under the SDE; more steps approach that tilted density.",
    setting="Gaussian pair N(0, 2), N(0, 1), w = 3; 1500 levels of sigma^2 from 400 to 1e-5, and "
    "the chain of 1000 linear betas, ended at its first level; end variances computed without "
    "sampling",
    expected="K = 1, 2, 5, 20 on the levels: 0.388, 0.356, 0.341, 0.335 (limit 1/3); on the chain "
    "DDPM with the variance beta 0.3880 at w = 3, 0.5838 at w = 2, and PCG within 0.5 % of it, a "
    "gap that halves where the chain is twice as fine",
)
def variance() -> Finding:
    """DDPM to its last digit; PCG on the levels to one unit of it; the gap closes in step size."""
    pair, levels = GaussianPair(), t1_levels()
    start = levels[0].sigma ** 2 + pair.variance
    counts = (1, 2, 5, 20)
    found = [
        exact.end_variance(pair, f"pcg(langevin={k})", "cfg(3.0)", levels, start, draws=k)
        for k in counts
    ]
    checks = {
        f"K = {k}": equals(v, p, 0.001)
        for k, v, p in zip(counts, found, (0.388, 0.356, 0.341, 0.335), strict=True)
    }
    chain, fine = DiscreteVP.linear(), DiscreteVP.linear(5e-5, 0.01, steps=2000)
    pairs, gaps = {}, {}
    for w, schedule, published in ((3.0, chain, 0.3880), (2.0, chain, 0.5838), (3.0, fine, None)):
        walk = schedule.grid(int(schedule.t_max))[:-1]
        begin = walk[0].alpha ** 2 * pair.variance + walk[0].sigma ** 2
        ddpm, pcg = (
            exact.end_variance(pair, sampler, f"cfg({w})", walk, begin)
            for sampler in ("ddpm(variance='large')", "pcg")
        )
        name = f"w = {w:g}, {len(walk)} steps"
        pairs[f"DDPM, PCG at {name}"] = [ddpm, pcg]
        gaps[name] = abs(ddpm - pcg)
        checks[f"PCG is DDPM at {name}"] = gaps[name] < 0.005 * ddpm
        if published is not None:
            checks[f"DDPM at {name}"] = equals(ddpm, published, 0.0001)
    ratio = gaps["w = 3, 1000 steps"] / gaps["w = 3, 2000 steps"]
    checks["the gap halves"] = 1.6 < ratio < 2.5
    measured = {"K": list(counts), "variance": found, **pairs, "gap ratio": ratio}
    return Finding(measured, checks, nfe=4499)
