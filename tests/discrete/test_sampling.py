"""`fl.discrete.sample`: reproducible, the same in any batch, errors that teach."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.discrete import Masked, TokenDenoiser, Uniform
from fairlead.discrete.sampler import TOKEN_SAMPLERS, get
from fairlead.discrete.unmask import halton
from fairlead.discrete.vq import truncated
from fairlead.testing.sequences import LENGTH, TOKENS, tiny_classifier, tiny_tokens

TOY = fl.exact.golden_tokens()
MASKED, UNIFORM = TOY.denoiser(Masked(2)), TOY.denoiser(Uniform(2))
SIMPLEX = {"bfn", "dirichlet", "distilled"}
OPTIONS = {"rewards": {"reward": lambda z: z.double().mean(1)}}


def draw(sampler="ancestral", **options):
    given = {"guide": "cfg(2)", "steps": 4, "n": 5, **OPTIONS, **options}
    return fl.discrete.sample(tiny_tokens(), {"label": 1}, sampler=sampler, **given)


@pytest.mark.parametrize("name", TOKEN_SAMPLERS)
def test_text_round_trips(name):
    sampler = TOKEN_SAMPLERS[name]()
    assert get(str(sampler)) == sampler
    assert sampler.ids
    assert sampler.evaluations == 1


@pytest.mark.parametrize("name", [n for n in TOKEN_SAMPLERS if n not in SIMPLEX])
def test_sample_does_not_depend_on_the_batch(name):
    whole = draw(name)
    assert whole.x.shape == (5, LENGTH)
    assert (whole.x < TOKENS).all()
    parts = [draw(name, n=k, first=i).x for i, k in ((0, 2), (2, 3))]
    assert torch.equal(whole.x, torch.cat(parts))
    assert not torch.equal(whole.x, draw(name, seed=1).x)
    assert torch.equal(whole.x, draw(name, max_batch=3).x)


def test_shares_of_what_is_drawn_are_the_law():
    out = fl.discrete.sample(MASKED, {"label": 0}, guide="cfg(2)", steps=4, n=20_000, record=False)
    shares = torch.bincount(out.x[:, 0] * 2 + out.x[:, 1], minlength=4) / 20_000
    law = fl.exact.token_law(MASKED, {"label": 0}, guide="cfg(2)", steps=4)
    expected = law.reshape(3, 3)[:2, :2].flatten().float()
    assert_close(shares, expected, rtol=0, atol=0.012)  # four standard deviations
    assert out.nfe.tolist()[:1] == [8]


def test_prompt_stays():
    z = torch.tensor([3, TOKENS, TOKENS, 1, TOKENS, TOKENS])
    for sampler in ("ancestral", "unmask", "maskgit", "vq", "rates"):
        out = draw(sampler, z=z).x
        assert (out[:, 0] == 3).all()
        assert (out[:, 3] == 1).all()


def test_prompt_without_tokens_and_scale_one_change_nothing():
    plain = draw(guide=None, z=torch.full((LENGTH,), TOKENS))
    empty = {"masks": {"prompt": torch.zeros(LENGTH)}}
    assert torch.equal(draw(guide="unprompted(3)", **empty).x, plain.x)


def test_unprompted_is_tempering_by_the_prompt():
    # one answer token after a prompt token: the null is its marginal
    law = TOY.laws[2].reshape(2, 2)
    z = torch.tensor([1, 2])
    out = fl.exact.token_law(
        MASKED, {"label": 2}, guide="unprompted(2)", steps=3, z=z, masks={"prompt": [1.0, 0.0]}
    )
    p = (law[1] / law[1].sum()) ** 2 / law.sum(0)
    assert_close(out.reshape(3, 3)[1, :2], p / p.sum())


def test_weight_for_each_sample():
    out = draw(guide=fl.CFG([1.0, 2.0, 3.0, 1.0, 2.0]))
    for i, w in enumerate((1.0, 2.0, 3.0)):
        assert torch.equal(out.x[i : i + 1], draw(guide=fl.CFG(w), n=1, first=i).x)
    assert out.nfe.tolist() == [4, 8, 8, 4, 8]


def test_classifier_guidance_costs_no_evaluation_of_the_model():
    energies = {"classifier": tiny_classifier()}
    out = draw(guide="dcbg('classifier', 2)", energies=energies, space="posterior")
    assert out.nfe.tolist() == [4] * 5
    assert out.report.gradients == 4


def test_truncation_by_hand():
    p = torch.tensor([0.5, 0.3, 0.2]).log()
    assert truncated(p, 0.45).exp().tolist() == pytest.approx([0.5, 0, 0])
    assert truncated(p, 0.6).exp().tolist() == pytest.approx([0.5, 0.3, 0])
    assert truncated(p, 1.0) is p


def test_halton_visits_every_position_once_and_spreads():
    order = halton(16)
    assert sorted(order.tolist()) == list(range(16))
    quarters = {(i // 4 // 2, i % 4 // 2) for i in order[:4].tolist()}
    assert len(quarters) >= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide": "cfg(2) | apg()"}, "apg: does not serve the domain 'logprob'"),
        ({"sampler": "ancestrl"}, "did you mean 'ancestral'"),
        ({"sampler": "maskgit(temperature=-1)"}, r"maskgit: temperature must be in \[0, inf\)"),
        ({"sampler": "best_of(sampler='maskgit')"}, "must draw every position on its own"),
        ({"sampler": "maskgit(order='halton')"}, "needs a square number of tokens, got 6"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"length": 3, "z": torch.zeros(6).long()}, "length = 3 contradicts the length 6"),
        ({"z": torch.full((6,), 6)}, r"z must hold tokens in \[0, 5\]"),
        ({"z": torch.zeros(3, 6).long()}, "n = 5 contradicts the 3 sequences"),
        ({"guide": "dcbg('classifier')"}, "asks for the energy 'classifier'"),
        ({"guide": "unprompted(2)"}, "the mask 'prompt' is missing"),
        ({"space": "posterior", "sampler": "maskgit"}, "space must be one of clean"),
        ({"guide": fl.CFG([1.0, 2.0])}, "2 values were given for a batch of 5"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        draw(**{"sampler": "ancestral", **options})


def test_a_model_that_excludes_every_token_is_named():
    d = TokenDenoiser(lambda z, t: torch.full((*z.shape, 2), -torch.inf), Masked(2), length=3)
    with pytest.raises((ValueError, FloatingPointError), match=r"add up to 0|NaN"):
        fl.discrete.sample(d, steps=2)


def test_wrong_sizes_are_named():
    d = TokenDenoiser(lambda z, t: torch.zeros(*z.shape, 3), Masked(2), length=3)
    with pytest.raises(ValueError, match="logits of 2 tokens, got 3"):
        fl.discrete.sample(d, steps=1)
    with pytest.raises(ValueError, match="vocabulary has 1 tokens, the process 2"):
        TokenDenoiser(lambda z, t: z, Masked(2), vocabulary=["a"])
    with pytest.raises(TypeError, match=r"must be a fl\.discrete\.TokenDenoiser"):
        fl.discrete.sample(fl.load("digits"), {"label": 1})
    with pytest.raises(ValueError, match="needs a process with masks, not uniform"):
        fl.discrete.sample(UNIFORM, {"label": 0}, sampler="maskgit")


def test_decode_stops_at_the_end():
    d = TokenDenoiser(lambda z, t: z, Masked(3), vocabulary=["<end>", "C", "O"])
    assert d.decode(torch.tensor([[1, 2, 0, 1], [3, 1, 1, 2]]), end=0) == ["CO", "CCO"]


def test_images_are_not_drawn_from_a_model_of_tokens():
    with pytest.raises(ValueError, match=r"sample: this model predicts tokens; use fl\.discrete"):
        fl.sample(MASKED, {"label": 0})
