"""Teachers: pairs by hand, what is neutral, adapters, and what would part a pair."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import fairlead as fl
from fairlead.attention import Edit, attending, find_attention
from fairlead.teacher import _alone, _lend
from fairlead.testing import tiny_denoiser

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64, sums in another order
STUDENT, TEACHER = {"label": [3, 5]}, {"label": [7, 1]}
OPTIONS = {"steps": 4, "n": 2, "dtype": torch.float64, "seed": 4, "guide": "cfg(3)"}


def tiny(**options):
    return tiny_denoiser(dtype=torch.float64, **options)


def plain(d, condition, **options):
    return fl.sample(d, condition, **{"sampler": "ddim", **OPTIONS, **options}).x


@pytest.mark.parametrize("sampler", ["ddim", "heun", "ddpm", "dpmpp_2m"])
def test_without_a_lesson_both_are_plain(sampler):
    out = fl.sample_taught(tiny(), STUDENT, TEACHER, end=0.0, sampler=sampler, **OPTIONS)
    assert_close(out.x, plain(tiny(), STUDENT, sampler=sampler), **CLOSE)
    assert_close(out.teacher, plain(tiny(), TEACHER, sampler=sampler), **CLOSE)


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_a_teacher_under_the_same_condition_teaches_nothing_new(sampler):
    options = {"sampler": sampler, "end": 1.0, **OPTIONS}
    out = fl.sample_taught(tiny(), STUDENT, {}, **options)
    assert_close(out.x, plain(tiny(), STUDENT, sampler=sampler), **CLOSE)
    assert_close(out.teacher, out.x, **CLOSE)


@pytest.mark.parametrize(("end", "lessons"), [(1.0, 4), (0.5, 2), (0.3, 2), (0.25, 1)])
@pytest.mark.parametrize("layers", ["**", "mid"])
def test_by_hand(end, lessons, layers):
    d = tiny()
    cores = d.attention_layers if layers == "**" else {"mid.0": d.attention_layers["mid.0"]}
    hand, calls = tiny(), [0]

    def forward(q, k, v):
        """Rows are teachers 1 and 2, students 1 and 2, and then the same of the null branch."""
        if calls[0] < lessons:
            q, k = (torch.cat([t[[0, 1, 0, 1]], t[[4, 5, 4, 5]]]) for t in (q, k))
        return F.scaled_dot_product_attention(q, k, v)

    for name in cores:
        hand.attention_layers[name].module.forward = forward

    def after(step):
        calls[0] = step.index + 1

    label = [*TEACHER["label"], *STUDENT["label"]]
    start = [[fl.Run(4, [i]).normal(torch.empty(1, 2, 8, 8), "start") for i in (0, 1)]] * 2
    x = 80.0 * torch.cat([torch.cat(part) for part in start]).double()
    options = {**OPTIONS, "n": 4, "x": x, "sampler": "ddim", "callback": after}
    by_hand = fl.sample(hand, {"label": label}, **options).x
    out = fl.sample_taught(d, STUDENT, TEACHER, end=end, layers=layers, **OPTIONS)
    assert_close(torch.cat([out.teacher, out.x]), by_hand, **CLOSE)
    assert_close(out.teacher, plain(tiny(), TEACHER), **CLOSE)  # it learns nothing itself
    assert (out.x - plain(tiny(), STUDENT)).abs().max() > 1e-3
    assert out.nfe.tolist() == [16, 16]


def test_a_sample_does_not_depend_on_its_batch():
    both = fl.sample_taught(tiny(), STUDENT, TEACHER, **OPTIONS)
    options = {**OPTIONS, "n": 1, "first": 1}
    one = fl.sample_taught(tiny(), {"label": 5}, {"label": 1}, **options)
    assert_close(one.x, both.x[1:], **CLOSE)
    assert_close(one.teacher, both.teacher[1:], **CLOSE)
    for max_batch in (2, 4, 6):
        again = fl.sample_taught(tiny(), STUDENT, TEACHER, max_batch=max_batch, **OPTIONS)
        assert_close(again.x, both.x, **CLOSE)


@pytest.mark.parametrize("guide", ["cfg(3)", "cfg(3) | adain()", "cfg(3, against='negative')"])
def test_adapters_add_nothing_to_teachers(guide):
    d = tiny(text=True, adapter=True)
    options = {**OPTIONS, "guide": guide, "negative": {"label": 8}}
    out = fl.sample_taught(d, STUDENT, {}, end=0.5, **options)
    silent = tiny(text=True, adapter=True)
    silent.network.cross.core.scale = 0.0
    alone = fl.sample(
        silent, STUDENT, sampler="ddim", **{**options, "guide": guide[:6] + guide[6:]}
    )
    assert_close(out.teacher, alone.x, **CLOSE)
    untaught = fl.sample_taught(d, STUDENT, {}, end=0.0, **options)
    assert_close(untaught.x, fl.sample(d, STUDENT, sampler="ddim", **options).x, **CLOSE)
    assert (out.x - untaught.x).abs().max() > 1e-3


@pytest.mark.parametrize("guide", ["cfg(3) + pag(2, layers='**')", "cfg(3) | merge(0.5)", "tsg(2)"])
def test_perturbations_keep_pairs(guide):
    options = {**OPTIONS, "guide": guide}
    both = fl.sample_taught(tiny(), STUDENT, TEACHER, **options)
    if "merge" not in guide:  # rows of a chunk draw their own tokens
        parts = fl.sample_taught(tiny(), STUDENT, TEACHER, max_batch=2, **options)
        assert_close(parts.x, both.x, **CLOSE)
    assert_close(both.teacher, plain(tiny(), TEACHER, guide=guide), **CLOSE)


def test_joint_conditions_still_merge_with_null():
    guide = "multi(['label'], [[3, 'label', 'none']], origin='none') + cfg(2)"
    out = fl.sample_taught(tiny(), STUDENT, TEACHER, **{**OPTIONS, "guide": guide})
    assert out.nfe.tolist() == [16, 16]


def test_what_parts_a_pair_is_refused():
    for options in ({"max_batch": 3}, {"guide": "cfg([1, 3, 3, 3])"}):
        with pytest.raises(ValueError, match="a call parts students from their teachers"):
            fl.sample_taught(tiny(), STUDENT, TEACHER, **{**OPTIONS, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": 1.5}, r"sample_taught: end must be in \[0, 1\], got 1.5"),
        ({"layers": "left"}, "sample_taught: no self attention layer matches 'left'"),
        ({"teacher": {"style": 0}}, "the teacher has a condition 'style', which the students lack"),
        ({"condition": {"lable": 1}, "teacher": {}}, "the model takes no 'lable'"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fl.sample_taught(tiny(), **{"condition": STUDENT, "teacher": TEACHER, **OPTIONS, **options})


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_layers_of_diffusers():
    pytest.importorskip("diffusers")
    from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0

    def draws(*shape, seed):
        g = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=g, dtype=torch.float64)

    cross = Attention(query_dim=8, cross_attention_dim=6, heads=2, dim_head=4)
    cross.set_processor(IPAdapterAttnProcessor2_0(8, 6, num_tokens=(3,), scale=1.0))
    own = Attention(query_dim=8, heads=2, dim_head=4)
    layers = find_attention(torch.nn.ModuleDict({"cross": cross, "own": own}).double())
    x, texts = draws(4, 5, 8, seed=0), (draws(4, 4, 6, seed=1), [draws(4, 1, 3, 6, seed=2)])
    plain = cross(x, encoder_hidden_states=texts)
    with attending([Edit(layers["cross"], 0, 4, _alone)], 4):
        out = cross(x, encoder_hidden_states=texts)
    cross.processor.scale = [0.0]
    alone = cross(x, encoder_hidden_states=texts)
    assert_close(out[::2], alone[::2], **CLOSE)
    assert_close(out[1::2], plain[1::2], **CLOSE)
    with attending([Edit(layers["own"], 0, 4, _lend)], 4):
        out = own(x)
    q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (own.to_q, own.to_k, own.to_v))
    teachers = [0, 0, 2, 2]
    seen = F.scaled_dot_product_attention(q[teachers], k[teachers], v)
    assert_close(out, own.to_out[0](seen.transpose(1, 2).flatten(2)), **CLOSE)
