"""Networks of other code bases: the same samples as the exact model that they imitate."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import fairlead as fl
from fairlead.schedules import EDM, RectifiedFlow

DATA = fl.exact.GaussianMixture([[-1.0, 0.5], [1.0, 0.0]], 0.3, labels=[0, 1])
ONE_HOT = torch.eye(2)


def exact(x, alpha, sigma, labels):
    """The posterior mean under a label, or under none where the row is zero."""
    model, rows = DATA.denoiser(EDM()), []
    for row, a, s, hot in zip(x, alpha.flatten(), sigma.flatten(), labels, strict=True):
        label = int(hot.argmax()) if hot.any() else model.null["label"]
        a = max(float(a), 1e-9)  # where there is no signal the mean of the data is left
        rows.append(model(row[None].double() / a, float(s) / a, {"label": [label]})[0])
    return torch.stack(rows).to(x.dtype)


class KDiffusion(nn.Module):
    """The calling convention of a k-diffusion model, in half precision inside."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float16))
        self.seen = []

    def forward(self, x, sigma, label=None):
        self.seen.append((x.dtype, sigma))
        return exact(x, torch.ones_like(sigma), sigma, label)


class EDMNetwork(nn.Module):
    """The calling convention and attributes of a preconditioned EDM network."""

    def __init__(self):
        super().__init__()
        self.label_dim, self.sigma_min, self.sigma_max = 2, 0.0, float("inf")

    def forward(self, x, sigma, class_labels=None, force_fp32=False):
        sigma = sigma.to(torch.float32).reshape(-1)
        return exact(x, torch.ones_like(sigma), sigma, class_labels)


def velocity(noise_at, scale):
    def network(x, t, label):
        t = t / scale
        sigma = t if noise_at == 1 else 1 - t
        d = exact(x, 1 - sigma, sigma, label)
        eps = (x - (1 - sigma)[:, None] * d) / sigma[:, None]
        return eps - d if noise_at == 1 else d - eps

    return network


def reference(schedule):
    return DATA.denoiser(schedule)


@pytest.fixture
def ours():
    def run(denoiser, name, guide="cfg(2)", **options):
        condition = {name: ONE_HOT[[0, 1, 1]]}
        return fl.sample(denoiser, condition, guide=guide, n=3, steps=8, seed=3, **options)

    return run


def theirs(schedule, guide="cfg(2)"):
    condition = {"label": torch.tensor([0, 1, 1])}
    return fl.sample(reference(schedule), condition, guide=guide, n=3, steps=8, seed=3)


def test_k_diffusion(ours):
    network = KDiffusion()
    d = fl.adapters.from_k_diffusion(network, null={"label": torch.zeros(2)}, shape=(2,))
    assert_close(ours(d, "label").x, theirs(EDM()).x, rtol=1e-4, atol=1e-4)
    dtype, sigma = network.seen[0]
    # the wrapper scales before it casts, so it is handed x and sigma in float32
    assert dtype == torch.float32
    assert sigma.tolist() == [80.0] * 6
    assert d.device == torch.device("cpu")


def test_k_diffusion_takes_the_models_own_levels():
    model = KDiffusion()
    model.sigmas = torch.linspace(0.03, 14.6, 100)
    schedule = fl.adapters.from_k_diffusion(model).schedule
    assert (schedule.sigma_min, schedule.sigma_max) == pytest.approx((0.03, 14.6))
    schedule = fl.adapters.from_k_diffusion(model, sigma_max=10.0).schedule
    assert schedule.sigma_max == 10.0


def test_edm(ours):
    d = fl.adapters.from_edm(EDMNetwork(), shape=(2,))
    assert (d.schedule.sigma_min, d.schedule.sigma_max) == (0.002, 80.0)
    assert_close(ours(d, "class_labels").x, theirs(EDM()).x, rtol=1e-4, atol=1e-4)


def test_edm_knows_shape_levels_and_null():
    network = EDMNetwork()
    network.img_channels, network.img_resolution = 3, 8
    network.sigma_min, network.sigma_max = 0.01, 50.0
    d = fl.adapters.from_edm(network)
    assert d.shape == (3, 8, 8)
    assert (d.schedule.sigma_min, d.schedule.sigma_max) == (0.01, 50.0)
    null = d.null_condition(fl.Condition({"class_labels": ONE_HOT}))
    assert_close(null["class_labels"], torch.zeros(2, 2))


def test_edm_without_labels_has_no_null():
    network = EDMNetwork()
    network.label_dim = 0
    assert fl.adapters.from_edm(network).null == {}


def test_a_plain_module_is_no_edm_network():
    with pytest.raises(TypeError, match="no label_dim"):
        fl.adapters.from_edm(nn.Linear(2, 2))


@pytest.mark.parametrize("noise_at", [0, 1])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_flow(ours, noise_at, scale):
    d = fl.adapters.from_flow(
        velocity(noise_at, scale),
        noise_at=noise_at,
        time_scale=scale,
        null={"label": torch.zeros(2)},
        shape=(2,),
    )
    assert_close(
        ours(d, "label", "cfg(2) | apg(eta=0)").x,
        theirs(RectifiedFlow(), "cfg(2) | apg(eta=0)").x,
        rtol=1e-3,
        atol=1e-3,
    )


def test_flow_shift_moves_the_grid():
    grid = fl.adapters.from_flow(velocity(0, 1.0), noise_at=0, shift=3.0).schedule.grid(2)
    assert math.isclose(grid[1].t, 0.75)


def test_flow_refuses_another_time():
    with pytest.raises(ValueError, match="noise_at must be 0 or 1, got 2"):
        fl.adapters.from_flow(velocity(0, 1.0), noise_at=2)
