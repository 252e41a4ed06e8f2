"""Feature reuse: extrapolation by hand, what does not run, and that batching changes nothing."""

import threading

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import fairlead as fl
from fairlead.models.dit import DiT
from fairlead.models.layers import SelfAttention
from fairlead.testing import tiny_denoiser

LABEL = {"label": [3, 5, 8]}
OPTIONS = {"steps": 8, "sampler": "ddim", "n": 3}


def double():
    return tiny_denoiser(dtype=torch.float64)


def counted(denoiser):
    """Rows that each self-attention module has run for."""
    rows = {}
    for name, module in denoiser.network.named_modules():
        if isinstance(module, SelfAttention):

            def count(_, inputs, out, name=name):
                rows[name] = rows.get(name, 0) + len(inputs[0])

            module.out.register_forward_hook(count)
    return rows


def draw(guide, denoiser=None, **options):
    return fl.sample(
        denoiser or double(), LABEL, guide=guide, dtype=torch.float64, **{**OPTIONS, **options}
    )


class Drifting(nn.Module):
    """One attention layer, whose output is the step's time, whatever comes in."""

    def __init__(self):
        super().__init__()
        self.core = SelfAttention(4, 1)

    @property
    def attention_layers(self):
        return {"only": self.core.core}

    def forward(self, x, t, label):
        self.core.out.weight.data.zero_()
        self.core.out.bias.data.fill_(float(t[0]))
        return self.core(x)


@pytest.mark.parametrize(("g", "growth"), [(0.0, "constant"), (0.5, "constant"), (1.0, "linear")])
def test_extrapolation_by_hand(g, growth):
    d = fl.Denoiser(Drifting(), fl.schedules.VP(), "sample", shape=(5, 4))
    policy = fl.FeatureReuse(start=0.25, g=g, growth=growth)
    seen = []
    fl.sample(
        d, {"label": [1]}, guide=fl.guide("none") | policy, steps=8, sampler="ddim",
        callback=lambda step: seen.append(step.denoised.mean().item()),
    )  # fmt: skip
    t = [level.t for level in d.schedule.grid(8)]
    factors = [g if growth == "constant" else g * (i + 1 - 2) / 6 for i in range(8)]
    expected = list(t[:8])
    for i, old in ((3, 1), (5, 2), (7, 4)):  # steps 4, 6 and 8, from the last two that computed
        expected[i] = t[i - 1] + factors[i] * (t[i - 1] - t[old])
    assert seen == pytest.approx(expected, abs=1e-5)


def test_skipped_layers_do_not_run():
    d = double()
    rows = counted(d)
    out = draw("cfg(3) | reuse()", d)
    # 3 samples, 2 branches; of steps 1 to 8 the steps 4, 6 and 8 take reused features
    assert set(rows.values()) == {3 * 2 * 5}
    assert len(rows) == 4
    assert out.nfe.tolist() == [16, 16, 16]
    marks = [e.provenance["cond"] for e in out.report.entries]
    assert marks == ["features reused" if i in (3, 5, 7) else "evaluated" for i in range(8)]


def test_only_the_named_layers():
    d = double()
    rows = counted(d)
    draw("cfg(3) | reuse(layers='mid')", d)
    assert sorted(set(rows.values())) == [30, 48]
    assert rows["mid.0.attend.attention"] == 30


@pytest.mark.parametrize("guide", ["cfg(3) | reuse()", "cfg(3) + pag(2) | cache() | reuse()"])
@pytest.mark.parametrize("options", [{"batching": "sequential"}, {"max_batch": 2}])
def test_batching_changes_nothing(guide, options):
    whole, parts = draw(guide), draw(guide, **options)
    assert_close(whole.x, parts.x, rtol=1e-9, atol=1e-9)
    assert torch.equal(whole.nfe, parts.nfe)


def test_a_batch_of_three_is_three_batches():
    whole = draw("cfg(3) | reuse()")
    for i, label in enumerate(LABEL["label"]):
        one = fl.sample(
            double(), {"label": [label]}, guide="cfg(3) | reuse()", dtype=torch.float64, first=i,
            **{**OPTIONS, "n": 1},
        )  # fmt: skip
        assert_close(whole.x[i : i + 1], one.x, rtol=1e-9, atol=1e-9)


def test_branches_that_were_left_out_run_whole():
    """The null branch, evaluated at steps 5 and 10, has no two features in a row."""
    d = double()
    rows = counted(d)
    out = draw("cfg(3) | cache(start=0) | reuse(start=0)", d, steps=10)
    nulls = [e.provenance["null"] for e in out.report.entries]
    assert nulls == ["evaluated", *["cached"] * 3, "evaluated", *["cached"] * 4, "evaluated"]
    # cond runs at steps 1, 3, 5, 7, 9, and at 2, where there are not two outputs yet
    assert set(rows.values()) == {3 * (6 + 3)}


def test_later_stages_of_a_step_keep_nothing():
    out = draw("cfg(3) | reuse()", sampler="heun")
    assert out.x.isfinite().all()
    marks = {(e.step, e.provenance["cond"]) for e in out.report.entries}
    assert (3, "features reused") in marks
    assert (3, "evaluated") not in marks


def test_start_at_one_is_plain():
    assert torch.equal(draw("cfg(3) | reuse(start=1)").x, draw("cfg(3)").x)


def test_a_transformer_reuses_too():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DiT(size=8, channels=2, patch=2, width=16, depth=3, heads=2).eval()
        for p in network.parameters():
            nn.init.normal_(p, std=0.2)
    d = fl.Denoiser(network, fl.schedules.VP(), "sample", null={"label": 10}, shape=(2, 8, 8))
    rows = counted(d)
    fl.sample(d, {"label": [1, 2]}, guide="cfg(2) | reuse(layers='blocks.1')", steps=6)
    assert rows["blocks.1.attention"] < rows["blocks.0.attention"] == rows["blocks.2.attention"]


def test_two_threads_share_one_network():
    d = double()
    alone = {g: draw(g, d).x for g in ("cfg(3) | reuse()", "cfg(2) | reuse(every=3)")}
    found = {}
    threads = [threading.Thread(target=lambda g=g: found.update({g: draw(g, d).x})) for g in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for guide, x in alone.items():
        assert torch.equal(found[guide], x)
    assert all("forward" not in vars(m) for m in d.network.modules())


def test_nothing_is_left_after_an_error():
    d = double()

    def fail(call, out):
        if call == 4:
            raise RuntimeError("on purpose")
        return out

    d.network.tamper = fail
    with pytest.raises(RuntimeError, match="on purpose"):
        draw("cfg(3) | reuse()", d)
    assert all("forward" not in vars(m) for m in d.network.modules())


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"reuse: no .* attention layer matches 'top'"):
        draw("cfg(3) | reuse(layers='top')")
    with pytest.raises(ValueError, match="reuse: growth must be one of constant, linear"):
        fl.FeatureReuse(growth="x")
