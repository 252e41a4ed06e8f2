"""Claims of Perp-Neg."""

import torch

from fairlead.exact import GaussianMixture
from fairlead.schedules import EDM
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, agrees, below, difference

# mean p(c|x) by scale under CFG, naive negatives w (d - d_n), and Perp-Neg at b = -1
PUBLISHED = {
    1.0: (0.686, 0.506, 0.715),
    2.0: (0.874, 0.356, 0.891),
    4.0: (0.966, 0.013, 0.882),
}


@claim(
    "perp_neg",
    ids=("XC6",),
    claim="A negative condition that overlaps the wanted one does not cancel it if only its "
    "perpendicular part is used.",
    setting="2-D mixture of three classes, exact denoiser, sigma 80 to 0.002, rho 7, 64 DDIM "
    "steps, 4000 samples, s = w = 1, 2, 4",
    expected="mean p(c|x) of CFG, naive, Perp-Neg: w = 1 0.686, 0.506, 0.715; w = 2 0.874, 0.356, "
    "0.891; w = 4 0.966, 0.013, 0.882; p(c-|x) at w = 2 0.103, 0.001, 0.015",
)
def mixture() -> Finding:
    """Each number agrees; Perp-Neg keeps the class at w = 1 and 2 and avoids the negative."""
    p = GaussianMixture([[0.0, 0.0], [1.2, 0.6], [-1.0, 2.0]], [0.5, 0.5, 0.8], labels=[0, 1, 2])
    negative = {"label": torch.ones(exact.N, dtype=torch.long)}
    measured, checks = {}, {}
    for w, published in PUBLISHED.items():
        guides = {
            "CFG": f"cfg({w})",
            # y_u + w (y_c - y_u) - w (y_n - y_u)
            "naive": f"cfg(0.0) + cfg({w + 1}, against='negative')",
            "Perp-Neg": f"cfg({w}) + perp_neg({w})",
        }
        wanted, unwanted = {}, {}
        for (form, guide), number in zip(guides.items(), published, strict=True):
            x = exact.sample(p, EDM(), guide, 64, negative=negative).x
            wanted[form], unwanted[form] = exact.posterior(p, x), exact.posterior(p, x, 1)
            checks[f"{form}, w = {w:g}"] = agrees(wanted[form], number, 0.0005)
            if w == 2:
                known = dict(zip(guides, (0.103, 0.001, 0.015), strict=True))[form]
                checks[f"{form}, p(c-|x)"] = agrees(unwanted[form], known, 0.0005)
        measured[f"w = {w:g}"] = {"p(c|x)": wanted, "p(c-|x)": unwanted}
        checks[f"avoids the negative, w = {w:g}"] = below(
            difference(unwanted["Perp-Neg"], unwanted["CFG"])
        )
        if w <= 2:
            checks[f"keeps the class, w = {w:g}"] = above(
                difference(wanted["Perp-Neg"], wanted["CFG"])
            )
            checks[f"naive loses it, w = {w:g}"] = below(difference(wanted["naive"], wanted["CFG"]))
    return Finding(measured, checks, nfe=192)
