"""The denoiser: one currency whatever the network predicts, and what it says about itself."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import fairlead as fl
from fairlead.prediction import PREDICTIONS, from_x0
from fairlead.schedules import EDM, VP, DiscreteVP, RectifiedFlow
from fairlead.testing import tiny_denoiser, tiny_network

SCHEDULES = [VP("cosine"), EDM(), RectifiedFlow(), DiscreteVP.linear()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_same_clean_estimate_from_every_prediction(schedule, kind):
    # the network knows the target D = tanh(x) and puts it in its own terms
    t = 0.3 * schedule.t_max
    level = schedule.level(t)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def network(inputs, time):
        return from_x0(x.tanh(), x, level.alpha, level.sigma, kind)

    out = fl.Denoiser(network, schedule, kind)(x, t)
    assert_close(out, x.tanh(), rtol=1e-9, atol=1e-9)


def test_what_the_network_is_given():
    seen = {}

    def network(x, t, label):
        seen.update(x=x, t=t, label=label)
        return torch.zeros_like(x)

    x = torch.ones(2, 3)
    fl.Denoiser(network, EDM(), "edm")(x, 2.0, {"label": 7})
    assert_close(seen["x"], x / (4 + 0.25) ** 0.5)
    assert_close(seen["t"], torch.full((2,), 2.0).log() / 4)
    assert seen["label"].tolist() == [7, 7]
    fl.Denoiser(network, DiscreteVP.linear(), "epsilon")(x, 500, {"label": [1, 2]})
    assert seen["t"].tolist() == [499.0, 499.0]
    assert torch.equal(seen["x"], x)


def test_edm_under_another_schedule_takes_a_quarter_of_log_sigma_over_alpha():
    seen = []
    d = fl.Denoiser(lambda x, t: seen.append(t) or x, RectifiedFlow(), "edm")
    d(torch.ones(1, 2), 0.8)
    assert_close(seen[0], torch.tensor([4.0]).log() / 4)


@pytest.mark.parametrize("kind", ["sample", "epsilon", "edm", "flow_prediction"])
def test_times_per_sample_are_a_loop(kind):
    d = tiny_denoiser(EDM(), kind, dtype=torch.float64)
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times, labels = torch.tensor([0.5, 1.0, 4.0]), [1, 2, 3]
    rows = [d(x[i : i + 1], times[i].item(), {"label": labels[i]}) for i in range(3)]
    # the times are float32 numbers, and so are the network's inputs of time
    assert_close(d(x, times, {"label": labels}), torch.cat(rows), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_dtypes(given, expected):
    for dtype in (torch.float32, torch.bfloat16):
        d = tiny_denoiser(dtype=dtype)
        out = d(torch.ones(2, 2, 8, 8, dtype=given), 1.0, {"label": [1, 2]})
        assert out.dtype == expected
        assert out.isfinite().all()


def test_autocast_keeps_the_currency():
    d = tiny_denoiser()
    plain = d(torch.ones(1, 2, 8, 8), 1.0, {"label": 1})
    d.autocast = torch.bfloat16
    out = d(torch.ones(1, 2, 8, 8), 1.0, {"label": 1})
    assert out.dtype == torch.float32
    assert not torch.equal(out, plain)
    # bf16 keeps 8 bits; a dozen layers of that
    assert_close(out, plain, rtol=0.2, atol=0.2)


def test_null_condition():
    d = fl.Denoiser(
        lambda x, t, **c: x,
        EDM(),
        null={"label": 10, "text": torch.full((4,), -1.0), "noise": lambda n: torch.ones(n, 2)},
    )
    c = fl.Condition({"label": [1, 2], "text": torch.zeros(2, 4), "noise": torch.zeros(2, 2)})
    null = d.null_condition(c)
    assert null["label"].tolist() == [10, 10]
    assert (null["text"] == -1).all()
    assert (null["noise"] == 1).all()
    part = d.null_condition(c, ["text"])
    assert part["label"].tolist() == [1, 2]
    assert (part["text"] == -1).all()
    with pytest.raises(ValueError, match=r"null: no condition 'txet'; did you mean 'text'"):
        d.null_condition(c, ["txet"])


def test_embedding_of_indices():
    d = tiny_denoiser()
    embedded = d.embed(fl.Condition({"label": [1, 2]}))["label"]
    assert torch.equal(embedded, d.network.label.weight[[1, 2]])
    assert torch.equal(d.embed(fl.Condition({"label": embedded}))["label"], embedded)
    x = torch.ones(2, 2, 8, 8)
    assert torch.equal(d(x, 1.0, {"label": embedded}), d(x, 1.0, {"label": [1, 2]}))
    d.embeddings = {}
    with pytest.raises(ValueError, match="embed: the condition 'label' is an index"):
        d.embed(fl.Condition({"label": [1]}))


def test_names():
    d = tiny_denoiser()
    assert list(d.attention_layers) == ["down.0.0", "mid.0", "up.0.0", "up.0.1"]
    assert d.match_attention("a", "up", ["self"])[1].name == "up.0.1"
    with pytest.raises(ValueError, match=r"a: no cross attention layer .*network has: none"):
        d.match_attention("a", "up", ["cross"])
    assert isinstance(d.module("time"), nn.Module)
    with pytest.raises(ValueError, match="no module 'tme' in the network; did you mean 'time"):
        d.module("tme")
    assert fl.Denoiser(lambda x, t: x, EDM()).attention_layers == {}
    with pytest.raises(ValueError, match=r"Denoiser: prediction must be one of .*'v_prediction'"):
        fl.Denoiser(lambda x, t: x, EDM(), "v_predicton")


def test_tiny_networks_are_not_trivial():
    a, b = tiny_network(0), tiny_network(0)
    x, t = torch.ones(2, 2, 8, 8), torch.ones(2)
    out = a(x, t, torch.tensor([1, 2]))
    assert torch.equal(out, b(x, t, torch.tensor([1, 2])))
    assert not torch.allclose(out[0], out[1], atol=1e-3)  # the label matters
    assert not torch.allclose(out, a(x, 2 * t, torch.tensor([1, 2])), atol=1e-3)  # the time too
    assert not torch.allclose(out, tiny_network(1)(x, t, torch.tensor([1, 2])), atol=1e-3)
    assert (a.rows, a.calls) == (4, 2)
