"""Linear measurements: values by hand, and operators that are linear."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.energy import Linear, blur, downsampling, inpainting, projections


def test_by_hand():
    A = torch.tensor([[1.0, 2.0]])
    z = torch.tensor([[1.0, 1.0]])  # residual 5 - 3 = 2, in units of the noise 4
    assert_close(Linear(A, [5.0], noise=0.5)(z), torch.tensor([8.0]))
    assert_close(Linear(A, [5.0], noise=0.5, form="norm")(z), torch.tensor([4.0]))


def test_met_measurement_pulls_nowhere_also_as_a_norm():
    z = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    Linear(torch.eye(2), [1.0, 2.0], form="norm")(z).sum().backward()
    assert_close(z.grad[0], torch.zeros(2))
    assert_close(z.grad[1], -torch.tensor([1.0, 2.0]) / 5**0.5)


def test_one_measurement_a_sample():
    e = Linear(torch.eye(1), torch.tensor([[1.0], [3.0]]))
    assert_close(e(torch.zeros(2, 1)), torch.tensor([0.5, 4.5]))


def test_operators_are_linear():
    a, b = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 3, 8, 8).double()
    mask = torch.rand(8, 8) > 0.5
    for operator in (inpainting(mask), downsampling(4), blur(1.0)):
        assert_close(operator(2 * a - b), 2 * operator(a) - operator(b))
    assert inpainting(mask)(a).shape == (2, 3 * int(mask.sum()))
    assert downsampling(4)(a).shape == (2, 3, 2, 2)
    flat = torch.full((1, 3, 8, 8), 0.7)
    assert_close(blur(1.0)(flat), flat)
    assert_close(downsampling(4)(flat), flat[..., :2, :2])


def test_blur_spreads_a_point_by_its_width():
    x = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    x[..., 16, 16] = 1
    out = blur(2.0)(x)[0, 0]
    at = torch.arange(33).double() - 16
    # taps end at three deviations, which takes 3 % of the variance
    assert_close((out.sum(0) * at**2).sum().sqrt().item(), 2.0, rtol=0.03, atol=0)


def test_projections_have_unit_rows_and_a_seed():
    assert_close(projections(3, 7).norm(dim=1), torch.ones(3))
    assert torch.equal(projections(3, 7, seed=2), projections(3, 7, seed=2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(torch.eye(2), [0.0, 0.0], noise=0.0), "noise must be positive"),
        (lambda: Linear(torch.eye(2), [0.0, float("nan")]), "y must be finite"),
        (lambda: Linear(torch.zeros(2), [0.0]), "A must be a matrix"),
        (lambda: Linear(torch.eye(2), [0.0], form="nrom"), "did you mean 'norm'"),
        (lambda: Linear(torch.eye(2), [0.0])(torch.zeros(3, 2)), r"y must be \(2,\) or \(3, 2\)"),
        (lambda: Linear(torch.eye(2), [0.0, 0.0])(torch.zeros(3, 4)), "a sample has 4 numbers"),
        (lambda: blur(0.0), "width must be positive"),
        (lambda: blur(1.0, size=4), "size must be odd"),
        (lambda: downsampling(0), "factor must be at least 1"),
        (lambda: downsampling(3)(torch.zeros(1, 1, 8, 8)), "does not divide"),
        (lambda: projections(8, 7), r"count must be in \[1, 7\]"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_pictures_by_hand():
    x = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    assert_close(fl.energy.Symmetry()(x), torch.tensor([1.0]))
    assert_close(fl.energy.Symmetry("vertical")(x), torch.tensor([4.0]))
    assert_close(fl.energy.Symmetry("both", weight=2.0)(x), torch.tensor([10.0]))
    assert_close(fl.energy.Colour([0.5])(x), torch.tensor([1.0]))
    # columns differ by 1, rows by 2
    assert_close(fl.energy.TotalVariation()(x), torch.tensor([1.5]))
    assert_close(fl.energy.TotalVariation(2.0, power=2)(x), torch.tensor([5.0]))
    with pytest.raises(ValueError, match="TotalVariation: power must be 1 or 2, got 3"):
        fl.energy.TotalVariation(power=3)
    with pytest.raises(ValueError, match="needs sides of at least 2"):
        fl.energy.TotalVariation()(x[..., :1])
    # one colour: the mean squared distance of the pixels, whatever the width
    assert_close(fl.energy.Palette([[1.0]], width=0.3)(x), torch.tensor([1.5]))
    with pytest.raises(ValueError, match=r"'symmetry': expected \(B, C, H, W\)"):
        fl.energy.Symmetry()(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"'colour': expected \(B, 3, H, W\)"):
        fl.energy.Colour([0.0, 0.0, 0.0])(x)
