"""Stream Batch equals denoising each frame alone; the similarity filter by hand."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.attention import Edit, attending
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel
from fairlead.testing import tiny_denoiser

TIMES = [0.8, 0.6, 0.4, 0.2]
GUIDES = [
    "none",
    "cfg(3)",
    "cfg(1.5) | rcfg()",
    "cfg(1.5) | rcfg('onetime', delta=0.9)",
    "cfg(2) + pag(2) | apg(r=1, beta=-0.5)",
]


def model():
    return tiny_denoiser(fl.schedules.VP(), dtype=torch.float64)


def frames(n, key=0):
    generator = torch.Generator().manual_seed(key)
    return [torch.randn(2, 8, 8, generator=generator, dtype=torch.float64) for _ in range(n)]


def alone(guide, frame, noises):
    """Consistency steps on one frame, by the guided model that `fl.sample` drives."""
    d = model()
    run = fl.Run(0, [0], 4, reference=frame[None])
    guided = GuidedModel(fl.guide(guide), Evaluator(d, {"cond": fl.Condition({"label": [3]})}), run)
    levels = [d.schedule.level(t) for t in TIMES]
    x = levels[0].alpha * frame[None] + levels[0].sigma * noises[0]
    for i, level in enumerate(levels):
        guided.begin(level)
        clean = guided(x, level).denoise
        if i < 3:
            x = levels[i + 1].alpha * clean + levels[i + 1].sigma * noises[i + 1]
    return clean[0]


@pytest.mark.parametrize("guide", GUIDES)
def test_every_frame_is_what_it_would_be_alone(guide):
    stream = fl.Stream(model(), {"label": 3}, guide=guide, times=TIMES, seed=5)
    given = frames(7)
    found = [stream.push(f) for f in given] + stream.drain()
    assert [f is None for f in found] == [True] * 3 + [False] * 7
    like = torch.empty(4, 2, 8, 8, dtype=torch.float64)
    noises = fl.Run(5, range(4)).normal(like, "stream")
    for frame, out in zip(given, found[3:], strict=True):
        # in float64, in batches of other sizes
        assert_close(out, alone(guide, frame, noises), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("guide", "rows"), [("none", 4), ("cfg(3)", 8), ("cfg(2) | rcfg()", 4),
                        ("cfg(2) | rcfg('onetime')", 5)]
)  # fmt: skip
def test_one_call_a_frame_whatever_the_number_of_levels(guide, rows):
    d = model()
    stream = fl.Stream(d, {"label": 3}, guide=guide, times=TIMES)
    stream.push(frames(1)[0])  # the rows behind the first frame are noise
    d.network.rows = d.network.calls = 0
    for frame in frames(6):
        stream.push(frame)
    assert (d.network.calls, d.network.rows) == (6, 6 * rows)


def test_a_stream_of_one_level_has_no_delay():
    stream = fl.Stream(model(), {"label": 3}, times=[0.5])
    assert all(stream.push(f) is not None for f in frames(3))
    assert stream.drain() == []


def test_few_frames_are_drained_in_order():
    stream = fl.Stream(model(), {"label": 3}, times=TIMES)
    given = frames(2)
    assert [stream.push(f) for f in given] == [None, None]
    drained = stream.drain()
    assert len(drained) == 2
    other = fl.Stream(model(), {"label": 3}, times=TIMES)
    whole = [other.push(f) for f in [*given, *frames(4, key=1)]]
    assert_close(drained, [w for w in whole if w is not None][:2], rtol=1e-9, atol=1e-9)
    assert stream.push(given[0]) is None  # it begins anew


def test_the_condition_can_change():
    a, b = (fl.Stream(model(), {"label": 3}, times=TIMES) for _ in range(2))
    given = frames(8)
    for f in given[:4]:
        a.push(f), b.push(f)
    b.change({"label": 7})
    outputs = [(a.push(f), b.push(f)) for f in given[4:]]
    assert not any(torch.allclose(x, y, atol=1e-3) for x, y in outputs)


@pytest.mark.parametrize(
    "policy", ["interval(0, 0.5)", "cache()", "curve('linear')", "adaptive()", "oscillating()",
               "linear()", "zero_star()", "reuse()"]
)  # fmt: skip
def test_guides_that_ask_for_the_step_are_refused_at_the_first_frame(policy):
    stream = fl.Stream(model(), {"label": 3}, guide=f"cfg(3) | {policy}", times=TIMES)
    with pytest.raises(ValueError, match="stream: this guide asks at which step it is"):
        stream.push(frames(1)[0])


def test_probability_by_hand():
    rule, x = fl.SimilarityFilter(eta=0.5), torch.tensor([1.0, 0.0])
    for cosine, expected in [(1.0, 1.0), (0.75, 0.5), (0.5, 0.0), (0.0, 0.0)]:
        y = torch.tensor([cosine, (1 - cosine**2) ** 0.5])
        assert rule.probability(3 * y, x) == pytest.approx(expected, abs=1e-6)
    assert fl.SimilarityFilter(eta=1.0).probability(x, x) == 0.0
    assert fl.SimilarityFilter().probability(0 * x, x) == 0.0


def test_a_still_scene_is_looked_at_after_so_many_skips():
    still = iter([torch.ones(3)] * 25)
    skipped = [s for _, s in fl.SimilarityFilter(longest=10).over(still)]
    assert skipped == [False, *[True] * 10, False, *[True] * 10, False, True, True]


def test_the_share_of_skips_is_the_probability_and_the_last_processed_is_the_reference():
    x = torch.tensor([1.0, 0.0])
    y = torch.tensor([0.99, (1 - 0.99**2) ** 0.5])  # similarity 0.99, skipped with 1/2
    rule = fl.SimilarityFilter(longest=10**6)
    assert rule.probability(x, y) == pytest.approx(0.5, abs=1e-5)
    seen = [s for _, s in rule.over(iter([x, *[x, y] * 2000]))]
    # four standard deviations of 4000 draws; x after x is always skipped
    last, expected = x, []
    for frame, skip in zip([x, y] * 2000, seen[1:], strict=True):
        expected.append((rule.probability(frame, last), skip))
        last = last if skip else frame
    half = [skip for p, skip in expected if p < 0.9]
    assert all(skip for p, skip in expected if p > 0.9)
    assert abs(sum(half) / len(half) - 0.5) < 4 * 0.5 / len(half) ** 0.5


def test_skipped_frames_cost_nothing_and_repeat_the_output():
    d = model()
    stream = fl.Stream(d, {"label": 3}, times=[0.6, 0.3], similarity=fl.SimilarityFilter(longest=2))
    frame = frames(1)[0]
    outputs = [stream.push(frame) for _ in range(7)]
    assert d.network.calls == 3  # frames 0, 3 and 6
    assert outputs[:3] == [None] * 3
    assert outputs[3] is outputs[4] is outputs[5]
    assert outputs[6] is not None


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="stream: times must be at least one, from noisy to"):
        fl.Stream(model(), {"label": 3}, times=[0.2, 0.4])
    with pytest.raises(ValueError, match="stream: times must be at least one"):
        fl.Stream(model(), {"label": 3}, times=[])
    with pytest.raises(ValueError, match="stream: every level needs both signal and noise"):
        fl.Stream(tiny_denoiser(fl.schedules.RectifiedFlow()), {"label": 3}, times=[1.0, 0.5])
    stream = fl.Stream(model(), {"label": 3}, times=TIMES)
    stream.push(frames(1)[0])
    with pytest.raises(ValueError, match=r"stream: frames must have the shape \(2, 8, 8\)"):
        stream.push(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"SimilarityFilter: eta must be in \[-1, inf\]"):
        fl.SimilarityFilter(eta=-2.0)


def test_over_frames_a_frame_without_company_is_what_it_is_alone():
    given = frames(2)
    found = {}
    for across in ("", "**"):
        stream = fl.Stream(model(), {"label": 3}, guide="cfg(3)", times=TIMES, across=across)
        alone_in_it = [stream.push(given[0]), *stream.drain()]
        together = [*map(stream.push, given), *stream.drain()]
        found[across] = (alone_in_it[-1], together[-2:])
    assert_close(found["**"][0], found[""][0], rtol=1e-9, atol=1e-9)
    for a, b in zip(found["**"][1], found[""][1], strict=True):
        assert not torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("guide", ["none", "cfg(3)"])
def test_over_frames_by_hand(guide):
    """Two levels: the second frame enters as the first leaves, and both see both."""
    d, (one, two) = model(), frames(2, key=3)
    stream = fl.Stream(d, {"label": 3}, guide=guide, times=[0.6, 0.3], across="mid")
    assert stream.push(one) is None
    out = stream.push(two)
    levels = [d.schedule.level(t) for t in (0.6, 0.3)]
    noises = fl.Run(0, range(2)).normal(torch.empty(2, 2, 8, 8, dtype=torch.float64), "stream")
    layer = d.attention_layers["mid.0"]

    def both(call):
        k, v = (t.transpose(0, 1).flatten(1, 2).expand(2, -1, -1, -1) for t in (call.k, call.v))
        return call.attend(k=k, v=v)

    def at(x, level, labels, edits):
        with torch.no_grad(), attending(edits, len(x)):
            c, u = (d(x, level, {"label": labels(v)}) for v in (3, 10))
        return c if guide == "none" else u + 3 * (c - u)

    x = levels[0].alpha * one[None] + levels[0].sigma * noises[:1]
    clean = at(x, levels[0], lambda v: [v], [])
    moved = levels[1].alpha * clean + levels[1].sigma * noises[1:]
    x = torch.cat([levels[0].alpha * two[None] + levels[0].sigma * noises[:1], moved])
    t = torch.tensor([0.6, 0.3], dtype=torch.float64)
    found = at(x, t, lambda v: [v, v], [Edit(layer, 0, 2, both)])
    assert_close(out, found[1], rtol=1e-6, atol=1e-6)


def test_layers_over_frames_that_are_not_there_are_named():
    with pytest.raises(ValueError, match=r"stream: no self attention layer .*'none.such'"):
        fl.Stream(model(), {"label": 3}, times=TIMES, across="none.such")
