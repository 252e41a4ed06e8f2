"""Claims of the guidance interval."""

from fairlead.schedules import EDM
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims import _images as images
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, agrees, below, difference

GUIDES = {
    "none": ("none", 0.801, 0.24),
    "everywhere": ("cfg(4.0)", 0.995, 0.18),
    "above 2": ("cfg(4.0) | interval(2.0, inf, unit='sigma')", 0.971, 0.20),
    "0.4 to 2": ("cfg(4.0) | interval(0.4, 2.0, unit='sigma')", 0.983, 0.23),
    "below 0.4": ("cfg(4.0) | interval(0.0, 0.4, unit='sigma')", 0.901, 0.28),
    "below 0.1": ("cfg(4.0) | interval(0.0, 0.1, unit='sigma')", 0.810, 0.25),
}


@claim(
    "interval",
    ids=("XC1",),
    claim="Guidance at high noise drops modes, at very low noise it does nothing; in the middle "
    "alone it costs less and keeps coverage at equal class accuracy.",
    setting="2-D mixture with a minority component of share 0.30 in the class, exact denoiser, "
    "sigma 80 to 0.002, rho 7, 64 DDIM steps, 4000 samples, w = 4 inside; a sample counts for the "
    "minority where that is the likeliest of all components, which is so for 0.24 of true samples; "
    "then (0.4, 2] at w = 8 against w = 4.39 everywhere",
    expected="mean p(c|x) and minority share: none 0.801, 0.24; everywhere 0.995, 0.18; above 2 "
    "0.971, 0.20; (0.4, 2] 0.983, 0.23; below 0.4 0.901, 0.28; below 0.1 0.810, 0.25; at p(c|x) "
    "0.9965: 0.202 (trace 1.084) against 0.167 (0.992)",
)
def mixture() -> Finding:
    """Numbers agree; at equal accuracy the interval keeps a clearly larger minority."""
    p = exact.overlapping()
    measured, checks = {}, {}
    nfe = 0.0
    for name, (guide, right, minority) in GUIDES.items():
        out = exact.sample(p, EDM(), guide, 64)
        found = [exact.posterior(p, out.x), exact.share(p, out.x, 1)]
        measured[name] = found
        checks[f"p(c|x) agrees, {name}"] = agrees(found[0], right, 0.0005)
        checks[f"share agrees, {name}"] = agrees(found[1], minority, 0.005)
        if name == "0.4 to 2":
            nfe = float(out.nfe[0])
    checks["fewer evaluations"] = nfe < 128
    inside = exact.sample(p, EDM(), "cfg(8.0) | interval(0.4, 2.0, unit='sigma')", 64).x
    constant = exact.sample(p, EDM(), "cfg(4.39)", 64).x
    for name, x, minority, trace in (
        ("w = 8 in (0.4, 2]", inside, 0.202, 1.084),
        ("w = 4.39 everywhere", constant, 0.167, 0.992),
    ):
        found = [exact.posterior(p, x), exact.share(p, x, 1), exact.spread(x)]
        measured[name] = found
        checks[f"p(c|x) agrees, {name}"] = agrees(found[0], 0.9965, 0.00005)
        checks[f"share agrees, {name}"] = agrees(found[1], minority, 0.0005)
        checks[f"trace agrees, {name}"] = agrees(found[2], trace, 0.0005)
    a, b = measured["w = 8 in (0.4, 2]"], measured["w = 4.39 everywhere"]
    checks["keeps more at equal accuracy"] = above(difference(a[1], b[1]))
    checks["wider at equal accuracy"] = above(difference(a[2], b[2]))
    checks["high noise drops modes"] = below(
        difference(measured["above 2"][1], measured["none"][1])
    )
    return Finding(measured, checks, nfe)


@claim(
    "interval-images",
    ids=("XC1",),
    claim="Guidance inside an interval of noise levels improves the Fréchet distance and costs "
    "less.",
    setting=f"cifar10, {images.SETTING}, w = 4 everywhere and inside "
    "(0.28, 5.42], the paper's interval for SDXL",
    expected="Fréchet distance down against guidance everywhere, 95 % interval over samples on the "
    "same noise, and fewer evaluations",
    models=("cifar10",),
)
def cifar10() -> Finding:
    """The change clear of zero, the cost lower."""
    plain = images.draw(guide="cfg(4.0)")
    inside = images.draw(guide="cfg(4.0) | interval(0.28, 5.42, unit='sigma')")
    fd = images.fd_change(inside, plain)
    return Finding(
        {
            "everywhere": plain.summary(),
            "inside": inside.summary(),
            "FD change": fd,
            "diversity change": images.diversity_change(inside, plain),
            "NFE": [plain.nfe, inside.nfe],
        },
        {"FD down": below(fd), "fewer evaluations": inside.nfe < plain.nfe},
        inside.nfe,
    )
