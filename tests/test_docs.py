"""What the documentation says runs: docstrings, pages, README and examples."""

import doctest
import importlib
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fairlead as fl
from fairlead.discrete.sampler import TOKEN_SAMPLERS
from fairlead.guidance.algebra import REGISTRY
from fairlead.guidance.recipes import RECIPES, TOOLS
from fairlead.samplers import SAMPLERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
PACKAGES = ("energy", "guidance", "samplers", "exact", "models", "testing")
MODULES = (
    "fairlead",
    "fairlead.sampling",
    "fairlead.denoiser",
    "fairlead.condition",
    "fairlead.attention",
    "fairlead.selection",
)


def modules() -> list[str]:
    found = [*MODULES, "fairlead.methods"]
    for package in PACKAGES:
        name = f"fairlead.{package}"
        found.append(name)
        path = importlib.import_module(name).__path__
        found += [m.name for m in pkgutil.walk_packages(path, f"{name}.")]
    return found


@pytest.mark.parametrize("name", modules())
def test_docstrings_run(name):
    module = importlib.import_module(name)
    # docstrings written as in a user's file see torch and fl, as a user would import them
    names = {**vars(module), "torch": importlib.import_module("torch"), "fl": fl}
    failed, _ = doctest.testmod(module, globs=names)
    assert not failed


@pytest.mark.parametrize("name", [*REGISTRY, *SAMPLERS])
def test_every_method_documents_itself(name):
    doc = (REGISTRY.get(name) or SAMPLERS[name]).__doc__
    assert "Source:" in doc
    assert name in SAMPLERS or ">>> " in doc


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.rst")), ids=lambda p: p.stem)
def test_pages_run(page):
    failed, _ = doctest.testfile(str(page), module_relative=False)
    assert not failed


def test_guides_to_choose_from_are_guides():
    page = (ROOT / "docs/choose.rst").read_text()
    quoted = [re.sub(r"\bw\b", "2", t) for t in re.findall(r"``([^`]+)``", page)]
    names = tuple(f"{name}(" for name in REGISTRY)
    guides = [text for text in quoted if text.startswith(names)]
    assert len(guides) > 12
    for text in guides:
        assert fl.guide(str(fl.guide(text))) == fl.guide(text)


def test_pages_hold_examples():
    tried = doctest.testfile(str(ROOT / "docs/concepts.rst"), module_relative=False).attempted
    assert tried > 20


def test_readme_snippet_runs_as_it_stands(capsys):
    snippet, _ = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    names = {}
    exec(compile(snippet, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert names["out"].x.shape == (2, 3, 32, 32)
    assert names["out"].x.isfinite().all()
    assert "29 network evaluations" in snippet
    assert names["out"].nfe.tolist() == [29, 29]
    assert "cfg(2.0)" in printed


def test_readme_steers_pipelines_and_language_models():
    from fairlead.testing.pipelines import tiny_pipeline

    _, snippet = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    model, tokenizer = fl.models.zoo.language("shakespeare-ar")
    names = {"fl": fl, "pipe": tiny_pipeline("sd"), "model": model, "tokenizer": tokenizer}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["image"].size[0] > 0
    assert names["text"].startswith("To be, or")


def commands(text: str) -> list[str]:
    """The lines of the code blocks that are no Python, and code in running text."""
    text = re.sub(r"```python\n.*?```", "", text, flags=re.S)
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, flags=re.S))
    inline = "\n".join(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S)))
    return [line.split("#")[0].strip() for line in f"{blocks}\n{inline}".splitlines()]


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["readme", "contributing"])
def test_make_targets_exist(text):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    named = [c.split()[1] for c in commands(text) if re.fullmatch(r"make [a-z]+", c)]
    assert len(named) >= 3
    assert set(named) <= set(targets)


def test_fairlead_commands_exist():
    from typer.main import get_command

    from fairlead.cli import app

    known = get_command(app).commands
    named = [c.split()[1] for c in commands(README) if c.startswith("fairlead ")]
    assert {"sample", "compare", "methods"} <= set(named) <= set(known)


def test_picture_is_the_one_of_the_command_beside_it():
    (command,) = [c for c in commands(README) if c.startswith("fairlead sample")]
    shown = re.search(r'<img src="([^"]+)"', README).group(1)
    assert command.endswith(f"--out {shown}")
    assert (ROOT / shown).exists()


def test_links_lead_somewhere():
    for text in (README, CONTRIBUTING):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert (ROOT / target).exists(), target


def test_readme_fits_a_screen_or_little_more():
    assert len(README.splitlines()) < 75


def test_changelog_names_every_method():
    assert not [n for n in [*REGISTRY, *SAMPLERS] if f"`{n}`" not in CHANGELOG]


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_example_of_a_method_conforms():
    first, *lines = run("examples/add_a_method.py").splitlines()
    assert first == "cfg(4.0) | halve(k=0.25)"
    assert len(lines) > 10
    assert {line.split(": ")[1].split()[0] for line in lines} <= {"passed", "skipped", "not"}


def test_example_of_a_method_by_hand():
    printed = run(
        "-c",
        "import sys; sys.path.insert(0, 'examples')\n"
        "import doctest, torch, fairlead as fl, add_a_method\n"
        "c, u = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, -2.0]])\n"
        "halved = fl.CFG(3.0) | add_a_method.Halve()\n"
        "print(fl.combine(halved, {'cond': c, 'null': u}).tolist())\n"
        "print(doctest.testmod(add_a_method).failed)",
    )
    assert printed.split("\n")[:2] == ["[[3.0, 2.0]]", "0"]  # (1, 0) + (4, 4) / 2


def test_example_of_a_sweep_runs():
    lines = run("examples/tune_guidance.py", "--n", "20", "--steps", "4").splitlines()
    costs = {line[:28].strip(): float(line[28:].split()[0]) for line in lines[1:]}
    assert costs["none"] == 4
    assert costs["cfg(2)"] == 8


def test_method_pages_come_from_the_registry(tmp_path):
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    (tmp_path / "gone.rst").write_text("a method that is no more")
    generate.write(tmp_path)
    pages = {p.stem for p in tmp_path.glob("*.rst")}
    assert pages == {*REGISTRY, *SAMPLERS, *TOKEN_SAMPLERS, *RECIPES, *TOOLS, "index"}
    page = (tmp_path / "adaptive.rst").read_text()
    assert "``[0, 1]``" in page  # the range of guard, from its annotation
    assert ".. autoclass:: fairlead.AdaptiveGuidance" in page
    claims = (tmp_path / "claims.inc").read_text()
    assert all(f".. _claim-{c['name']}:" in claims for c in generate.recorded())


def test_the_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "-q", "docs", str(tmp_path / "html")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "html" / "methods" / "cfg.html").exists()
