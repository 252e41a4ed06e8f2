"""The command line: output for people and for machines, errors, exit codes."""

import json
import subprocess
import sys
import warnings

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import fairlead as fl
from fairlead.cli import app
from fairlead.cli.common import command
from fairlead.methods import methods, section
from fairlead.models import zoo
from fairlead.samplers import SAMPLERS
from fairlead.studies import claims

COMMANDS = ["sample", "compare", "steer", "methods", "models", "train", "molecules", "claims"]
KINDS = {"term", "rule", "schedule", "policy", "sampler", "token sampler", "recipe"}
KINDS |= {"loss", "metric", "constraint"}
RESULT = {
    "name": "cfg",
    "ids": ["S006"],
    "claim": "It guides.",
    "setting": "a Gaussian",
    "measured": {"mean": 1.25},
    "expected": "1.25",
    "verdict": "reproduced",
    "seconds": 0.5,
    "seed": 0,
    "nfe": 8,
    "error": None,
}


def invoke(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def refused(result, *says, code=2):
    """One error on stderr, nothing on stdout, no traceback."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for words in says:
        assert words in result.stderr
    return result


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name):
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert f"Example: fairlead {name}" in result.stdout


def test_help_lists_all_commands():
    result = invoke("--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in COMMANDS)


def test_version():
    assert invoke("--version").stdout == f"fairlead {fl.__version__}\n"


def test_python_dash_m():
    done = subprocess.run(
        [sys.executable, "-m", "fairlead", "--version"], capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == (f"fairlead {fl.__version__}\n", 0), done.stderr


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line(capsys):
    command(lambda: warnings.warn("mind [the] gap", stacklevel=2))()
    assert capsys.readouterr().err == "warning: mind [the] gap\n"


class TestMethods:
    def test_json_has_every_method_once(self):
        rows = json.loads(invoke("methods", "--json").stdout)
        assert rows == methods()
        names = [r["name"] for r in rows]
        assert len(set(names)) == len(names)
        assert {"cfg", "apg", "interval", "adaptive", *SAMPLERS} <= set(names)
        for r in rows:
            assert {"name", "ids", "kind", "domains", "nfe", "neutral", "source"} <= r.keys()
            assert r["kind"] in KINDS
            assert r["domains"]
            assert r["source"], r["name"]
            assert r["summary"].endswith("."), r["name"]

    def test_values_of_three_by_hand(self):
        rows = {r["name"]: r for r in methods()}
        assert (rows["cfg"]["nfe"], rows["cfg"]["neutral"], rows["cfg"]["kind"]) == (
            1,
            "1.0",
            "term",
        )
        assert rows["cfg"]["domains"] == ["continuous", "logprob", "posterior", "rates", "simplex"]
        assert "arXiv:2207.12598" in rows["cfg"]["source"]
        assert rows["heun"]["nfe"] == 2
        assert rows["apg"]["nfe"] == 0

    def test_table_stays_readable_however_long_it_grows(self, monkeypatch):
        for columns in (80, 140):
            monkeypatch.setenv("COLUMNS", str(columns))
            result = invoke("methods")
            assert result.exit_code == 0
            assert max(map(len, result.stdout.splitlines())) <= columns
            for row in methods():
                lines = result.stdout.splitlines()
                line = next(x for x in lines if x.startswith(f"  {row['name']} "))
                assert " ".join(row["summary"].split()[:2]) in line
                assert not row["ids"] or row["ids"][0] in line

    def test_section_is_read_to_its_end(self):
        class Two:
            """A line.

            Source:
                One (2020),
                two.

            Raises:
                ValueError: Never.
            """

        class Inline:
            """A line.

            Source: One (2020).
            """

        assert section(Two, "Source") == "One (2020), two."
        assert section(Inline, "Source") == "One (2020)."
        assert section(type("Bare", (), {}), "Source") == ""


def test_models():
    cards = json.loads(invoke("models", "--json").stdout)
    assert cards == zoo.models()
    assert "cifar10" in invoke("models").stdout


class TestSample:
    def test_picture_has_a_row_for_each_class(self, model, tmp_path):
        out = tmp_path / "new" / "grid.png"
        result = invoke("sample", model, "--guide", "cfg(2)", "-n", 4, "--steps", 2, "--out", out)
        assert result.exit_code == 0, result.output
        assert "6 network evaluations" in result.stdout  # Heun: 2 + 1, two branches
        with Image.open(out) as image:
            # four classes of one sample each, 8 pixels enlarged 8 times, gaps of 2, and a title
            assert image.height == 4 * 66 + 22 + 2

    def test_json_tensor_and_classes(self, model, tmp_path):
        words = ["--steps", 2, "-n", 5, "--class", "seven", "--label", 3, "--seed", 4, "--json"]
        tensor = tmp_path / "x.safetensors"
        result = invoke(
            "sample", model, *words, "--out", tmp_path / "g.png", "--tensor", tensor, "--describe"
        )
        assert result.exit_code == 0, result.output
        said = json.loads(result.stdout)
        assert said["labels"] == [3, 7, 3, 7, 3]
        assert said["classes"] == ["three", "seven"]
        assert said["nfe"] == [3] * 5
        assert said["describe"]["run"]
        kept = load_file(tensor)
        plain = fl.sample(
            fl.load(model), {"label": torch.tensor([3, 7, 3, 7, 3])}, steps=2, n=5, seed=4
        )
        assert torch.equal(kept["x"], plain.x)
        assert kept["label"].tolist() == said["labels"]

    def test_describe_prints_norms(self, model, tmp_path):
        words = ["-n", 2, "--steps", 1, "--guide", "cfg(3)", "--describe", "--out"]
        result = invoke("sample", model, *words, tmp_path / "g.png")
        assert "|cfg(3.0)|" in result.stdout

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--guide", "cgf(2)"], ["unknown name 'cgf'", "'cfg'", "^"]),
            (["--guide", "cfg(2) | agp()"], ["unknown name 'agp'", "'apg'"]),
            (["--guide", "cfg('a')"], ["error: cfg"]),
            (["--guide", "cfg(nan)"], ["cfg: w must be in"]),
            (["--guide", "cfg(2"], ["error: guide"]),
            (["--sampler", "huen"], ["did you mean 'heun'"]),
            (["--class", "sevn"], ["got 'sevn'", "did you mean 'seven'"]),
            (["--label", "10"], ["label must be in 0..9, got 10"]),
            (["-n", "0"], ["n must be at least 1, got 0"]),
            (["--steps", "0"], ["steps must be a whole number of at least 1, got 0"]),
            (["--precision", "half"], ["precision must be one of float32, bfloat16"]),
        ],
    )
    def test_errors(self, model, tmp_path, words, says):
        result = invoke("sample", model, "--steps", 1, "--out", tmp_path / "g.png", *words)
        refused(result, *says)
        assert not (tmp_path / "g.png").exists()

    def test_unknown_model_has_the_nearest(self, tmp_path):
        result = invoke("sample", "cifar100", "--out", tmp_path / "g.png")
        refused(result, "unknown model 'cifar100'", "'cifar10'")

    def test_output_is_checked_before_the_model_is_loaded(self, tmp_path, monkeypatch):
        monkeypatch.setattr(zoo, "load", None)
        (tmp_path / "file").write_text("")
        refused(invoke("sample", "x", "--out", tmp_path / "file" / "g.png"), "cannot write to")
        refused(invoke("sample", "x", "--out", tmp_path / "g.gif"), "must end in .png")

    def test_interrupt_keeps_the_tensor(self, model, tmp_path, monkeypatch):
        sample = fl.sampling.sample

        def interrupted(*args, callback, **kwargs):
            def press(step):
                callback(step)
                raise KeyboardInterrupt

            return sample(*args, callback=press, **kwargs)

        monkeypatch.setattr("fairlead.sampling.sample", interrupted)
        out, tensor = tmp_path / "g.png", tmp_path / "x.safetensors"
        result = invoke("sample", model, "-n", 2, "--out", out, "--tensor", tensor)
        refused(result, "interrupted", "unfinished samples are in", code=130)
        assert load_file(tensor)["x"].shape == (2, 1, 8, 8)
        assert not out.exists()

    def test_traceback_on_request(self, tmp_path):
        result = invoke("--traceback", "sample", "cifar100", "--out", tmp_path / "g.png")
        assert isinstance(result.exception, ValueError)


class TestCompare:
    def run(self, model, out, *words):
        base = ["compare", "--model", model, "--guide", "none", "--guide", "cfg(2)"]
        return invoke(*base, "-n", 8, "--steps", 2, "--chunk", 4, "--out", out, *words)

    def test_json_is_what_the_file_holds(self, model, tmp_path):
        result = self.run(model, tmp_path, "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout) == json.loads((tmp_path / "compare.json").read_text())
        assert result.stderr.startswith("comparing none, cfg(2) on ")
        table = self.run(model, tmp_path)
        assert "cfg(2.0)" in table.stdout
        assert "digits feature network" in table.stdout
        refused(self.run(model, tmp_path, "--seed", 5), "seed = 0, not 5")

    def test_interrupt_says_how_to_continue(self, model, tmp_path, monkeypatch):
        calls = []
        sample = fl.sampling.sample

        def interrupted(*args, **kwargs):
            calls.append(kwargs["first"])
            if len(calls) == 2:
                raise KeyboardInterrupt
            return sample(*args, **kwargs)

        monkeypatch.setattr("fairlead.studies.compare.sample", interrupted)
        result = self.run(model, tmp_path)
        refused(result, "4 samples are kept", "same command again to continue", code=130)
        result = self.run(model, tmp_path, "--json")
        assert result.exit_code == 0, result.output
        assert calls == [0, 4, 4, 0, 4]

    def test_errors(self, model, tmp_path):
        (tmp_path / "file").write_text("")
        refused(self.run(model, tmp_path / "file" / "out", "--json"), "cannot write to")
        refused(self.run(model, tmp_path, "--guide", "cfg(2.0)"), "given twice")
        refused(self.run(model, tmp_path, "--guide", "cfg('a')"), "cfg")


class TestTrain:
    def test_classifier(self, tmp_path):
        words = ["--out", tmp_path, "--minutes", 0.005, "--json"]
        result = invoke("train", "digits-classifier", *words)
        assert result.exit_code == 0, result.output
        said = json.loads(result.stdout)
        assert zoo.classifier(said["models"][0]).config["size"] == 8

    def test_model_is_exported_and_loads(self, tmp_path):
        result = invoke("train", "digits", "--out", tmp_path, "--minutes", 0.03)
        assert result.exit_code == 0, result.output
        path = tmp_path / "models" / "digits.safetensors"
        assert str(path) in result.stdout.replace("\n", "")
        assert fl.load(path).shape == (1, 8, 8)

    def test_errors(self, tmp_path):
        refused(invoke("train", "digit", "--out", tmp_path), "did you mean 'digits'")
        refused(invoke("train", "digits", "--out", tmp_path, "--minutes", -1), "positive")
        data = ["--data", tmp_path / "none"]
        refused(invoke("train", "cifar10", "--out", tmp_path, *data), "no CIFAR-10")

    def test_interrupt_says_how_to_continue(self, tmp_path, monkeypatch):
        def pressed(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("fairlead.training.run", pressed)
        result = invoke("train", "digits", "--out", tmp_path)
        refused(result, "same command again to continue", code=130)


class TestClaims:
    @pytest.fixture(autouse=True)
    def _study(self, monkeypatch):
        self.recorded = []

        def run(names, progress, *, save, resume):
            progress("running")
            results = [{**RESULT, "name": name} for name in names or ["cfg", "apg"]]
            self.recorded += results if save else []
            return results

        monkeypatch.setattr(claims, "run", run)
        monkeypatch.setattr(claims, "recorded", lambda: [RESULT])

    def test_list_runs_nothing(self, monkeypatch):
        monkeypatch.setattr(claims, "run", None)
        assert json.loads(invoke("claims", "--list", "--json").stdout) == [RESULT]
        assert json.loads(invoke("claims", "apg", "--list", "--json").stdout) == []
        assert "reproduced" in invoke("claims", "--list").stdout

    def test_run_prints_progress_to_stderr_and_records_when_asked(self):
        result = invoke("claims", "apg", "--json")
        assert [r["name"] for r in json.loads(result.stdout)] == ["apg"]
        assert "running" in result.stderr
        assert self.recorded == []
        assert invoke("claims", "--record").exit_code == 0
        assert [r["name"] for r in self.recorded] == ["cfg", "apg"]

    def test_errors(self):
        refused(invoke("claims", "treshold"), "'threshold'")
        refused(invoke("claims", "--list", "--record"), "nothing to --record")


class TestMolecules:
    @pytest.fixture(autouse=True)
    def _rdkit(self):
        pytest.importorskip("rdkit")

    def test_json_has_the_counts_and_the_smiles(self, tmp_path):
        out = tmp_path / "smiles.txt"
        words = ["--guide", "cfg(2)", "--qed", 9, "-n", 3, "--steps", 2, "--out", out, "--json"]
        result = invoke("molecules", "qm9-masked", *words)
        assert result.exit_code == 0, result.output
        said = json.loads(result.stdout)
        assert said["nfe"] == [4, 4, 4]
        assert said["report"]["n"] == 3
        assert said["asked"] == {"qed": 9}
        assert out.read_text().splitlines() == said["smiles"]

    def test_what_does_not_parse_is_counted(self, monkeypatch):
        texts = ["C((", "", "\0"]
        monkeypatch.setattr(fl.discrete.TokenDenoiser, "decode", lambda *_: texts)
        words = ["qm9-masked", "-n", 3, "--steps", 1]
        said = json.loads(invoke("molecules", *words, "--json").stdout)["report"]
        assert (said["n"], said["valid"], said["novel"], said["qed"]) == (3, 0, 0, None)
        result = invoke("molecules", *words)
        assert result.exit_code == 0, result.output
        assert "C((" in result.stdout

    def test_classifier_is_told_what_is_asked_for(self):
        words = ["--guide", "dcbg('rings', 2)", "--rings", 3, "--unconditional", "-n", 2]
        result = invoke("molecules", "qm9-uniform", *words, "--steps", 2)
        assert result.exit_code == 0, result.output
        assert "valid" in result.stdout

    def test_errors(self):
        refused(invoke("molecules", "digits"), "digits is no model of molecules")
        refused(invoke("molecules", "qm9-maskd"), "'qm9-masked'")
        refused(invoke("molecules", "qm9-masked", "--qed", 10), "qed must be in [0, 9], got 10")
        refused(invoke("molecules", "qm9-masked", "--guide", "cfg('a')"), "cfg")
        refused(invoke("molecules", "qm9-masked", "--space", "rates"), "space must be one of clean")
        refused(invoke("molecules", "qm9-masked", "--guide", "dcbg('qed')"), "energy 'qed'")
