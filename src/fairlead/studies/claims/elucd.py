"""Claims of guidance by off-the-shelf classifiers."""

import torch

import fairlead as fl
from fairlead.energy import Posterior
from fairlead.exact import energy_distance
from fairlead.schedules import VP
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, difference

ALPHAS = (0.99, 0.8, 0.5, 0.1)


@claim(
    "elucd",
    ids=("S025",),
    claim="A classifier of clean samples, read at the clean estimate and without the network's "
    "Jacobian, guides a conditional model.",
    setting="2-D mixture of three overlapping classes, exact conditional denoiser and exact clean "
    "classifier; the gradient at D against that of the exact noisy classifier in x at alpha = "
    "0.99, 0.8, 0.5, 0.1 over 3000 points; VP, DDPM, 100 steps, 4000 samples, scale 4 with gamma "
    "0.3, and Heun, 32 steps, with the moved sample at scale 0.02",
    expected="mean cosine above 0.9 everywhere and nearest 1 at alpha = 0.99; the exact gradient "
    "over that at D falls with alpha; both forms raise the mean p(c|x)",
)
def off_the_shelf() -> Finding:
    """Agreement of the gradients, and what guidance does to the class."""
    p = exact.three_classes()
    clean, noisy = Posterior(p, 0, noisy=False), Posterior(p, 0)
    cosines, ratios = [], []
    generator = torch.Generator().manual_seed(0)
    data = p.sample(3000, generator=generator)
    noise = torch.randn(data.shape, dtype=torch.float64, generator=generator)
    for alpha in ALPHAS:
        level = fl.schedules.Level(0.0, alpha, (1 - alpha**2) ** 0.5)
        x = (level.alpha * data + level.sigma * noise).requires_grad_()
        (full,) = torch.autograd.grad(noisy(x, level).sum(), x)
        estimate = p.x0(x.detach(), level).requires_grad_()
        (short,) = torch.autograd.grad(clean(estimate).sum(), estimate)
        cosines.append(torch.cosine_similarity(full, short).mean().item())
        ratios.append((full.norm(dim=1) / short.norm(dim=1)).median().item())
    runs = {
        "unguided": exact.sample(p, VP(), "none", 100, sampler="ddpm").x,
        "ddpm": exact.sample(p, VP(), fl.EluCD(clean, 4.0, clip=None), 100, sampler="ddpm").x,
        "edm": exact.sample(p, VP(), fl.EluCD(clean, 0.02, form="edm"), 32, sampler="heun").x,
    }
    found = {k: exact.posterior(p, x) for k, x in runs.items()}
    truth = p.sample(exact.N, 0, generator=generator)
    apart = {k: energy_distance(x, truth, resamples=50) for k, x in runs.items()}
    return Finding(
        {"cosine": cosines, "norm ratio": ratios, "p(c|x)": found, "distance to p(x|c)": apart},
        {
            "cosine": min(cosines) > 0.9,
            "cosine near 1 late": cosines[0] == max(cosines) and cosines[0] > 0.99,
            "ratio falls": ratios == sorted(ratios, reverse=True),
            "ddpm form": above(difference(found["ddpm"], found["unguided"])),
            "edm form": above(difference(found["edm"], found["unguided"])),
        },
        nfe=100,
    )
