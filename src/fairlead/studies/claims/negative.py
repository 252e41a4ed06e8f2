"""Claims of negative conditions."""

import torch

import fairlead as fl
from fairlead.exact import GaussianMixture
from fairlead.schedules import EDM
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import agrees, below, difference

FORMS = {
    "null": "cfg(2.0)",
    "replace": "cfg(2.0, against='negative')",
    # y_u + w (y_c - y_u) - w (y_n - y_u) at w = 2: coefficients 2, 1, -2 of c, null, negative
    "not": "cfg(0.0) + cfg(3.0, against='negative')",
}
PUBLISHED = {
    "null": (0.874, 0.103, 0.023),
    "replace": (0.815, 0.016, 0.169),
    "not": (0.356, 0.001, 0.643),
}


@claim(
    "negative",
    ids=("XC7",),
    claim="Samples avoid the class of the negative condition; logical NOT repels more than "
    "replacing the null, and overshoots.",
    setting="2-D mixture of three classes, exact denoiser, sigma 80 to 0.002, rho 7, 64 DDIM "
    "steps, 4000 samples, w = 2",
    expected="mean posterior of class, negative, third: null 0.874, 0.103, 0.023; replacement "
    "0.815, 0.016, 0.169; NOT 0.356, 0.001, 0.643",
)
def mixture() -> Finding:
    """The negative's share falls from form to form, and each number agrees."""
    p = GaussianMixture([[0.0, 0.0], [1.2, 0.6], [-1.0, 2.0]], [0.5, 0.5, 0.8], labels=[0, 1, 2])
    negative = {"label": torch.ones(exact.N, dtype=torch.long)}
    shares = {}
    for form, text in FORMS.items():
        x = exact.sample(p, EDM(), fl.guide(text), 64, negative=negative).x
        shares[form] = [exact.posterior(p, x, c) for c in range(3)]
    checks = {
        f"{form}, class {c}": agrees(shares[form][c], PUBLISHED[form][c], 0.0005)
        for form in FORMS
        for c in range(3)
    }
    checks["replacement avoids the negative"] = below(
        difference(shares["replace"][1], shares["null"][1])
    )
    checks["NOT avoids it more"] = below(difference(shares["not"][1], shares["replace"][1]))
    return Finding(shares, checks, nfe=128)
