"""Claims of weight schedulers."""

from fairlead.schedules import DiscreteVP
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims import _images as images
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, agrees, below, difference

SHARES = {
    "constant": 0.200,
    "linear": 0.223,
    "cosine": 0.233,
    "inverse_linear": 0.180,
    "sine": 0.174,
}
TRACES = {"constant": 0.82, "linear": 0.87, "cosine": 0.88, "inverse_linear": 0.77, "sine": 0.76}


@claim(
    "curve",
    ids=("S004",),
    claim="At equal mean and equal class accuracy, increasing scales keep more variety than a "
    "constant one, decreasing scales less.",
    setting="2-D mixture with a minority component of share 0.30 in the class, exact denoiser, "
    "scaled-linear betas, 50 DDIM steps, 4000 samples, W = 6",
    expected="minority share: constant 0.200, linear 0.223, cosine 0.233, inverse linear 0.180, "
    "sine 0.174; trace of the covariance 0.82, 0.87, 0.88, 0.77, 0.76; p(c|x) above 0.9999",
)
def mixture() -> Finding:
    """All shapes above 0.9999; the share's order to the constant clear; numbers agree."""
    p = exact.separate()
    runs = {
        shape: exact.sample(p, DiscreteVP.scaled_linear(), f"cfg(6.0) | curve('{shape}')", 50).x
        for shape in SHARES
    }
    minority = {k: exact.share(p, x, 1) for k, x in runs.items()}
    trace = {k: exact.spread(x) for k, x in runs.items()}
    right = {k: exact.posterior(p, x) for k, x in runs.items()}
    constant = minority["constant"]
    checks = {f"p(c|x), {k}": above(v, 0.9999) for k, v in right.items()}
    for k in SHARES:
        checks[f"share agrees, {k}"] = agrees(minority[k], SHARES[k], 0.0005)
        checks[f"trace agrees, {k}"] = agrees(trace[k], TRACES[k], 0.005)
    # the same noise makes constant and curve differ less than independent samples would, so
    # intervals of independent estimates are on the safe side
    for k in ("linear", "cosine"):
        checks[f"{k} keeps more"] = above(difference(minority[k], constant))
    for k in ("inverse_linear", "sine"):
        checks[f"{k} keeps less"] = below(difference(minority[k], constant))
    return Finding({"minority share": minority, "trace": trace, "p(c|x)": right}, checks, nfe=100)


@claim(
    "curve-images",
    ids=("S004",),
    claim="An increasing ramp beats a constant scale of the same mean, a decreasing one is worse.",
    setting=f"cifar10, {images.SETTING}, W = 4, no clamp",
    expected="Fréchet distance of linear below constant and of inverse linear above it, 95 % "
    "intervals over samples on the same noise; accuracy and diversity are shown",
    models=("cifar10",),
)
def cifar10() -> Finding:
    """Both changes of the distance clear of zero."""
    shapes = ("constant", "linear", "inverse_linear")
    runs = {k: images.draw(guide=guide(k)) for k in shapes}
    up = images.fd_change(runs["linear"], runs["constant"])
    down = images.fd_change(runs["inverse_linear"], runs["constant"])
    return Finding(
        {**{k: r.summary() for k, r in runs.items()}, "linear, FD": up, "inverse, FD": down},
        {"linear is better": below(up), "inverse linear is worse": above(down)},
        runs["linear"].nfe,
    )


def guide(shape: str) -> str:
    """CFG at a mean scale of 4; the constant is written as plain CFG, to share its samples."""
    return "cfg(4.0)" if shape == "constant" else f"cfg(4.0) | curve('{shape}')"
