"""The coin: which steps it keeps, that it is fixed by seed, and its two sides."""

import pytest
import torch

import fairlead as fl
from fairlead.testing import tiny_denoiser


def sides(guide, steps=40, seed=0, **options):
    options = {"sampler": "ddim", "steps": steps, "n": 3, "seed": seed, **options}
    return fl.sample(tiny_denoiser(), {"label": [1, 2, 3]}, guide=guide, **options)


def test_keeps_about_p_of_the_steps_and_pays_for_no_more():
    out = sides("cfg(3) | coin(0.25)", steps=200)
    kept = out.nfe[0].item() - 200
    assert 30 <= kept <= 70  # 50, standard deviation 6
    assert len(set(out.nfe.tolist())) == 1


def test_two_sides_of_one_coin_are_one_of_two_terms_at_each_step():
    out = sides("(cfg(3) | coin(0.5)) + (pag(3) | coin(0.5, tails=True))")
    assert out.nfe.tolist() == [80] * 3
    seen = {tuple(sorted(e.provenance)) for e in out.report.entries}
    assert seen == {("cond", "null"), ("cond", "pag")}


def test_a_coin_a_sample_falls_apart_and_does_not_depend_on_the_batch():
    out = sides("cfg(3) | coin(0.5, per='sample')")
    assert len(set(out.nfe.tolist())) > 1
    alone = fl.sample(
        tiny_denoiser(),
        {"label": [2]},
        guide="cfg(3) | coin(0.5, per='sample')",
        sampler="ddim",
        steps=40,
        n=1,
        first=1,
    )
    assert alone.nfe.item() == out.nfe[1]


def test_other_keys_and_seeds_fall_otherwise():
    draws = [
        [e.provenance.get("null") for e in sides(guide, seed=seed).report.entries]
        for guide, seed in (
            ("cfg(3) | coin(0.5)", 0),
            ("cfg(3) | coin(0.5)", 0),
            ("cfg(3) | coin(0.5)", 1),
            ("cfg(3) | coin(0.5, key='other')", 0),
        )
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert draws[0] != draws[3]


def test_stages_of_a_step_fall_alike():
    out = sides("cfg(3) | coin(0.5)", sampler="heun")
    by_step = {}
    for entry in out.report.entries:
        by_step.setdefault(entry.step, set()).add(tuple(sorted(entry.provenance)))
    assert all(len(s) == 1 for s in by_step.values())


def test_ends():
    assert torch.equal(sides("cfg(3) | coin(1)").x, sides("cfg(3)").x)
    assert torch.equal(sides("cfg(3) | coin(0)").x, sides("none").x)
    with pytest.raises(ValueError, match=r"coin: p must be in \[0, 1\], got 1.5"):
        fl.Coin(1.5)
    with pytest.raises(ValueError, match=r"coin: per must be one of batch, sample"):
        fl.Coin(0.5, per="step")
