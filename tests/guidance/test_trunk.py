"""Shared trunks: the same predictions, and modules that see each sample once."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import fairlead as fl
from fairlead.testing import tiny_denoiser
from fairlead.testing.networks import TinyNetwork

CLOSE = {"rtol": 1e-12, "atol": 1e-12}  # float64, batches of another size
BELOW = ("down.0.0.residual.conv1", "mid.0.attend.norm")  # hooks of a trunk's top see all rows
LABEL = {"label": [3, 5, 8]}
OPTIONS = {"steps": 3, "dtype": torch.float64}


class Decoding(TinyNetwork):
    """The label enters the way up alone, as in DiffBatt."""

    def forward(self, x, t, label):
        time, label = F.silu(self.time(t)), F.silu(self.label(label))
        h = self.inputs(F.pixel_unshuffle(x, self.patch))
        skips = [h]
        for stage in self.down[0]:
            h = stage(h, time)
            skips.append(h)
        for stage in self.mid:
            h = stage(h, time)
        for stage in self.up[0]:
            h = stage(torch.cat([h, skips.pop()], 1), label)
        return F.pixel_shuffle(self.outputs(F.silu(self.norm(h))), self.patch)


def made(trunk):
    network = Decoding().double().eval().requires_grad_(False)
    network.load_state_dict(tiny_denoiser(dtype=torch.float64).network.state_dict())
    kinds = {"null": {"label": 10}, "shape": (2, 8, 8), "embeddings": {"label": "label"}}
    d = fl.Denoiser(
        network, fl.schedules.EDM(), "sample", trunk=trunk, choices={"label": 10}, **kinds
    )
    d.seen = {}
    for name in (*BELOW, "up.0.0"):
        d.seen[name] = []
        see = lambda m, a, name=name: d.seen[name].append(len(a[0]))  # noqa: E731
        network.get_submodule(name).register_forward_pre_hook(see)
    return d


def rows(d):
    return {name: sum(seen) for name, seen in d.seen.items()}


@pytest.mark.parametrize(
    ("guide", "branches"),
    [
        ("cfg(3)", 2),
        ("cfg(3) | interval(0, 1)", 2),
        ("cfg(3) + icg(2)", 3),
        ("cfg(3, against='negative') + cfg(2)", 3),
        ("cfg(3) | cads(s=0.1, tau1=0.2)", 2),
    ],
)
@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_the_trunk_runs_once(guide, branches, sampler):
    plain, d = made(()), made("inputs, down, mid")
    outs = [
        fl.sample(m, LABEL, guide=guide, sampler=sampler, negative={"label": 1}, **OPTIONS)
        for m in (plain, d)
    ]
    assert_close(outs[0].x, outs[1].x, **CLOSE)
    calls = outs[1].report.calls
    assert outs[0].nfe.tolist() == outs[1].nfe.tolist() == [branches * calls] * 3
    assert rows(plain) == dict.fromkeys(plain.seen, 3 * branches * calls)
    once, all_ = 3 * calls, 3 * branches * calls
    assert rows(d) == {**dict.fromkeys(BELOW, once), "up.0.0": all_}
    assert outs[0].report.shared == 0
    assert outs[1].report.shared == (branches - 1) * calls
    assert f"with a shared trunk: {(branches - 1) * calls}" in str(outs[1].report)


@pytest.mark.parametrize("options", [{"batching": "sequential"}, {"max_batch": 2}])
def test_calls_of_their_own_share_nothing(options):
    plain, d = made(()), made("inputs, down, mid")
    outs = [fl.sample(m, LABEL, guide="cfg(3)", **OPTIONS, **options) for m in (plain, d)]
    assert_close(outs[0].x, outs[1].x, **CLOSE)
    assert rows(d) == rows(plain)
    assert outs[1].report.shared == 0


@pytest.mark.parametrize(
    "guide", ["cfg(3) + pag(2, layers='mid')", "cfg([1, 3, 2])", "cfg(3) + blur(0.5)"]
)
def test_branches_that_differ_otherwise_are_left_alone(guide):
    outs = [fl.sample(m, LABEL, guide=guide, **OPTIONS) for m in (made(()), made("down, mid"))]
    assert_close(outs[0].x, outs[1].x, **CLOSE)


def test_a_trunk_that_sees_the_condition_is_wrong():
    outs = [fl.sample(made(t), LABEL, guide="cfg(3)", **OPTIONS).x for t in ((), "up.0.0")]
    assert (outs[0] - outs[1]).abs().max() > 1e-3


def test_nested_outputs_and_folded_rows():
    class Trunk(nn.Module):
        def forward(self, x, *, scale):
            return x * scale, [x, None, 2]

    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = Trunk()

        def forward(self, x, t, label):
            h, (y, none, two) = self.trunk(x.flatten(0, 1), scale=3.0)
            assert none is None
            return two * (h + y).reshape(x.shape) * label.reshape(-1, 1, 1)

    outs = [
        fl.sample(
            fl.Denoiser(
                Frames(), fl.schedules.EDM(), "sample", {"label": 0.5}, shape=(4, 5), trunk=trunk
            ),
            {"label": [0.1, 0.2]}, guide="cfg(2)", steps=2,
        )
        for trunk in ((), "trunk")
    ]  # fmt: skip
    assert torch.equal(outs[0].x, outs[1].x)
    assert outs[1].report.shared > 0


def test_a_trunk_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"Denoiser: no module of the trunk matches 'left'; .*mid"):
        made("left")
    with pytest.raises(ValueError, match=r"no module of the trunk matches 'down'; .* none"):
        fl.Denoiser(lambda x, t: x, fl.schedules.EDM(), trunk="down")
