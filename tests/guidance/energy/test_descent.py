"""Steps down an energy on the guided estimate, and bodies that lie in one another."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.energy import Function, Penetration
from fairlead.exact import GaussianMixture
from fairlead.samplers.base import noise_of
from fairlead.schedules import VP

DOUBLE = torch.float64
SQUARE = Function(lambda z: z.square().sum(1), name="square")
FLAT = Function(lambda z: 0 * z.sum(1), name="flat")


def drawn(*shape, key=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=DOUBLE)


def steps(guide, d, label=1, n=3, steps=5, **options):
    """The samples and clean estimates of a DDIM run, by step."""
    seen = []
    out = fl.sample(
        d, {"label": [label] * n}, guide=guide, sampler="ddim", steps=steps, dtype=DOUBLE,
        callback=seen.append, **options,
    )  # fmt: skip
    return out, seen


@pytest.fixture
def model():
    p = GaussianMixture([[-1.0, 0.0, 0.5], [1.0, 0.3, 0.0]], 0.2, labels=[0, 1])
    return p.denoiser(VP())


@pytest.mark.parametrize("w", [1.0, 3.0])
def test_the_step_is_taken_on_the_guided_estimate_and_grows(model, w):
    rule = fl.Descent(SQUARE, 0.3, decay=0.5)
    _, seen = steps(fl.CFG(w) | rule, model)
    levels = model.schedule.grid(5)
    x = levels[0].sigma * fl.Run(0, range(3)).normal(torch.empty(3, 3, dtype=DOUBLE), "start")
    for i, (s, t) in enumerate(pairwise(levels)):
        c, u = (model(x, s, {"label": [k] * 3}) for k in (1, 2))
        plain = u + w * (c - u)
        moved = plain - 0.3 * 0.5 ** (4 - i) * 2 * plain
        assert_close(seen[i].denoised, moved, rtol=1e-9, atol=1e-9)
        # the noise is what the moved estimate leaves
        x = t.alpha * moved + (t.sigma * noise_of(x, moved, s) if t.sigma else 0)
        assert_close(seen[i].x, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("guide", ["none", "cfg(3)", "cfg(3) | part(-1)"])
def test_a_constant_energy_and_size_zero_change_nothing(model, guide):
    plain, _ = steps(guide, model)
    for rule in (fl.Descent(FLAT), fl.Descent(SQUARE, 0.0), fl.Descent(SQUARE, (0.0,) * 3)):
        assert torch.equal(steps(fl.guide(guide) | rule, model)[0].x, plain.x)


def test_the_last_step_may_spare_the_first_numbers(model):
    shifts = []
    for damp in (1.0, 10.0):
        rule = fl.Descent(SQUARE, 0.2, damp=damp, keep=2)
        shifts.append(steps(fl.CFG(2.0) | rule, model)[1])
    full, spared = shifts
    for a, b in zip(full[:-1], spared[:-1], strict=True):
        assert torch.equal(a.denoised, b.denoised)
    assert torch.equal(full[-1].denoised[:, 1:], spared[-1].denoised[:, 1:])
    # D (1 - 2 s) against D (1 - 2 s / 10)
    ratio = full[-1].denoised[:, 0] / spared[-1].denoised[:, 0]
    assert_close(ratio, torch.full((3,), 0.6 / 0.96, dtype=DOUBLE), rtol=1e-9, atol=1e-9)


def test_sizes_by_sample(model):
    both, _ = steps(fl.CFG(2.0) | fl.Descent(SQUARE, (0.0, 0.1, 0.3)), model)
    for i, s in enumerate((0.0, 0.1, 0.3)):
        alone, _ = steps(fl.CFG(2.0) | fl.Descent(SQUARE, s), model, n=1, first=i)
        assert_close(both.x[i], alone.x[0], rtol=1e-9, atol=1e-9)


def test_cost(model):
    out, _ = steps(fl.CFG(2.0) | fl.Descent(SQUARE, 0.1), model)
    assert out.nfe.tolist() == [10] * 3
    assert (out.report.gradients, out.report.backwards) == (5, 0)


def test_bad_values_are_named(model):
    with pytest.raises(ValueError, match=r"descent: decay must be in \(0, 1\], got 0"):
        fl.Descent(SQUARE, decay=0.0)
    with pytest.raises(ValueError, match="descent: keep must be at least 1 where damp is not 1"):
        fl.Descent(SQUARE, damp=10.0)
    with pytest.raises(ValueError, match="descent: keep must be below 3"):
        steps(fl.CFG(2.0) | fl.Descent(SQUARE, damp=10.0, keep=3), model)
    noisy = Function(lambda z, level: z.sum(1), name="noisy", noisy=True)
    with pytest.raises(ValueError, match="descent: the energy 'noisy' judges noisy samples"):
        steps(fl.CFG(2.0) | fl.Descent(noisy), model)
    with pytest.raises(ValueError, match=r"descent: .*'missing'"):
        steps("cfg(2) | descent('missing')", model)


def discs(z, radius=0.5, count=64):
    """Two discs in the plane, by their centres."""
    angle = torch.arange(count, dtype=z.dtype) * (2 * math.pi / count)
    normals = torch.stack([angle.cos(), angle.sin()], 1).expand(len(z), count, 2)
    return (
        z[:, None, :2] + radius * normals, normals,
        z[:, None, 2:] + radius * normals, normals,
    )  # fmt: skip


def test_bodies_apart_have_no_energy_and_no_gradient():
    z = torch.tensor([[0.0, 0.0, 1.2, 0.0], [0.0, 0.0, 0.6, 0.0]], dtype=DOUBLE, requires_grad=True)
    energy = Penetration(discs)(z)
    assert energy[0] == 0
    assert energy[1] > 0
    (gradient,) = torch.autograd.grad(energy.sum(), z)
    assert torch.equal(gradient[0], torch.zeros(4, dtype=DOUBLE))
    assert gradient[1, 0] > 0 > gradient[1, 2]  # down the gradient they part
    assert_close(gradient[1, :2], -gradient[1, 2:])


def test_depth_of_two_rods_by_hand():
    """Segments [0, 1] and [z, z + 1] on a line, with ends as vertices."""
    ends, out = torch.tensor([[[0.0], [1.0]]], dtype=DOUBLE), torch.tensor([[[-1.0], [1.0]]])
    rods = Penetration(
        lambda z: (ends.expand(len(z), 2, 1), out.to(z).expand(len(z), 2, 1),
                   ends + z[:, :, None], out.to(z).expand(len(z), 2, 1)),
        rho=0.1, weight=3.0,
    )  # fmt: skip
    z = torch.tensor([[0.9], [0.8], [1.0], [1.3]], dtype=DOUBLE)
    # the end at 1 lies z < 1 deep behind the start of the other, and that start behind it
    depth = 1 - z[:, 0]
    one = depth**2 / (depth**2 + 0.1**2)
    expected = torch.where(depth > 0, 3 * 2 * one, 0.0)
    assert_close(rods(z), expected)


def test_bad_bodies_are_named():
    with pytest.raises(ValueError, match="Penetration: rho must be positive, got 0"):
        Penetration(discs, rho=0.0)
    flat = Penetration(lambda z: (z, z, z, z))
    with pytest.raises(ValueError, match=r"penetration: bodies must have vertices and normals of"):
        flat(torch.zeros(2, 4))
