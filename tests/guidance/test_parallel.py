"""Branches over processes: two of them by gloo, against one; what is said when one is lost."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fairlead as fl
from fairlead.testing import tiny_denoiser

WORKER = Path(__file__).with_name("parallel_worker.py")
sys.path.insert(0, str(WORKER.parent))
from parallel_worker import GUIDES, LABEL, draw  # noqa: E402


def start(folder, part, size=2):
    workers = [
        subprocess.Popen([sys.executable, str(WORKER), str(r), str(size), str(folder), part])
        for r in range(size)
    ]
    return [w.wait(timeout=300) for w in workers]


@pytest.fixture(scope="module")
def agreed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agree")
    assert start(folder, "agree") == [0, 0]
    return folder


@pytest.mark.parametrize("name", list(GUIDES))
def test_two_processes_equal_one_to_the_bit(agreed, name):
    alone, rows = draw(name, "sequential")
    found = [torch.load(agreed / f"{name}.{rank}.pt") for rank in (0, 1)]
    for part in found:
        assert torch.equal(part["x"], alone.x)
        assert torch.equal(part["nfe"], alone.nfe)
    assert sum(part["rows"] for part in found) == rows
    assert min(part["rows"] for part in found) > 0


@pytest.mark.parametrize(("name", "evaluations"), [("cfg", 7), ("three branches", 4)])
def test_one_status_and_one_gathering_an_evaluation(agreed, name, evaluations):
    found = torch.load(agreed / f"{name}.0.pt")
    assert found["collectives"] == 2 * evaluations


def test_failures_are_told_apart(tmp_path):
    start(tmp_path, "fail")
    apart, broken, gone = torch.load(tmp_path / "failures.0.pt")
    assert "parallel: process 1 does not want what process 0 wants at step 0" in apart[0]
    assert "every process must call fl.sample with the same arguments" in apart[0]
    assert broken[0] == (
        "RuntimeError: parallel: process 1 of 2 failed at step 1 (stage 0) while it predicted; "
        "its own error says why"
    )
    assert gone[0].startswith(
        "RuntimeError: parallel: process 0 of 2 has lost another one at step 1 (stage 0); it died, "
        "or did not answer within timeout = 5 s ("
    )
    assert gone[1] < 60  # a deadlock would last as long as the group's own timeout
    other = torch.load(tmp_path / "failures.1.pt")
    assert other[1][0] == "ArithmeticError: on purpose"


def test_without_a_process_group_it_says_how_to_make_one():
    with pytest.raises(ValueError, match=r"parallel: no process group; start with `torchrun"):
        fl.sample(tiny_denoiser(), LABEL, guide="cfg(2)", batching="parallel")


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"Parallel: timeout must be in \(0, inf\), got 0"):
        fl.Parallel(timeout=0)
    with pytest.raises(ValueError, match=r"batching must be one of .* did you mean 'parallel'"):
        fl.sample(tiny_denoiser(), LABEL, batching="paralel")
