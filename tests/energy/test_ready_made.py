"""Every ready-made energy guides, and is to be found in the docs."""

from pathlib import Path

import pytest
import torch

import fairlead as fl

DOCS = Path(__file__).parents[2] / "docs"
TRUTH = torch.randn(1, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TRUTH = TRUTH.clamp(-1, 1)
CLASSES = torch.randn(128, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / 9


def measured(A):
    made = fl.energy.Linear(A, 0.0, noise=0.3)
    return fl.energy.Linear(A, made.measure(TRUTH)[0], noise=0.3)


ENERGIES = {
    "class": fl.energy.Classifier(lambda z: z.flatten(1) @ CLASSES, 3),
    "inpainting": measured(fl.energy.inpainting(torch.arange(8) < 4)),
    "super-resolution": measured(fl.energy.downsampling(4)),
    "deblurring": measured(fl.energy.blur(1.0)),
    "compressed sensing": measured(fl.energy.projections(20, 128).double()),
    "similarity": fl.energy.Similarity(lambda z: z.flatten(1) @ CLASSES, CLASSES[5], 5.0),
    "colour": fl.energy.Colour([0.8, -0.5], 20.0),
    "palette": fl.energy.Palette([[1.0, 0.0], [-1.0, 0.5]], 0.5, 20.0),
    "symmetry": fl.energy.Symmetry(weight=20.0),
    "smoothness": fl.energy.TotalVariation(20.0),
}


class Normal(fl.Denoiser):
    """The exact model of standard normal pictures."""

    def predict(self, x, level, condition):
        return level.alpha * x


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("make", [fl.MPGD, fl.FreeDoM, fl.ClassifierGuidance])
def test_it_is_lower_with_guidance_than_without(name, make):
    energy, d = ENERGIES[name], Normal(lambda x, t: x, fl.schedules.VP(), shape=(2, 8, 8))
    options = {"sampler": "ddim", "steps": 8, "n": 3, "dtype": torch.float64}
    plain, led = (fl.sample(d, guide=guide, **options).x for guide in ("none", make(energy, 0.02)))
    assert bool((energy(led) < energy(plain)).all()), name


def test_every_energy_is_in_the_docs():
    text = (DOCS / "energy.rst").read_text()
    api = (DOCS / "api.rst").read_text()
    for name in fl.energy.__all__:
        assert f"fairlead.energy.{name}\n" in api, f"{name} is not in docs/api.rst"
    for name in set(fl.energy.__all__) - {"Energy", "Judge", "Ensemble", "Posterior"}:
        assert f"fairlead.energy.{name}`" in text, f"{name} is not in docs/energy.rst"
