"""The report of all metrics, and FID's door to torchmetrics."""

import math
import sys
import types

import pytest
import torch

from fairlead.metrics import inception_fid, moments, report


def data(n, shift=0.0, seed=0):
    return shift + torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def reference():
    mean, cov = moments(data(3000, seed=1))
    return {"mean": mean, "cov": cov, "features": data(900, seed=2)}


def test_report():
    n = 256
    g = torch.Generator().manual_seed(3)
    labels = torch.arange(n) % 4
    images = 2 * torch.rand(n, 3, 8, 8, generator=g) - 1
    logits = 5.0 * torch.eye(4)[labels]
    good = report(data(n), logits, labels, images, reference())
    bad = report(data(n, shift=2.0), logits, labels, images, reference())
    keys = "fd precision recall density coverage accuracy confidence diversity saturation clipped"
    assert set(good) == set(keys.split())
    assert good["accuracy"].value == 1
    assert good["fd"].value < 1 < 20 < bad["fd"].value
    for name in ("precision", "recall", "density", "coverage"):
        assert good[name].low > bad[name].high
    # thinned to 256 against 256: the coverage of equal sets is 0.97, of 256 against 900 0.71
    assert good["coverage"].value > 0.9
    for found in good.values():
        assert found.low - 1e-12 <= found.value <= found.high + 1e-12  # equal but for rounding


def test_report_of_what_there_is():
    found = report(data(6), None, torch.arange(6), None, reference())
    assert set(found) == {"fd", "precision", "recall", "density", "coverage", "diversity"}
    assert math.isnan(found["diversity"].value)


def test_report_refuses():
    with pytest.raises(ValueError, match=r"lacks \['features'\]"):
        report(data(9), None, torch.zeros(9).long(), None, {"mean": data(9)[0], "cov": data(9)})
    with pytest.raises(ValueError, match="labels must be one a sample, got 3 for 9"):
        report(data(9), None, torch.zeros(3).long(), None, reference())


def test_fid_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"pip install \"fairlead\[fid\]\""):
        inception_fid(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))


def test_fid_hands_bytes_to_torchmetrics_and_never_downloads_unasked(monkeypatch, tmp_path):
    seen = []

    class Fake:
        def __init__(self, **arguments):
            seen.append(arguments)

        def update(self, pixels, real):
            seen.append((pixels.dtype, pixels.flatten().tolist(), real))

        def compute(self):
            return torch.tensor(12.5)

    fid = types.ModuleType("torchmetrics.image.fid")
    fid.FrechetInceptionDistance = Fake
    for name in ("torch_fidelity", "torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", fid)
    generated, real = torch.tensor([[[[-1.0, 0.0, 2.0]]]]), torch.ones(1, 1, 1, 3)
    with pytest.raises(ValueError, match="download=True"):
        inception_fid(generated, real)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        inception_fid(generated, real, tmp_path / "none.pth")
    assert not seen
    file = tmp_path / "weights.pth"
    file.touch()
    assert inception_fid(generated, real, file) == 12.5
    assert seen[0]["feature_extractor_weights_path"] == str(file)
    assert seen[1:] == [
        (torch.uint8, [255, 255, 255], True),
        (torch.uint8, [0, 128, 255], False),
    ]
    inception_fid(generated, real, download=True)
    assert seen[3]["feature_extractor_weights_path"] is None
