"""Layout guidance against its loop written out, its neutral settings, and what it refuses."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.attention import Edit, attending
from fairlead.schedules import EDM, VP, RectifiedFlow
from fairlead.testing import tiny_denoiser

F64 = torch.float64
BOXES = fl.energy.Boxes({1: (0.0, 0.0, 0.5, 0.5), (2, 3): (0.5, 0.25, 1.0, 1.0)}, centre=0.1)
LABELS = [3, 5, 8]


def denoiser(schedule=None):
    return tiny_denoiser(schedule or VP(), dtype=F64, text=True)


def draw(guide, d=None, **options):
    options = {"sampler": "ddim", "steps": 4, "dtype": F64, **options}
    return fl.sample(d or denoiser(), {"label": LABELS}, guide=guide, **options)


def energy_of(d, x, level):
    """The energy at a sample, with the attention read by hand, and its gradient."""
    layer, kept = d.attention_layers["text.0"], []

    def keep(call):
        kept.append(call.probabilities())
        return call.attend()

    leaf = x.clone().requires_grad_()
    with torch.enable_grad(), attending([Edit(layer, 0, len(x), keep)], len(x), (8, 8)):
        d(leaf, level, {"label": torch.tensor(LABELS[: len(x)])})
    maps = kept[0].reshape(len(x), 1, 2, 4, 4, 4)
    value = BOXES({"text.0": maps})
    (g,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), g


@pytest.mark.parametrize("schedule", [VP(), EDM(), RectifiedFlow()], ids=["vp", "edm", "rf"])
def test_is_its_loop(schedule):
    """Two moves before each of the first two steps; a sample under the threshold rests."""
    d = denoiser(schedule)
    run = fl.Run(0, range(3), 4)
    levels = schedule.grid(4)
    x = levels[0].sigma * run.normal(torch.empty(3, 2, 8, 8, dtype=F64), "start")
    threshold = energy_of(d, x, levels[0])[0].mean().item()
    left, moves = torch.full((3,), float("inf"), dtype=F64), []
    for i, (s, t) in enumerate(pairwise(levels)):
        for _ in range(2 if i < 2 else 0):
            on = left > threshold
            if not on.any():
                break
            left, g = energy_of(d, x, s)
            unit = (s.alpha**2 + s.sigma**2) ** 0.5
            x = x - 3.0 * unit * s.sigma * on.double().reshape(-1, 1, 1, 1) * g
            moves.append(on)
        clean = d(x, s, {"label": torch.tensor(LABELS)})
        eps = (x - s.alpha * clean) / s.sigma
        x = t.alpha * clean + t.sigma * eps
    guide = fl.Layout(BOXES, 3.0, iterations=2, threshold=threshold, steps=2)
    out = draw(guide, d)
    assert_close(out.x, x, rtol=1e-9, atol=1e-9)
    assert out.nfe.tolist() == [4 + len(moves)] * 3
    assert (out.report.gradients, out.report.backwards) == (len(moves),) * 2
    assert not all(bool(on.all()) for on in moves), "the threshold was not put to the test"


def test_off_is_cfg_to_the_bit():
    plain = draw("cfg(3)")
    for off in (
        fl.Layout(BOXES, 0.0),
        fl.Layout(BOXES, steps=0),
        fl.Layout(BOXES, threshold=float("inf")),
    ):
        out = draw(fl.CFG(3.0) + off)
        assert torch.equal(out.x, plain.x), str(off)
        assert torch.equal(out.nfe, plain.nfe), str(off)


def test_a_finite_threshold_never_skips_the_first_step():
    out = draw(fl.Layout(BOXES, threshold=1e9))
    assert out.nfe.tolist() == [4 + 1] * 3
    assert not torch.equal(out.x, draw("none").x)


def test_later_steps_begin_with_the_energy_found_last():
    """Between the first energies and the last: the first steps move, a later one rests."""
    whole = draw(fl.Layout(BOXES, 20.0, iterations=3), steps=8)
    assert whole.nfe.tolist() == [8 + 24] * 3
    low = draw(fl.Layout(BOXES, 20.0, iterations=3, threshold=3.0), steps=8)
    assert 8 + 1 < low.nfe[0] < 8 + 24


def test_moves_lower_the_energy_at_the_same_noise():
    d = denoiser()
    seen = {}
    for guide in ("none", fl.Layout(BOXES, 20.0)):
        states = []
        draw(guide, d, steps=8, callback=lambda step, s=states: s.append((step.x, step.level)))
        x, level = states[4]
        seen[str(guide)] = energy_of(d, x, level)[0]
    (plain, led) = seen.values()
    assert bool((led < plain).all())


def test_without_the_noise_level_moves_are_as_long_as_the_gradient():
    d = denoiser()
    s, t = VP().grid(4)[:2]
    x = torch.randn(3, 2, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(0))
    x = s.sigma * x
    moved = x - 2.0 * energy_of(d, x, s)[1]
    clean = d(moved, s, {"label": torch.tensor(LABELS)})
    expected = t.alpha * clean + t.sigma * (moved - s.alpha * clean) / s.sigma
    seen = []
    guide = fl.Layout(BOXES, 2.0, iterations=1, steps=1, by_noise=False)
    draw(guide, d, x=x, callback=lambda step: seen.append(step.x))
    assert_close(seen[0], expected, rtol=1e-10, atol=1e-10)


def test_rescaled_paths_give_the_rescaled_samples():
    """EDM levels at the signal-to-noise ratios of VP ones: the same path in other units."""

    class Same(EDM):
        def grid(self, steps, spacing=None, **options):
            return [self.level(v.sigma / v.alpha) for v in VP().grid(steps)]

    first = VP().grid(4)[0]
    x = torch.randn(3, 2, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(1))
    network = tiny_denoiser(dtype=F64, text=True).network

    def of(schedule):
        """The same network, given `x` of unit variance and no time."""

        class Scaled(fl.Denoiser):
            def predict(self, x, level, condition):
                unit = (level.alpha**2 + level.sigma**2) ** 0.5
                return network(x / unit, x.new_zeros(len(x)), **condition.tensors)

        return Scaled(network, schedule, "sample", {"label": 10}, shape=(2, 8, 8))

    for by_noise in (True, False):
        guide = fl.CFG(2.0) + fl.Layout(BOXES, 3.0, iterations=2, by_noise=by_noise)
        expected = draw(guide, of(VP()), x=x).x
        found = draw(guide, of(Same()), x=x / first.alpha).x
        assert_close(found, expected, rtol=0, atol=1e-8)


def test_splitting_and_checkpointing_change_nothing():
    guide = fl.CFG(2.0) + fl.Layout(BOXES, 3.0, iterations=2, steps=2)
    plain = draw(guide)
    for options in (
        {"checkpoint": True},
        {"max_batch": 2},
        {"max_batch": 1, "checkpoint": True},
        {"batching": "sequential"},
    ):
        other = draw(guide, **options)
        assert_close(other.x, plain.x, rtol=1e-10, atol=1e-10)
        assert torch.equal(other.nfe, plain.nfe)


def test_checkpointing_calls_the_network_again():
    calls = []
    for checkpoint in (False, True):
        d, seen = denoiser(), []
        d.network.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        draw(fl.Layout(BOXES, iterations=1, steps=1), d, checkpoint=checkpoint)
        calls.append(len(seen))
    assert calls == [4 + 1, 4 + 2]


def test_schedules_act_on_it_and_samplers_of_several_stages_ask_once():
    led = draw(fl.Layout(BOXES, iterations=1) | fl.Interval(0.2, 0.6))
    assert led.nfe.tolist() == [4 + 2] * 3
    assert draw(fl.Layout(BOXES, iterations=1), sampler="heun").nfe.tolist() == [7 + 4] * 3
    twice = draw(fl.Layout(BOXES, iterations=1), sampler="recurrence('ddim', times=2)")
    assert twice.nfe.tolist() == [2 * (4 + 4)] * 3


def test_prompts_with_boxes_of_their_own():
    each = [{1: (0.0, 0.0, 0.5, 0.5)}, {2: (0.5, 0.0, 1.0, 1.0)}, {3: (0.0, 0.5, 1.0, 1.0)}]
    together = draw(fl.Layout(fl.energy.Boxes(each)))
    for i, boxes in enumerate(each):
        alone = fl.sample(
            denoiser(), {"label": LABELS[i : i + 1]}, guide=fl.Layout(fl.energy.Boxes(boxes)),
            first=i, sampler="ddim", steps=4, dtype=F64,
        )  # fmt: skip
        assert_close(together.x[i : i + 1], alone.x, rtol=1e-9, atol=1e-9)


def test_another_state_can_be_read():
    options = {"states": {"negative": {"label": [1, 2, 3]}}}
    cond, other = (
        draw(fl.Layout(BOXES, branch=branch), **options).x for branch in ("cond", "negative")
    )
    assert not torch.allclose(cond, other)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda m: m["text.0"].sum(), ValueError, r"'bad' must return one number .* step 0"),
        (lambda m: len(m), ValueError, "'bad' must return one number a sample, .* 'int'"),
        (
            lambda m: m["text.0"].detach().flatten(1).sum(1),
            ValueError,
            "energy 'bad' has no gradient at step 0",
        ),
        (
            lambda m: (m["text.0"].flatten(1).sum(1) * 0 - 1).log(),
            FloatingPointError,
            "the value of energy 'bad' is NaN or infinite at step 0",
        ),
        (
            lambda m: (m["text.0"].flatten(1)[:, 0] * 0).sqrt(),
            FloatingPointError,
            "the gradient of energy 'bad' is NaN or infinite at step 0",
        ),
    ],
)
def test_bad_energies_are_named_with_the_step(function, error, message):
    bad = fl.energy.Function(function, name="bad", attention=True)
    with pytest.raises(error, match=message):
        draw(fl.Layout(bad))


def test_energies_of_the_other_kind_are_refused_by_name():
    with pytest.raises(ValueError, match=r"layout: the energy 'symmetry' judges samples"):
        draw(fl.Layout(fl.energy.Symmetry()))
    with pytest.raises(ValueError, match=r"dps: the energy 'boxes' judges attention maps.*Layout"):
        draw(fl.DPS(BOXES))
    with pytest.raises(ValueError, match=r"layout: no cross attention layer|layout: .*cross"):
        fl.sample(tiny_denoiser(), {"label": 1}, guide=fl.Layout(BOXES), steps=2)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"layout: gradients cannot be"):
        draw(fl.Layout(BOXES))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fl.Layout(BOXES, iterations=0), r"layout: iterations must be in \[1, inf\)"),
        (lambda: fl.Layout(BOXES, iterations=1.5), "layout: iterations must be a whole number"),
        (lambda: fl.Layout(BOXES, steps=0.5), "layout: steps must be a whole number"),
        (lambda: fl.Layout(BOXES, threshold=float("nan")), "layout: threshold must be in"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
