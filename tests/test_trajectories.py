"""RectifID and discriminative tokens: exact identities on mixtures."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.energy import Posterior
from fairlead.exact import GaussianMixture
from fairlead.schedules import VP, RectifiedFlow
from fairlead.trajectories import discriminative_token, rectifid

MIXTURE = GaussianMixture([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]], 0.36, labels=[0, 1, 2])
D = MIXTURE.denoiser(RectifiedFlow())


def far(z):
    return (z - 1).square().sum(1) / 2


def run(**options):
    options = {"n": 5, "dtype": torch.float64, "substeps": 3, "sampler": "heun", **options}
    return rectifid(D, energy=far, **options)


def test_without_a_step_it_is_the_unguided_run_at_every_iteration():
    plain = fl.sample(D, sampler="heun", steps=12, n=5, dtype=torch.float64).x
    out = run(s=0.0, iterations=3)
    assert_close(out.x, plain, rtol=0, atol=1e-12)
    assert_close(torch.tensor(out.history), torch.tensor(out.history[:1]).expand(5))
    # 12 steps of Heun, the last of one evaluation, five times
    assert out.nfe == 5 * 23


def test_one_segment_is_gradient_descent_on_the_endpoint_with_the_flows_jacobian():
    s, levels = 0.1, RectifiedFlow().grid(6)
    start = levels[0].sigma * fl.Run(0, range(5)).normal(torch.empty(5, 2).double(), "start")

    class Plain:
        steps, memory, step = 6, {}, 0

        def __call__(self, x, level, *, gain=1.0):
            clean = MIXTURE.x0(x, level)
            return fl.prediction.Prediction(clean, clean)

        def enter(self, x, level):
            return x

    def flow(z):
        for a, b in pairwise(levels):
            z = fl.samplers.get("heun").step(Plain(), z, a, b)
        return z

    end, pushed = flow(start), 0.0
    value = end
    for _ in range(4):
        leaf = start.clone().requires_grad_()
        # the value of the displaced endpoint, the gradient of the undisplaced one
        displaced = flow(leaf) + pushed
        (g,) = torch.autograd.grad(far(displaced).sum(), leaf)
        pushed = pushed - s * g
        value = end + pushed
    out = run(segments=1, substeps=6, s=s, iterations=4, clip=None)
    assert_close(out.x, value, rtol=0, atol=1e-10)


def test_the_form_of_the_theory_does_not_add_displacements_up():
    """One segment: the endpoint and one step down the gradient at the last displaced endpoint."""
    s, start = (
        0.1,
        RectifiedFlow().grid(6)[0].sigma
        * fl.Run(0, range(5)).normal(torch.empty(5, 2).double(), "start"),
    )
    levels = RectifiedFlow().grid(6)

    def flow(z):
        for a, b in pairwise(levels):
            clean = MIXTURE.x0(z, a)
            z = z + (b.t - a.t) * (z - clean) / a.t
        return z

    end, pushed = flow(start), torch.zeros(5, 2).double()
    for _ in range(3):
        leaf = start.clone().requires_grad_()
        (g,) = torch.autograd.grad(far(flow(leaf) + pushed).sum(), leaf)
        pushed = -s * g
    options = {"segments": 1, "substeps": 6, "sampler": "euler", "clip": None}
    out = run(s=s, iterations=3, accumulate=False, **options)
    assert_close(out.x, end + pushed, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda z: z.sum(),
            ValueError,
            "energy 'bad' must return one number a sample, .* plain run",
        ),
        (lambda z: z.detach().sum(1), ValueError, "energy 'bad' has no gradient at iteration 0"),
        (
            lambda z: (z.sum(1) * 0 - 1).log(),
            FloatingPointError,
            "the value of energy 'bad' is NaN or infinite at iteration 0",
        ),
        (
            lambda z: (z[:, 0] * 0).sqrt(),
            FloatingPointError,
            "the gradient of energy 'bad' is NaN or infinite at iteration 0",
        ),
    ],
)
def test_bad_energies_are_named_with_the_iteration(function, error, message):
    with pytest.raises(error, match=message):
        rectifid(D, energy=fl.energy.Function(function, name="bad"), n=2, iterations=2)


def test_inference_mode_and_attention_are_refused():
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match=r"rectifid: gradients cannot be taken"):
            run(iterations=1)
        with pytest.raises(RuntimeError, match=r"discriminative_token: gradients cannot be"):
            learn()
    with pytest.raises(ValueError, match="the energy 'boxes' judges attention maps"):
        rectifid(D, energy=fl.energy.Boxes({0: None}))


def test_energy_falls_and_the_bound_holds_it():
    out = run(s=0.05, iterations=15)
    assert out.history[-1] < out.history[0] / 2
    guided = rectifid(
        D, {"label": torch.tensor([0, 1])}, energy=far, guide="cfg(2)", n=2, iterations=3,
        dtype=torch.float64,
    )  # fmt: skip
    assert bool(guided.x.isfinite().all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": 0}, "segments must be a whole number >= 1"),
        ({"iterations": -1}, "iterations must be a whole number >= 0"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"s": float("nan")}, "s must be finite"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(ValueError, match=f"rectifid: {message}"):
        run(**options)


def test_noisy_judges_and_names_are_refused():
    with pytest.raises(ValueError, match="'posterior' judges noisy samples"):
        rectifid(D, energy=Posterior(MIXTURE, 0))
    with pytest.raises(TypeError, match="give the energy itself"):
        rectifid(D, energy="far")


class Weights(fl.Denoiser):
    """Three classes whose condition is logits of their weights."""

    def __init__(self):
        super().__init__(
            lambda x, t, token: x, VP(), "sample", null={"token": torch.zeros(3)}, shape=(2,)
        )

    def predict(self, x, level, condition):
        each = torch.stack([MIXTURE.x0(x, level, c) for c in range(3)], 1)
        joint = MIXTURE.log_posterior(x, level) + condition["token"].to(x)
        return (joint.softmax(1)[..., None] * each).sum(1)


def learn(**options):
    judge = Posterior(MIXTURE, 1, noisy=False)
    options = {"steps": 6, "updates": 3, "patience": 9, "dtype": torch.float64, **options}
    return discriminative_token(Weights(), "token", torch.zeros(3), judge, **options)


def test_a_token_without_a_part_in_the_samples_is_not_learned():
    """At w = 0 the conditional branch drops out: the gradient is none."""
    assert_close(learn(guide="cfg(0)", rate=0.1).value, torch.zeros(3).double())
    assert_close(learn(rate=0.0, enough=1.0).value, torch.zeros(3).double())


def test_a_token_moves_towards_its_class_and_stops_when_it_is_enough():
    token = learn(guide="cfg(3)", rate=0.3, updates=12, enough=1.0)
    assert token.value.argmax() == 1
    assert max(token.accuracy) > token.accuracy[0] or token.accuracy[0] == 1.0
    assert len(learn(enough=1e-9, n=40).accuracy) == 1


def test_token_needs_a_judge_of_clean_samples():
    with pytest.raises(ValueError, match="judge must be a classifier of clean samples"):
        discriminative_token(Weights(), "token", torch.zeros(3), Posterior(MIXTURE, 1))
    with pytest.raises(ValueError, match=r"enough must be in \(0, 1\]"):
        learn(enough=0.0)
