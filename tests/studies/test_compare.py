"""Comparisons: what is measured, what is kept, and that nothing is lost or mixed."""

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import fairlead as fl
from fairlead.metrics import Estimate
from fairlead.models import zoo
from fairlead.studies.compare import compare
from fairlead.studies.comparison import Row, front
from fairlead.studies.files import Samples, fingerprint, require_writable, to_json
from fairlead.studies.plots import grid, pictures
from fairlead.studies.tables import command

GUIDES = ["none", "cfg(2) | apg(eta=0.5)"]
SETTINGS = {"n": 12, "steps": 2, "sampler": "euler", "chunk": 5}


@pytest.fixture(scope="session")
def found(model, tmp_path_factory):
    return compare(model, GUIDES, tmp_path_factory.mktemp("study") / "new" / "out", **SETTINGS)


def chunks(folder: Path) -> list[Path]:
    return sorted((folder / "samples").glob("*/*.safetensors"))


class Stop:
    """Progress that presses Ctrl-C at its `at`-th call, and counts."""

    def __init__(self, at: float = math.inf) -> None:
        self.at, self.calls = at, 0
        self.seen: list[tuple[str, float, float]] = []

    def __call__(self, what: str, done: float, total: float) -> None:
        self.calls += 1
        self.seen.append((what, done, total))
        if self.calls == self.at:
            raise KeyboardInterrupt


def test_samples_are_those_of_fl_sample_with_balanced_classes(found, model):
    denoiser = fl.load(model)
    kept = Samples(found.folder, {}, denoiser.shape).load(str(fl.guide(GUIDES[1])), 12)
    plain = fl.sample(
        denoiser,
        {"label": torch.arange(12) % 10},
        guide=GUIDES[1],
        sampler="euler",
        steps=2,
        n=12,
    )
    # batches of 5 and of 12 rows add up in another order: float32 rounding of values up to 80
    torch.testing.assert_close(kept["x"], plain.x, atol=1e-4, rtol=1e-5)
    assert kept["nfe"].tolist() == plain.nfe.tolist()


def test_rows_have_cost_and_metrics_with_intervals(found):
    assert [r.guide for r in found.rows] == ["none", "cfg(2.0) | apg(eta=0.5)"]
    assert [r.nfe for r in found.rows] == [2, 4]  # Euler, two steps: one and two branches
    for r in found.rows:
        assert r.n == 12
        assert r.seconds > 0
        assert r.metrics["fd"].low <= r.metrics["fd"].value <= r.metrics["fd"].high
        assert {"accuracy", "diversity", "coverage", "saturation"} <= r.metrics.keys()


def test_files(found):
    folder = found.folder
    results = json.loads((folder / "compare.json").read_text())
    assert results["settings"]["features"] == "digits feature network"
    assert results["settings"]["n"] == 12
    table = pq.read_table(folder / "compare.parquet").to_pylist()
    for kept, row, flat in zip(results["results"], found.rows, table, strict=True):
        assert kept["metrics"]["fd"]["value"] == row.metrics["fd"].value == flat["fd"]
        assert flat["fd_low"] == row.metrics["fd"].low
        assert flat["guide"] == kept["guide"] == row.guide
        assert flat["sampler"] == "euler"
    page = (folder / "compare.md").read_text()
    assert r"`cfg(2.0) \| apg(eta=0.5)`" in page
    assert page.count("FID") == page.count("are no FID") == 1
    assert command(found) in page
    for picture in ("grid.png", "pareto.png"):
        with Image.open(folder / picture) as image:
            image.verify()
    assert not list(folder.rglob("*.tmp"))


def test_every_row_of_the_table_has_as_many_cells_as_its_head(found):
    page = (found.folder / "compare.md").read_text()
    lines = [x.replace(r"\|", "") for x in page.splitlines() if x.startswith("|")]
    assert len(lines) == 4
    assert len({x.count("|") for x in lines}) == 1


def test_a_finished_run_is_measured_again_without_sampling(found, model, monkeypatch):
    before = {f: f.stat().st_mtime_ns for f in chunks(found.folder)}
    assert len(before) == 6  # 12 samples in chunks of 5, two guides
    monkeypatch.setattr("fairlead.studies.compare.sample", None)
    again = compare(model, GUIDES, found.folder, **SETTINGS)
    assert [r.metrics for r in again.rows] == [r.metrics for r in found.rows]
    assert {f: f.stat().st_mtime_ns for f in chunks(found.folder)} == before


def test_interrupt_keeps_finished_chunks_and_the_next_run_continues(found, model, tmp_path):
    stop = Stop(at=4)  # the start of the guide, two steps of a chunk, and into the second
    with pytest.raises(KeyboardInterrupt):
        compare(model, GUIDES, tmp_path, progress=stop, **SETTINGS)
    assert Samples.count(tmp_path) == 5
    assert not (tmp_path / "compare.json").exists()
    (kept,) = chunks(tmp_path)
    before = kept.stat().st_mtime_ns

    resumed = Stop()
    result = compare(model, GUIDES, tmp_path, progress=resumed, **SETTINGS)
    assert kept.stat().st_mtime_ns == before
    total = 12 * (1 + 2)
    assert resumed.seen[0] == ("none", 5, total)
    assert resumed.seen[-1] == ("measuring", total, total)
    done = [d for _, d, _ in resumed.seen]
    assert done == sorted(done)
    assert [r.metrics for r in result.rows] == [r.metrics for r in found.rows]


@pytest.mark.parametrize("harm", ["deleted", "truncated", "draft"])
def test_a_lost_or_damaged_chunk_is_made_again(found, model, tmp_path, harm):
    compare(model, GUIDES[:1], tmp_path, **SETTINGS)
    last = chunks(tmp_path)[-1]
    whole = last.read_bytes()
    if harm == "truncated":
        last.write_bytes(whole[:-7])
    else:
        last.unlink()
    if harm == "draft":  # killed before the rename
        last.with_suffix(".tmp").write_bytes(whole[:50])
    result = compare(model, GUIDES[:1], tmp_path, **SETTINGS)
    assert result.rows[0].metrics == found.rows[0].metrics
    assert chunks(tmp_path)[-1] == last


def test_samples_and_guides_can_be_added_with_another_chunk_size(found, model, tmp_path):
    few = {**SETTINGS, "n": 7, "chunk": 4}
    compare(model, GUIDES[:1], tmp_path, **few)
    names = [f.name for f in chunks(tmp_path)]
    assert names == ["000000-000004.safetensors", "000004-000007.safetensors"]
    more = compare(model, GUIDES, tmp_path, **SETTINGS)
    assert [r.guide for r in more.rows] == [r.guide for r in found.rows]
    for ours, theirs in zip(more.rows, found.rows, strict=True):
        assert ours.metrics["fd"].value == pytest.approx(theirs.metrics["fd"].value, rel=1e-4)
    fewer = compare(model, GUIDES[:1], tmp_path, **few)
    assert fewer.rows[0].n == 7


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("seed", 1, "seed = 0, not 1"),
        ("steps", 3, "steps = 2, not 3"),
        ("sampler", "heun", "sampler = euler, not heun"),
        ("precision", "bfloat16", "precision = float32, not bfloat16"),
    ],
)
def test_settings_are_not_mixed(found, model, setting, value, says):
    before = chunks(found.folder)
    with pytest.raises(ValueError, match=says):
        compare(model, GUIDES, found.folder, **{**SETTINGS, setting: value})
    assert chunks(found.folder) == before


def test_other_weights_under_the_same_name_are_not_mixed(model, tmp_path):
    network = fl.load(model).network
    same = fingerprint(network)
    assert same == fingerprint(fl.load(model).network)
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-3
    assert fingerprint(network) != same


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n": 5}, "n must be at least 6, got 5"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"precision": "float8"}, "precision must be one of float32, bfloat16"),
        ({"sampler": "huen"}, "did you mean 'heun'"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(model, tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        compare(model, GUIDES, tmp_path / "out", **{**SETTINGS, **change})
    assert not (tmp_path / "out").exists()


def test_guides_must_differ_and_be_there(model, tmp_path):
    with pytest.raises(ValueError, match=r"'cfg\(2.0\)' is given twice"):
        compare(model, ["cfg(2)", "cfg(2.0)"], tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match="at least one guide"):
        compare(model, [], tmp_path, **SETTINGS)


def test_output_under_a_file_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(zoo, "load", None)
    with pytest.raises(ValueError, match="cannot write to"):
        compare("digits", GUIDES, tmp_path / "file" / "out", **SETTINGS)


def test_a_picture_cannot_be_a_folder(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        require_writable(tmp_path, folder=False)


def test_missing_indices_by_hand(tmp_path):
    samples = Samples(tmp_path, {"seed": 0}, (2,))
    for rows in (range(3, 5), range(8, 9)):
        samples.save("g", rows, torch.zeros(len(rows), 2), torch.ones(len(rows)), 1.0)
    assert samples.missing("g", 10, 3) == [
        range(0, 3),
        range(5, 8),
        range(9, 10),
    ]
    assert samples.missing("g", 4, 2) == [range(0, 2), range(2, 3)]
    assert samples.missing("h", 2, 9) == [range(0, 2)]


def test_front_by_hand():
    points = [(2, 5.0), (1, 6.0), (3, 5.5), (4, 1.0), (1, 7.0)]
    rows = [Row(str(i), 9, c, 0.0, {"fd": Estimate(v)}) for i, (c, v) in enumerate(points)]
    assert front(rows) == [1, 0, 3]


def test_json_has_no_nan():
    assert json.loads(to_json({"a": [math.nan, math.inf, 1.5]})) == {"a": [None, None, 1.5]}


def test_pictures_map_the_range_to_bytes():
    x = torch.tensor([-1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 2, 2)
    (picture,) = pictures(x, scale=2)
    assert picture.size == (4, 4)
    assert [picture.getpixel((2 * i, 2 * j))[0] for j in (0, 1) for i in (0, 1)] == [
        0,
        128,  # 127.5 to the even neighbour
        255,
        255,
    ]
    with pytest.raises(ValueError, match=r"C = 1 or 3, got \(1, 4, 2, 2\)"):
        pictures(torch.zeros(1, 4, 2, 2))


def test_grid_places_images_row_by_row():
    x = torch.full((3, 1, 64, 64), -1.0)
    x[2] = 0.0
    made = grid([("", x)], columns=2)
    assert made.size == (2 + 2 * 66, 2 + 2 * 66)
    assert made.getpixel((30, 30)) == (0, 0, 0)
    assert made.getpixel((30, 96)) == (128, 128, 128)
    assert made.getpixel((96, 96)) == (255, 255, 255)  # no fourth image
