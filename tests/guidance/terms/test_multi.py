"""Guidance over several conditions: by hand, the identities of the class, states and errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead import nulls
from fairlead.exact import LabelledMixture
from fairlead.guidance.branch import COND, NULL
from fairlead.prediction import from_x0, to_x0

scales = st.floats(-3, 8)
NAMES = ("a", "b", "c")
STATES = ("none", "a", "b", "c", "a+b", "a+c", "b+c", "all")


def values(size=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(STATES), 2, size, generator=generator, dtype=torch.float64)
    made = dict(zip(STATES, drawn, strict=True))
    return {**made, "cond": made["all"]}


terms = st.lists(
    st.tuples(scales, st.sampled_from(STATES), st.sampled_from(STATES)), min_size=0, max_size=5
)


def direct(rows, origin, v):
    out = v[origin].clone()
    for w, towards, away in rows:
        out = out + w * (v[towards] - v[away])
    return out


def test_by_hand():
    v = {"cond": torch.tensor([[4.0]]), "a": torch.tensor([[2.0]]), "none": torch.tensor([[1.0]])}
    nested = fl.Multi(["a", "b"], [[2.0, "a", "none"], [3.0, "a+b", "a"]], "none")
    assert_close(fl.combine(nested, v), torch.tensor([[9.0]]))  # 1 + 2 (2 - 1) + 3 (4 - 2)
    assert {b.name: a for b, a in nested.coefficients.items()} == {
        "none": -1.0,
        "a": -1.0,
        "cond": 3.0,
    }


@given(terms, st.sampled_from(STATES))
def test_is_the_sum_whatever_the_terms(rows, origin):
    v = values()
    guide = fl.Multi(NAMES, rows, origin)
    assert_close(fl.combine(guide, v), direct(rows, origin, v), rtol=1e-11, atol=1e-11)


@given(terms, st.sampled_from(STATES))
def test_coefficients_add_up_to_one(rows, origin):
    total = sum(fl.Multi(NAMES, rows, origin).coefficients.values())
    assert total == pytest.approx(1.0, abs=1e-12)


@given(terms, st.sampled_from(STATES), st.randoms(use_true_random=False))
def test_order_of_the_terms_does_not_matter(rows, origin, random):
    v = values()
    shuffled = list(rows)
    random.shuffle(shuffled)
    before = {k: t.clone() for k, t in v.items()}
    one, other = (fl.combine(fl.Multi(NAMES, r, origin), v) for r in (rows, shuffled))
    assert_close(one, other, rtol=1e-11, atol=1e-11)
    assert all(torch.equal(before[k], t) for k, t in v.items())


@given(terms, scales)
def test_a_term_given_twice_is_twice_its_weight(rows, w):
    twice = [*rows, (w, "a", "none"), (w, "a", "none")]
    once = [*rows, (2 * w, "a", "none")]
    v = values()
    assert_close(
        *(fl.combine(fl.Multi(NAMES, r, "none"), v) for r in (twice, once)),
        rtol=1e-11,
        atol=1e-11,
    )


@pytest.mark.parametrize("space", ["epsilon", "v_prediction", "flow_prediction"])
@given(terms, st.floats(0.1, 0.9))
def test_the_same_in_every_space(space, rows, t):
    v, level = values(), fl.schedules.RectifiedFlow().level(t)
    x = torch.ones_like(v["a"])
    guide = fl.Multi(NAMES, rows, "none")
    there = {k: from_x0(d, x, level.alpha, level.sigma, space) for k, d in v.items()}
    back = to_x0(fl.combine(guide, there), x, level.alpha, level.sigma, space)
    assert_close(back, fl.combine(guide, v), rtol=1e-8, atol=1e-8)


def test_chain_of_ones_is_conditional_and_costs_nothing():
    chain = [[1.0, "a", "none"], [1.0, "a+b", "a"], [1.0, "all", "a+b"]]
    guide = fl.Multi(NAMES, chain, "none")
    assert guide.differences == ()
    assert torch.equal(fl.combine(guide, {"cond": values()["all"]}), values()["all"])


def test_equal_weights_drop_the_state_between():
    guide = fl.Multi(NAMES[:2], [[1.1, "a", "none"], [1.1, "a+b", "a"]], "none")
    assert {b.name for b in guide.coefficients} == {"cond", "none"}
    assert guide.describe().nfe == 2


def test_weights_per_sample():
    v = values()
    guide = fl.Multi(NAMES, [[(1.0, 3.0), "a", "none"], [2.0, "all", "a"]], "none")
    out = fl.combine(guide, v)
    for i, w in enumerate((1.0, 3.0)):
        rows = [(w, "a", "none"), (2.0, "all", "a")]
        assert_close(out[i], direct(rows, "none", v)[i])
    assert fl.guide(str(guide)) == guide


def mixture(joint=((0.3, 0.2), (0.2, 0.3))):
    grid = [(i, j) for i in range(2) for j in range(2)]
    means = [[2.0 * i - 1, 2.0 * j - 1] for i, j in grid]
    labels = {"image": [i for i, _ in grid], "text": [j for _, j in grid]}
    return LabelledMixture(means, 0.25, labels, [joint[i][j] for i, j in grid])


def draw(guide, denoiser=None, n=3, **options):
    denoiser = denoiser or mixture().denoiser(fl.schedules.EDM())
    condition = {"image": [0, 1, 1][:n], "text": [1, 1, 0][:n]}
    options = {"steps": 4, "sampler": "ddim", "dtype": torch.float64, **options}
    return fl.sample(denoiser, condition, guide=guide, **options)


def test_only_states_with_a_coefficient_are_evaluated():
    chain = fl.Multi(["image", "text"], [[1.5, "image", "none"], [7.5, "all", "image"]], "none")
    assert draw(chain).nfe.tolist() == [12] * 3
    joint = fl.Multi(["image", "text"], [[2.0, "all", "none"]], "none")
    assert draw(joint).nfe.tolist() == [8] * 3
    apart = fl.Multi(["image", "text"], [[0.3, "image", "none"], [0.7, "text", "none"]], "none")
    assert draw(apart).nfe.tolist() == [8] * 3  # neither none nor all


def test_null_throughout_is_shared_with_cfg():
    joint = fl.Multi(["image", "text"], [[2.0, "all", "none"]], "none")
    both = draw(joint + fl.CFG(2.0))
    assert both.nfe.tolist() == [8] * 3
    assert_close(both.x, draw(fl.CFG(3.0)).x)


def test_absent_text_may_be_that_of_another_state():
    negative = {"text": [0, 0, 1]}
    guide = fl.Multi(["text=negative"], [[3.0, "text", "none"]], "none")
    assert_close(
        draw(guide, negative=negative).x, draw("cfg(3, against='negative')", negative=negative).x
    )
    both = fl.Multi(
        ["image", "text=negative"], [[1.5, "image", "none"], [4.0, "all", "image"]], "none"
    )
    assert {b.taken for b in both.coefficients} == {(), (("text", "negative"),)}
    assert draw(both, negative=negative).nfe.tolist() == [12] * 3


def test_values_of_other_states():
    mix = fl.Multi(["text"], [[0.25, "text=a", "text=b"]], "text=b")
    x, states = torch.zeros(1, 2), {"a": {"text": [0]}, "b": {"text": [1]}}
    d = mixture().denoiser(fl.schedules.EDM())
    out = fl.sample(d, {"image": [0], "text": [1]}, guide=mix, states=states, steps=1, x=x)
    one, other = (d(x, d.schedule.grid(1)[0], {"image": [0], "text": [j]}) for j in (0, 1))
    assert_close(out.x, 0.25 * one + 0.75 * other)


def test_other_models_are_branches():
    blurred = mixture().widen(1.0).denoiser(fl.schedules.EDM())
    guide = fl.Multi(["text"], [[0.5, "text", "weak: text"], [0.5, "text", "weak: none"]])
    assert {b.model for b in guide.coefficients} == {"", "weak"}
    assert draw(guide, models={"weak": blurred}).nfe.tolist() == [12] * 3
    with pytest.raises(ValueError, match="asks for a model 'weak'"):
        draw(guide)


class History:
    """A network that returns what it is given, and keeps it."""

    def __init__(self):
        self.seen = []

    def __call__(self, x, t, history, history_level):
        self.seen.append((history.clone(), history_level.clone()))
        return x * 0 + (history * (1 - history_level)[..., None]).sum(1)


def video(history_level=None):
    net = History()
    d = fl.Denoiser(
        net,
        fl.schedules.EDM(),
        "sample",
        null={"history": nulls.noise(history_level=1.0)},
        shape=(2,),
    )
    level = torch.zeros(2, 4) if history_level is None else history_level
    return net, d, {"history": torch.arange(16.0).reshape(2, 4, 2), "history_level": level}


def test_history_in_noise_and_in_part():
    net, d, condition = video()
    guide = fl.Multi(["history"], [[2.0, "history[1:3]", "none"], [1.0, "history@0.6", "none"]])
    run = {"steps": 2, "sampler": "ddim", "batching": "sequential"}
    fl.sample(d, condition, guide=guide, **run)
    # cond, history[1:3], none, history@0.6, in each of two steps
    assert len(net.seen) == 8
    parts = {tuple(level[0].tolist()): history for history, level in net.seen[:4]}
    noise = parts[(1.0, 1.0, 1.0, 1.0)]
    part = parts[(1.0, 0.0, 0.0, 1.0)]
    assert torch.equal(part[:, 1:3], condition["history"][:, 1:3])
    assert torch.equal(part[:, [0, 3]], noise[:, [0, 3]])
    some = next(h for level, h in parts.items() if 0.5 < level[0] < 0.7)
    assert_close(some, 0.8 * condition["history"] + 0.6 * noise)
    later = {tuple(level[0].tolist()): history for history, level in net.seen[4:]}
    assert all(torch.equal(h, later[k]) for k, h in parts.items())  # drawn once a run


def test_level_one_is_null_and_level_zero_is_clean():
    _, d, condition = video()
    run = {"steps": 2, "sampler": "ddim"}
    plain = fl.sample(d, condition, **run).x
    for state in ("history@0", "history"):
        guide = fl.Multi(["history"], [[2.0, state, "none"]], "none")
        assert torch.equal(
            fl.sample(d, condition, guide=guide, **run).x,
            fl.sample(d, condition, guide="cfg(2)", **run).x,
        )
    guide = fl.Multi(["history"], [[2.0, "history@1", "none"]])
    assert_close(fl.sample(d, condition, guide=guide, **run).x, plain)


def test_states_that_the_model_cannot_take_are_refused_before_the_first_step():
    guide = fl.Multi(["text"], [[2.0, "text@0.5", "none"]])
    with pytest.raises(ValueError, match=r"'text' with noise, which this model does not know"):
        draw(guide)
    guide = fl.Multi(["text"], [[2.0, "text[0:1]", "none"]])
    with pytest.raises(ValueError, match=r"takes frames 0:1 of 'text', but 'text' has no such"):
        draw(guide)
    with pytest.raises(ValueError, match="no condition 'sound'"):
        draw(fl.Multi(["sound"], [[2.0, "sound", "none"]], "none"))
    with pytest.raises(ValueError, match="condition state 'b'"):
        draw(fl.Multi(["text"], [[2.0, "text=b", "none"]], "none"))


def test_all_and_none_are_branches_that_others_have():
    guide = fl.Multi(["image", "text"], [[2.0, "image + text", "none"]], "all")
    assert set(guide.coefficients) - {COND}
    (other,) = set(guide.coefficients) - {COND}
    assert other.among(frozenset({"image", "text"})) == NULL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], [[1.0, "b", "none"]]), r"'b' names 'b', which is none of the conditions"),
        ((["a"], [[1.0, "a+a", "none"]]), "names 'a' twice"),
        ((["a"], [[1.0, "a b", "none"]]), "which is none of the conditions"),
        ((["a"], [[1.0, "a@2", "none"]]), r"the level of 'a' must be in \[0, 1\], got 2"),
        ((["a"], [[1.0, "a@@", "none"]]), "'a@@' is no state"),
        ((["a", "a"], []), "conditions name 'a' twice"),
        ((["all"], []), "conditions must be names"),
        (([], []), "at least one condition"),
        (("a", []), "conditions must be a list, got 'a'"),
        ((["a"], [[1.0, "a"]]), "a weight and two states"),
        ((["a"], [[float("nan"), "a", "none"]]), "weights must be finite, got nan"),
        ((["a"], [[(1.0, 2.0), "a", "none"], [(1.0, 2.0, 3.0), "a", "none"]]), "2 and for 3"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^multi: .*{message}"):
        fl.Multi(*arguments)


def test_a_weight_is_a_number():
    with pytest.raises(TypeError, match="multi: a weight must be a number, got 'x'"):
        fl.Multi(["a"], [["x", "a", "none"]])


def test_models_of_other_noise_levels_are_refused_before_the_first_step():
    def network(x, t, label):
        return 0 * x

    def made(schedule, prediction="epsilon"):
        return fl.Denoiser(network, schedule, prediction, null={"label": -1}, shape=(2,))

    guide = fl.recipes.experts(["label"], ["label", "other: label"], [1.0, 0.5])
    vp, discrete = fl.schedules.VP(), fl.schedules.DiscreteVP.scaled_linear()

    def draw(own, other):
        given = {"label": [1]}
        return fl.sample(own, given, guide=guide, models={"other": other}, steps=2)

    for own, other in (
        (vp, discrete),
        (discrete, fl.schedules.DiscreteVP.linear()),
        (vp, fl.schedules.RectifiedFlow()),
    ):
        with pytest.raises(ValueError, match="the model 'other' was trained under other noise lev"):
            draw(made(own), made(other))
    assert draw(made(vp), made(fl.schedules.VP())).x.shape == (1, 2)
    # one that goes by the level itself may differ
    assert draw(made(vp), made(fl.schedules.EDM(), "edm")).x.shape == (1, 2)
