"""`fairlead steer` and `fairlead compare --pipeline` on a folder of a tiny pipeline."""

import json
import pickle
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from scipy.io import wavfile
from typer.testing import CliRunner

import fairlead as fl
from fairlead.adapters.diffusers.local import load_pipeline
from fairlead.cli import app
from fairlead.testing.pipelines import tiny_pipeline

SMALL = ("--steps", 2, "--height", 16, "--width", 16)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tiny_pipeline(name).save_pretrained(made[name])
        return made[name]

    return folder


@pytest.fixture
def copy(folders, tmp_path):
    """A copy of a pipeline's folder, to be spoiled."""
    return shutil.copytree(folders("sd"), tmp_path / "pipeline")


def invoke(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def refused(result, *says):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for words in says:
        assert words in result.stderr
    return result


def opened(path):
    """A picture, with its file closed."""
    with Image.open(path) as picture:
        picture.load()
        return picture


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemError('a pickle was opened')",))


class TestSteer:
    def test_a_picture_is_what_the_pipeline_makes(self, folders, tmp_path):
        out = tmp_path / "a.png"
        result = invoke(
            *("steer", folders("sd"), "--prompt", "a ship", "--negative", "fog", *SMALL),
            *("--guide", "cfg(4)", "--seed", 3, "--out", out),
        )
        assert result.exit_code == 0, result.output
        assert "StableDiffusionPipeline under cfg(4.0): 4 network evaluations" in result.stdout
        pipe = DiffusionPipeline.from_pretrained(folders("sd"), local_files_only=True)
        made = pipe(
            "a ship",
            negative_prompt="fog",
            guidance_scale=4.0,
            num_inference_steps=2,
            height=16,
            width=16,
            generator=torch.Generator().manual_seed(3),
        ).images[0]
        assert opened(out).tobytes() == made.tobytes()

    def test_results_count_up_from_the_seed(self, folders, tmp_path):
        words = ("steer", folders("sd"), "--prompt", "a ship", *SMALL, "--guide", "cfg(4) | apg()")
        result = invoke(*words, "-n", 2, "--json", "--out", tmp_path / "a.png")
        report = json.loads(result.stdout)
        assert [f[-7:] for f in report["files"]] == ["a-0.png", "a-1.png"]
        assert report["guide"] == "cfg(4.0) | apg()"
        assert [r["nfe"] for r in report["reports"]] == [4, 4]
        assert invoke(*words, "--seed", 1, "--out", tmp_path / "b.png").exit_code == 0
        first, second, alone = (
            opened(tmp_path / f"{n}.png").tobytes() for n in ("a-0", "a-1", "b")
        )
        assert second == alone
        assert first != second

    def test_states_and_description(self, folders, tmp_path):
        result = invoke(
            *("steer", folders("sd"), "--prompt", "a ship", *SMALL, "--state", "negative=fog"),
            *("--guide", "cfg(4) + perp_neg(2)", "--describe", "--out", tmp_path / "a.png"),
        )
        assert result.exit_code == 0, result.output
        assert "perp_neg" in result.stdout
        assert "negative" in result.stdout

    def test_a_corrector_and_a_limit(self, folders, tmp_path):
        words = (
            "steer",
            folders("sd"),
            "--prompt",
            "a ship",
            *SMALL,
            "--guide",
            "cfg(4)",
            "--json",
        )
        made = invoke(*words, "--sampler", "pcg(langevin=2)", "--out", tmp_path / "a.png")
        assert json.loads(made.stdout)["reports"][0]["nfe"] == 2 + 2 * 2
        made = invoke(*words, "--max-batch", 1, "--out", tmp_path / "b.png")
        report = json.loads(made.stdout)["reports"][0]
        assert (report["nfe"], report["calls"]) == (4, 4)

    def test_it_starts_from_a_picture(self, folders, tmp_path):
        Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
        words = ("steer", folders("sd_img2img"), "--prompt", "a ship", "--steps", 4)
        result = invoke(*words, "--image", tmp_path / "red.png", "--out", tmp_path / "a.png")
        assert result.exit_code == 0, result.output
        refused(
            invoke(*words, "--image", tmp_path / "none.png", "--out", tmp_path / "b.png"),
            "cannot read the picture",
        )

    def test_a_video_moves(self, folders, tmp_path):
        out = tmp_path / "a.gif"
        words = ("steer", folders("wan"), "--prompt", "a ship", *SMALL, "--frames", 5)
        result = invoke(*words, "--guide", "cfg(4)", "--out", out)
        assert result.exit_code == 0, result.output
        with Image.open(out) as video:
            assert video.n_frames == 5
        refused(invoke(*words, "--out", tmp_path / "a.png"), "makes video", ".gif")

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_sound_sounds(self, folders, tmp_path):
        out = tmp_path / "a.wav"
        result = invoke(
            "steer", folders("stable_audio"), "--prompt", "a bell", "--steps", 2, "--out", out
        )
        assert result.exit_code == 0, result.output
        rate, samples = wavfile.read(out)
        assert rate == 4
        assert samples.shape[1] == 2
        assert samples.any()

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (("--guide", "cgf(2)"), "did you mean"),
            (("--state", "fog"), "NAME=TEXT"),
            (("-n", 0), "n must be at least 1"),
            (("--frames", 3), "StableDiffusionPipeline takes no num_frames"),
            (("--precision", "int8"), "precision"),
            (("--sampler", "heun"), "sampler must be pcg(...)"),
            (("--max-batch", 0), "max_batch must be a whole number of at least 1"),
            (("--guide", "cfg(2, against='other')"), "'other'"),
            (("--guide", "pag(2, layers='nowhere')"), "nowhere"),
        ],
    )
    def test_bad_options_are_refused(self, folders, tmp_path, words, says):
        out = tmp_path / "a.png"
        result = invoke("steer", folders("sd"), "--prompt", "a ship", *SMALL, *words, "--out", out)
        refused(result, says)
        assert not out.exists()


class TestFolders:
    def test_ids_of_a_hub_are_refused(self, tmp_path):
        result = invoke("steer", "someone/model", "--prompt", "a", "--out", tmp_path / "a.png")
        refused(result, "someone/model is no folder on this machine", "download")

    def test_a_folder_without_an_index_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"has no model_index\.json"):
            load_pipeline(tmp_path)
        (tmp_path / "model_index.json").write_text("{")
        with pytest.raises(ValueError, match="is no JSON"):
            load_pipeline(tmp_path)

    def test_pickled_weights_alone_are_refused(self, copy):
        (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        bomb = copy / "unet" / "diffusion_pytorch_model.bin"
        bomb.write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ValueError, match=r"model\.bin can run code when it is loaded"):
            load_pipeline(copy)

    def test_pickles_beside_safetensors_are_not_opened(self, copy):
        for name in ("unet/diffusion_pytorch_model", "text_encoder/pytorch_model"):
            (copy / f"{name}.bin").write_bytes(pickle.dumps(Bomb()))
        assert type(load_pipeline(copy)).__name__ == "StableDiffusionPipeline"

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"_class_name": ["mine", "Pipeline"]}, "code that a folder brings is not run"),
            ({"_class_name": "MyPipeline"}, "is no pipeline of diffusers"),
            ({"unet": ["os", "system"]}, "unet comes from 'os'"),
            ({"unet": ["mine", "Unet"]}, "unet comes from 'mine'"),
        ],
    )
    def test_code_of_its_own_is_refused(self, copy, changes, says):
        index = copy / "model_index.json"
        index.write_text(json.dumps({**json.loads(index.read_text()), **changes}))
        with pytest.raises(ValueError, match=says):
            load_pipeline(copy)

    def test_dtype_and_weights_come_through(self, folders):
        pipe = load_pipeline(folders("sd"), dtype=torch.bfloat16)
        assert pipe.unet.dtype == torch.bfloat16
        want = tiny_pipeline("sd").unet.state_dict()
        got = load_pipeline(folders("sd")).unet.state_dict()
        assert all(torch.equal(got[k], v) for k, v in want.items())


class TestCompare:
    def test_guides_and_scales_make_a_grid(self, folders, tmp_path):
        words = ("compare", "--pipeline", folders("sd"), "--prompt", "a ship", *SMALL)
        guides = ("--guide", "cfg({w})", "--guide", "cfg({w}) | apg(eta=0)")
        scales = ("--scale", 1, "--scale", 4)
        result = invoke(*words, *guides, *scales, "-n", 2, "--json", "--out", tmp_path)
        assert result.exit_code == 0, result.output
        shots = json.loads(result.stdout)
        assert len(shots) == 2 * 2 * 2
        assert [s["nfe"] for s in shots] == [2, 2, 4, 4] * 2
        assert [s["moved"] == 0 for s in shots] == [True, True, False, False] * 2
        assert json.loads((tmp_path / "compare.json").read_text()) == shots
        assert "| `cfg({w}) \\| apg(eta=0)` | 4 | 4 |" in (tmp_path / "compare.md").read_text()
        assert all(opened(tmp_path / s["file"]).size == (16, 16) for s in shots)
        grid = opened(tmp_path / "grid.png")
        assert grid.height > 4 * 64  # two blocks of two rows
        pipe = load_pipeline(folders("sd"))
        with fl.steer(pipe, "cfg(4)"):
            alone = pipe(
                "a ship",
                num_inference_steps=2,
                height=16,
                width=16,
                generator=torch.Generator().manual_seed(1),
            ).images[0]
        assert opened(tmp_path / shots[3]["file"]).tobytes() == alone.tobytes()

    def test_a_stopped_run_goes_on(self, folders, tmp_path, monkeypatch):
        from fairlead.studies import pictures

        pipe, own, made = load_pipeline(folders("sd")), pictures.generate, []
        pipe.set_progress_bar_config(disable=True)

        def stopping(pipe, seed, arguments):
            if len(made) == 3:
                raise KeyboardInterrupt
            made.append((seed, arguments["prompt"]))
            return own(pipe, seed, arguments)

        def run(folder, guides=("cfg({w})", "cfg({w}) | apg(eta=0)"), **changes):
            given = {"num_inference_steps": 2, "height": 16, "width": 16}
            options = {"scales": (1, 4), "arguments": given, **changes}
            return pictures.compare_pictures(pipe, guides, ["a ship"], folder, **options)

        monkeypatch.setattr(pictures, "generate", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "a")
        assert pictures.count(tmp_path / "a") == 3
        before = {f: f.stat().st_mtime_ns for f in (tmp_path / "a/samples").glob("*.png")}
        monkeypatch.setattr(pictures, "generate", lambda *a: made.append(a) or own(*a))
        resumed = run(tmp_path / "a")
        assert len(made) == 4
        assert all(f.stat().st_mtime_ns == t for f, t in before.items())
        whole = run(tmp_path / "b")
        assert len(made) == 8
        for a, b in zip(resumed, whole, strict=True):
            left, right = (opened(tmp_path / n / s.file) for n, s in (("a", a), ("b", b)))
            assert left.tobytes() == right.tobytes()
            assert (a.guide, a.scale, a.nfe, a.moved) == (b.guide, b.scale, b.nfe, b.moved)
        assert (
            opened(tmp_path / "a/grid.png").tobytes() == opened(tmp_path / "b/grid.png").tobytes()
        )
        assert run(tmp_path / "a") == resumed
        damaged = tmp_path / "a" / resumed[1].file
        damaged.write_bytes(damaged.read_bytes()[:100])
        (tmp_path / "a" / resumed[2].file).with_suffix(".json").write_text("{")
        assert run(tmp_path / "a")[1].moved == resumed[1].moved
        assert len(made) == 10
        added = run(tmp_path / "a", ("cfg({w})", "cfg({w}) | rescale(0.7)"), n=2)
        assert len(made) == 10 + 6
        assert added[0] == resumed[0]
        with pytest.raises(ValueError, match="holds samples made with sampler = None"):
            run(tmp_path / "a", sampler="pcg")

    def test_an_interrupt_says_how_to_go_on(self, folders, tmp_path, monkeypatch):
        from fairlead.studies import pictures

        def stop(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(pictures, "generate", stop)
        result = invoke(
            *("compare", "--pipeline", folders("sd"), "--prompt", "a ship", "--guide", "none"),
            *(*SMALL, "--out", tmp_path),
        )
        assert result.exit_code == 130
        assert "0 pictures are kept" in result.stderr
        assert "same command again to continue" in result.stderr
        monkeypatch.undo()
        words = ("compare", "--pipeline", folders("sd"), "--guide", "none", *SMALL)
        result = invoke(*words, "--prompt", "a ship", "--out", tmp_path)
        assert result.exit_code == 0, result.output
        changed = invoke(*words[:-4], "--steps", 3, "--prompt", "a ship", "--out", tmp_path)
        refused(changed, "holds samples made with arguments", "name another folder")

    def test_guides_alone_make_a_table(self, folders, tmp_path):
        result = invoke(
            *("compare", "--pipeline", folders("sd"), "--prompt", "a ship", "--prompt", "fog"),
            *("--guide", "none", "--guide", "cfg(4)", *SMALL, "--out", tmp_path),
        )
        assert result.exit_code == 0, result.output
        assert "cfg(4)" in result.stdout
        assert (tmp_path / "grid.png").exists()

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (
                ("--guide", "none", "--model", "digits", "--pipeline", "sd"),
                "either --model or --pipeline",
            ),
            (("--preset", "rules", "--pipeline", "sd", "--prompt", "a"), "name guides"),
            (("--guide", "none", "--model", "digits", "--prompt", "a"), "goes with --pipeline"),
            (("--guide", "none", "--model", "digits", "--max-batch", 2), "goes with --pipeline"),
            (
                ("--pipeline", "sd", "--prompt", "a", "--guide", "none", "--sampler", "heun"),
                "sampler must be pcg(...)",
            ),
            (("--pipeline", "sd", "--guide", "none"), "at least one --prompt"),
            (("--pipeline", "sd", "--prompt", "a", "--guide", "cfg({w})"), "none is given"),
            (
                ("--pipeline", "sd", "--prompt", "a", "--guide", "none", "--scale", 2),
                "has no place for them",
            ),
            (("--pipeline", "wan", "--prompt", "a", "--guide", "none"), "makes video"),
            (("--pipeline", "sd", "--prompt", "a", "--guide", "none", "-n", 0), "at least 1"),
        ],
    )
    def test_bad_options_are_refused(self, folders, tmp_path, words, says):
        named = [folders(w) if w in ("sd", "wan") else w for w in words]
        refused(invoke("compare", *named, "--out", tmp_path / "out"), says)
