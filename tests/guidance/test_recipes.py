"""Recipes over several conditions: the identities of each, by hand and on exact scores."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead import nulls, recipes
from fairlead.exact import LabelledMixture
from fairlead.guidance.recipes import IDS, RECIPES
from fairlead.methods import methods

STATES = ("none", "a", "b", "a+b", "a+c", "cond")


@pytest.fixture
def v():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(len(STATES), 2, 3, generator=generator, dtype=torch.float64)
    return dict(zip(STATES, drawn, strict=True))


def names(guide):
    return {b.name: a for b, a in guide.coefficients.items()}


def grid(same=0.25, std=0.5):
    cells = [(i, j) for i in range(2) for j in range(2)]
    labels = {"a": [i for i, _ in cells], "b": [j for _, j in cells]}
    weights = [same, 0.5 - same, 0.5 - same, same]
    return LabelledMixture([[2.0 * i - 1, 2.0 * j - 1] for i, j in cells], std**2, labels, weights)


def draw(guide, mixture=None, a=(0, 1, 1), b=(1, 1, 0), **options):
    d = (mixture or grid()).denoiser(fl.schedules.EDM())
    options = {"steps": 6, "sampler": "ddim", "dtype": torch.float64, **options}
    return fl.sample(d, {"a": list(a), "b": list(b)}, guide=guide, **options)


def test_nested_by_hand(v):
    out = fl.combine(recipes.nested(["a", "b"], [1.5, 7.5]), v)
    assert_close(out, v["none"] + 1.5 * (v["a"] - v["none"]) + 7.5 * (v["cond"] - v["a"]))
    # the image-only branch is subtracted where the text weighs more
    assert names(recipes.nested(["a", "b"], [1.5, 7.5])) == {"none": -0.5, "a": -6.0, "cond": 7.5}


def test_nested_identities(v):
    assert torch.equal(fl.combine(recipes.nested(["a", "b"], [1, 1]), v), v["cond"])
    equal = recipes.nested(["a", "b"], [3.0, 3.0])
    assert_close(fl.combine(equal, v), fl.combine(recipes.joint(["a", "b"], 3.0), v))
    assert equal.describe().nfe == 2
    without = recipes.nested(["a", "b"], [2.0, 0.0])  # the second has no effect, and is not asked
    assert_close(fl.combine(without, {k: v[k] for k in ("none", "a")}), 2 * v["a"] - v["none"])
    turned = recipes.nested(["b", "a"], [1.5, 7.5])
    apart = fl.combine(turned, v) - fl.combine(recipes.nested(["a", "b"], [1.5, 7.5]), v)
    assert apart.abs().max() > 0.1


def test_a_condition_equal_to_its_null_adds_nothing():
    # the camera that stands still: text and camera of the same static value
    for s in (0.0, 4.0):
        out = draw(recipes.nested(["a", "b"], [6.0, s]), b=(-1, -1, -1))
        assert_close(out.x, draw(recipes.joint(["a"], 6.0), b=(-1, -1, -1)).x)


def test_split_by_hand(v):
    out = fl.combine(recipes.split(["a", "b", "c"], [1, 0, 1, 1]), v)
    assert_close(out, v["none"] - v["a"] + v["cond"])
    out = fl.combine(recipes.split(["a", "b", "c"], [1, 1, 1, 3]), v)
    assert_close(out, v["cond"] + 2 * (v["cond"] - v["a+b"]))
    out = fl.combine(recipes.split(["a", "b", "c"], [1, 1, 3, 1]), v)
    assert_close(out, v["cond"] + 2 * (v["a+b"] - v["a"]))
    assert torch.equal(fl.combine(recipes.split(["a", "b", "c"], [1, 1, 1, 1]), v), v["cond"])
    with pytest.raises(ValueError, match="split: weights must begin with 1"):
        recipes.split(["a", "b"], [0.5, 1, 1])


def test_independent_by_hand():
    # DiffPoseTalk's released code accumulates in place and gives 27.7
    scalars = {k: torch.tensor([[x]]) for k, x in {"none": 0.0, "a": 1.0, "b": 10.0}.items()}
    kept = {k: t.clone() for k, t in scalars.items()}
    out = fl.combine(recipes.independent(["a", "b"], [1.15, 3.0]), scalars)
    assert_close(out, torch.tensor([[31.15]]))
    assert all(torch.equal(kept[k], t) for k, t in scalars.items())
    one = recipes.independent(["a"], [3.0])
    assert names(one) == names(recipes.joint(["a"], 3.0))


def test_independent_conditions_add_up_exactly():
    joint = draw(recipes.joint(["a", "b"], 1.0))
    assert_close(draw(recipes.independent(["a", "b"], [1.0, 1.0])).x, joint.x)
    apart = draw(recipes.independent(["a", "b"], [1.0, 1.0]), grid(0.45))
    assert (apart.x - draw("none", grid(0.45)).x).abs().max() > 0.05


def test_nested_and_independent_agree_only_without_correlation():
    nested, apart = recipes.nested(["a", "b"], [2, 3]), recipes.independent(["a", "b"], [2, 3])
    assert_close(draw(nested).x, draw(apart).x)
    assert (draw(nested, grid(0.45)).x - draw(apart, grid(0.45)).x).abs().max() > 0.05


def test_dual(v):
    out = fl.combine(recipes.dual(["a", "b"], [5, 7]), v)
    assert_close(out, v["cond"] + 5 * (v["a"] - v["none"]) + 7 * (v["b"] - v["none"]))
    assert torch.equal(fl.combine(recipes.dual(["a", "b"], [0, 0]), v), v["cond"])
    # increments w - 1 are joint CFG where the conditions are independent
    assert_close(draw(recipes.dual(["a", "b"], [2, 2])).x, draw("cfg(3)").x)
    assert draw(recipes.dual(["a", "b"], [2, 2])).nfe.tolist() == [24] * 3


def test_graph():
    states = {"one": {"b": [1, 0, 1]}, "two": {"b": [1, 0, 1]}}
    twins = draw(recipes.graph("a", "b", 7.5, [1.0, 2.5], ["one", "two"]), states=states)
    single = draw(recipes.graph("a", "b", 7.5, [3.5], ["one"]), states=states)
    assert_close(twins.x, single.x)
    assert single.nfe.tolist() == [18] * 3
    assert names(recipes.graph("a", "b", 1.0, [1.0])) == {"cond": 1.0}
    assert names(recipes.graph("a", "b", 7.5, [0.0])) == {"a": 7.5, "none": -6.5}
    with pytest.raises(ValueError, match="graph: weights must be a list"):
        recipes.graph("a", "b", 7.5, [1.0, 2.0], ["one"])


def test_control():
    assert recipes.control("a", "b", 4.0) == recipes.joint(["a"], 4.0)
    assert recipes.control("a", "b", 4.0, "guess") == recipes.joint(["a", "b"], 4.0)
    assert recipes.control("a", "b", 4.0, "nested", 2.0) == recipes.nested(["b", "a"], [2.0, 4.0])
    for mode in ("normal", "guess"):
        assert_close(draw(recipes.control("a", "b", 1.0, mode)).x, draw("none").x)
    with pytest.raises(ValueError, match=r"control: mode must be one of .*'guess'"):
        recipes.control("a", "b", 4.0, "gues")


def test_guess_scales():
    from fairlead.guidance.composition.chains import guess_scales

    assert guess_scales(12)[0] == pytest.approx(0.1)
    assert guess_scales(12, 0.5)[-1] == pytest.approx(0.5)
    assert len(guess_scales(12)) == 13
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        guess_scales(0)


def test_compose():
    states = {"one": {"b": [1, 0, 1]}, "other": {"b": [1, 0, 1]}}
    opposed = recipes.compose("b", ["one", "one"], [7.5, -7.5])
    assert_close(draw(opposed, states=states).x, draw(recipes.joint(["b"], 0.0)).x)
    twice = recipes.compose("b", ["one", "other"], [1.0, 2.0])
    assert_close(
        draw(twice, states=states).x, draw(recipes.compose("b", ["one"], [3.0]), states=states).x
    )
    assert names(recipes.compose("b", ["cond"], [3.0])) == names(recipes.joint(["b"], 3.0))
    # NOT begins at the unconditional, a negative prompt at the negative: they differ by D(B) - D(0)
    v = {"cond": torch.tensor([[1.0]]), "none": torch.tensor([[5.0]]), "b=n": torch.tensor([[3.0]])}
    v |= {"b": v["cond"], "n": v["b=n"]}
    difference = recipes.compose("b", ["cond", "n"], [2.0, -2.0])
    assert_close(fl.combine(difference, v), torch.tensor([[5.0 + 2 * (1 - 3)]]))
    assert_close(fl.combine("cfg(2, against='n')", v), torch.tensor([[3.0 + 2 * (1 - 3)]]))


def test_style_mix():
    states = {"x": {"b": [1, 1, 1]}, "y": {"b": [0, 0, 0]}}
    for gamma, b in ((1.0, 1), (0.0, 0)):
        mixed = draw(recipes.style_mix("b", "x", "y", gamma), states=states)
        assert_close(mixed.x, draw("none", b=(b,) * 3).x)
        assert mixed.nfe.tolist() == [6] * 3
    half = [draw(recipes.style_mix("b", *two, 0.5), states=states).x for two in ("xy", "yx")]
    assert_close(*half)
    strength = recipes.style_mix("b", "cond", "none", 3.0)
    assert_close(draw(strength).x, draw(recipes.joint(["b"], 3.0)).x)


def test_experts():
    blurred = {"old": grid().widen(0.3).denoiser(fl.schedules.EDM())}
    one = recipes.experts(["b"], ["b", "old: b"], [1.0, 0.0])
    assert torch.equal(draw(one, models=blurred).x, draw("none").x)
    both = recipes.experts(["b"], ["b", "old: b"], [0.5, 0.5])
    assert draw(both, models=blurred).nfe.tolist() == [12] * 3  # the base cancels
    assert draw(recipes.experts(["b"], ["b", "old: b"], [1, 1]), models=blurred).nfe[0] == 18
    twins = recipes.experts(["b"], ["b=s", "b=s"], [0.5, 1.0])
    single = recipes.experts(["b"], ["b=s"], [1.5])
    states = {"s": {"b": [1, 1, 0]}}
    assert_close(draw(twins, states=states).x, draw(single, states=states).x)
    # released code gives the second expert alone at (1, 1)
    v = {"cond": torch.tensor([[3.0]]), "old: b": torch.tensor([[5.0]]), "none": torch.ones(1, 1)}
    assert_close(
        fl.combine(recipes.experts(["b"], ["b", "old: b"], [1, 1]), v), torch.tensor([[7.0]])
    )


def test_interleaved():
    conditional = recipes.interleaved(["a", "b"], [1.0, 1.0])
    assert torch.equal(draw(conditional).x, draw("none").x)
    for eta, kept in ((1.0, "a"), (0.0, "b")):
        out = draw(recipes.interleaved(["a", "b"], [4.0, 2.0], eta), steps=8)
        w = 4.0 if kept == "a" else 2.0
        assert torch.equal(out.x, draw(recipes.joint([kept], w), steps=8).x)
    for per in ("batch", "sample"):
        out = draw(recipes.interleaved(["a", "b"], [4.0, 2.0], 0.5, per), steps=16)
        assert out.nfe.tolist() == [32] * 3
        seen = {tuple(sorted(e.provenance)) for e in out.report.entries}
        assert ("a", "cond") in seen or ("a", "b", "cond") in seen
    with pytest.raises(ValueError, match="interleaved: conditions must be two"):
        recipes.interleaved(["a", "b", "c"], [1, 2, 3])


def video(dim=2):
    def net(x, t, history, history_level, action):
        clean = (history * (1 - history_level)[..., None]).sum(1)
        return torch.tanh(clean) + action[:, None] * 0.1 + 0.3 * x

    null = {"history": nulls.noise(history_level=1.0), "action": 0.0}
    d = fl.Denoiser(net, fl.schedules.EDM(), "sample", null=null, shape=(dim,))
    history = torch.randn(2, 4, dim, generator=torch.Generator().manual_seed(0))
    return d, {"history": history, "history_level": torch.zeros(2, 4), "action": torch.ones(2)}


def roll(guide):
    d, condition = video()
    return fl.sample(d, condition, guide=guide, sampler="ddim", steps=4)


def test_history():
    vanilla = fl.Multi(["history"], [[1.5, "history", "none"]], "none")
    assert recipes.history("history", 1.5) == vanilla
    plain = roll("none").x
    for level in (0.0, 0.3, 1.0):
        assert_close(roll(recipes.history("history", 1.0, level)).x, plain)
    assert_close(roll(recipes.history("history", 3.0, 1.0)).x, plain)  # pure noise is null
    nearly = recipes.history("history", 3.0, 1e-6)
    assert_close(roll(nearly).x, roll(recipes.history("history", 3.0)).x, atol=1e-4, rtol=1e-4)
    assert roll(recipes.history("history", 3.0, 0.3)).nfe.tolist() == [12, 12]
    windows = recipes.history("history", [1.0, 0.5], windows=[(0, 2), (2, 4)])
    assert roll(windows).nfe.tolist() == [12, 12]
    both = recipes.history("history", [1.0, 1.0], windows=[(0, 4), (0, 4)])
    assert_close(roll(both).x, roll(recipes.history("history", 2.0)).x)
    dropped = recipes.history("history", 2.0, others=["action"])
    assert_close(roll(dropped).x, roll("cfg(2)").x)
    rough = recipes.history("history", 2.0, clean=0.02)
    assert {b.name for b in rough.coefficients} == {"history@0.02", "none"}
    with pytest.raises(ValueError, match="level or windows, not both"):
        recipes.history("history", [1.0], 0.5, windows=[(0, 4)])


def test_regions_of_one_condition_are_cfg():
    states = {"r": {"a": [0, 1, 1]}, "s": {"a": [0, 1, 1]}}
    masks = {"r": [1.0, 0.0], "s": [[0.0, 0.5], [1.0, 1.0], [0.0, 0.0]]}
    out = draw(recipes.regions("a", 2.0, ["r", "s"]), states=states, masks=masks)
    assert_close(out.x, draw("cfg(2)").x)
    with pytest.raises(ValueError, match="the mask 's' is missing"):
        draw(recipes.regions("a", 2.0, ["r", "s"]), states=states, masks={"r": [1.0, 0.0]})
    with pytest.raises(ValueError, match="regions: states must be a list of different names"):
        recipes.regions("a", 2.0, ["r", "r"])


def test_stepping_once_is_averaging_the_steps_of_regions():
    states = {"r": {"a": [1, 1, 1]}}
    mask = torch.tensor([1.0, 0.0], dtype=torch.float64)
    d = grid().denoiser(fl.schedules.EDM())
    condition = {"a": [0, 0, 0], "b": [1, 1, 0]}
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"steps": 1, "sampler": "ddim", "x": x, "dtype": torch.float64}
    both = fl.sample(
        d,
        condition,
        guide=recipes.regions("a", 3.0, ["r"]),
        states=states,
        masks={"r": mask},
        **options,
    ).x
    inside = fl.sample(d, {**condition, "a": [1, 1, 1]}, guide="cfg(3)", **options).x
    outside = fl.sample(d, condition, guide="cfg(3)", **options).x
    assert_close(both, mask * inside + (1 - mask) * outside)


def test_renorm_after_joint_keeps_the_length_of_the_full_branch(v):
    x = torch.ones_like(v["cond"])
    place = {"x": x, "t": 0.5, "schedule": fl.schedules.RectifiedFlow()}
    guide = recipes.joint(["a", "b"], 7.5)
    velocity = lambda y: (x - y) / 0.5  # noqa: E731
    norm = lambda y: torch.linalg.vector_norm(velocity(y), dim=1)  # noqa: E731
    plain, kept = (fl.combine(g, v, **place) for g in (guide, guide | fl.Renorm(grow=True)))
    assert_close(norm(kept), norm(v["cond"]))
    assert_close(velocity(kept) / norm(kept)[:, None], velocity(plain) / norm(plain)[:, None])


def test_recipes_stand_in_text_and_print_as_what_they_make():
    made = fl.guide("nested(['a', 'b'], [1.5, 7.5]) + pag(2) | interval(0, 0.8)")
    assert fl.guide(str(made)) == made
    assert "multi(" in str(made)
    with pytest.raises(ValueError, match=r"unknown name 'nestde'.*did you mean 'nested'"):
        fl.guide("nestde(['a'], [2])")
    with pytest.raises(ValueError, match=r"nested has no parameter 'w'"):
        fl.guide("nested(['a'], w=[2])")


@pytest.mark.parametrize("name", recipes.__all__)
def test_every_recipe_is_listed_with_its_papers(name):
    assert RECIPES[name] is getattr(recipes, name)
    assert IDS[name]
    assert "Source:" in RECIPES[name].__doc__
    assert any(row["name"] == name for row in methods())


@pytest.mark.parametrize(
    "make",
    [
        lambda: recipes.nested(["a", "b"], [1.0]),
        lambda: recipes.nested("ab", [1.0, 2.0]),
        lambda: recipes.independent(["a"], 2.0),
        lambda: recipes.dual(["a"], [1, 2]),
        lambda: recipes.compose("a", ["x"], []),
        lambda: recipes.experts(["a"], ["a"], [1, 2]),
        lambda: recipes.interleaved(["a", "b"], [1]),
    ],
)
def test_lists_of_different_lengths_are_refused(make):
    with pytest.raises(ValueError, match="weights must be a list of one for each"):
        make()


def test_null_noise_that_the_network_ignores_may_be_any():
    d, condition = video()
    x = torch.randn(2, 2, generator=torch.Generator().manual_seed(1)) * 80
    draws = [
        fl.sample(
            d,
            condition,
            guide=recipes.history("history", 2.0),
            sampler="ddim",
            steps=4,
            x=x,
            seed=seed,
        ).x
        for seed in (0, 1)
    ]
    assert torch.equal(*draws)
    hidden = fl.sample(
        d,
        {**condition, "history_level": torch.ones(2, 4)},
        guide="none",
        sampler="ddim",
        steps=4,
        x=x,
    )
    unconditional = recipes.history("history", 0.0)
    out = fl.sample(d, condition, guide=unconditional, sampler="ddim", steps=4, x=x)
    assert_close(out.x, hidden.x)  # w = 0


def test_exact_and_fast_agree_where_conditions_are_independent_alone():
    exact, fast = recipes.independent(["a", "b"], [3.0, 3.0]), recipes.joint(["a", "b"], 3.0)
    assert_close(draw(exact).x, draw(fast).x)
    assert (draw(exact, grid(0.45)).x - draw(fast, grid(0.45)).x).abs().max() > 0.05
    nothing = recipes.independent(["a", "b"], [0.0, 0.0])
    assert torch.equal(draw(nothing).x, draw(recipes.joint(["a", "b"], 0.0)).x)
    assert draw(nothing).nfe.tolist() == [6] * 3


def test_interleaved_in_expectation():
    n, eta = 20000, 0.3
    v = {"cond": 1.0, "a": 2.0, "b": -3.0}
    given = {k: torch.full((n, 1), x, dtype=torch.float64) for k, x in v.items()}
    guide = recipes.interleaved(["a", "b"], [4.0, 2.0], eta, per="sample")
    run = fl.Run(0, range(n), 10)
    run.advance()
    out = fl.combine(guide, given, run=run)
    # text is amplified against the state of the neighbours, b, and these against the text
    expected = 1.0 + eta * 3.0 * (1.0 + 3.0) + (1 - eta) * 1.0 * (1.0 - 2.0)
    error = out.std().item() / n**0.5
    assert abs(out.mean().item() - expected) < 4 * error
    assert error > 0
