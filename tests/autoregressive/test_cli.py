"""`fairlead generate` on a local folder."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from fairlead.cli import app

WORDS = ["<pad>", "<end>", "to", "be", "or", "not", "that", "is"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("model")
    words = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>"
    ).save_pretrained(where)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(where)
    return where


def run(*arguments):
    return CliRunner().invoke(app, ["generate", *map(str, arguments)])


def test_json_and_text(folder):
    given = [folder, "--prompt", "to be", "--prompt", "or not to", "--tokens", 4]
    out = run(*given, "--guide", "cfg(2)", "--negative", "that is", "--json")
    assert out.exit_code == 0, out.output
    found = json.loads(out.stdout)
    assert len(found["texts"]) == 2
    assert found["texts"][0].startswith("to be")
    assert found["guide"] == "cfg(2.0)"
    assert 2 <= found["nfe"] <= 8
    texts = run(*given, "--sample", "-n", 2, "--seed", 3).stdout.splitlines()
    assert len(texts) == 4


def test_a_weaker_model(folder):
    guide = "contrastive(0.5) | plausible(0.1)"
    out = run(folder, "--prompt", "to", "--guide", guide, "--amateur", folder, "--tokens", 2)
    assert out.exit_code == 0, out.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", 0], "--tokens must be at least 1"),
        (["-n", 2], "needs --sample, or --beams 2"),
        (["-n", 0], "--beams and -n must be at least 1, got 1 and 0"),
        (["--beams", 0], "--beams and -n must be at least 1, got 0 and 1"),
        (["--sample", "--temperature", 0], "`temperature` (=0.0) has to be a strictly positive"),
        (["--sample", "--top-p", 2], "--top-p must be in (0, 1], got 2.0"),
        (["--prompt", ""], "prompt 1 has no token"),
        (["--negative", ""], "prompt 0 has no token"),
        (["--grammar", "("], "'(' cannot be met"),
        (["--guide", "fudge(1)"], "fudge"),
        (["--guide", "cfg(1) | fudge(1)"], "there is no reward 'classifier': pass rewards="),
        (["--guide", "pplm()"], "there is no reward 'attribute': pass rewards="),
        (["--guide", "cfg([1, 2])"], "2 values were given for 1 prompts"),
        (["--guide", "contrastive(1)"], "asks for a model 'amateur'"),
        (["--guide", "contrastive(1)", "--amateur", "shakespeare-ar"], "has 104 tokens"),
        (["--guide", "cfg(2) | apg()"], "does not serve the domain 'logprob'"),
        (["--guide", "cgf(2)"], "unknown name 'cgf'"),
    ],
)
def test_errors_are_one_line(folder, arguments, message):
    out = run(folder, "--prompt", "to", *arguments)
    assert out.exit_code == 2
    assert message in " ".join(out.stderr.split())


def test_hub_ids_and_pickles_are_refused(folder, tmp_path):
    out = run("gpt2", "--prompt", "to")
    assert out.exit_code == 2
    assert "ids of a hub are not loaded" in " ".join(out.stderr.split())
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    out = run(tmp_path, "--prompt", "to")
    assert "no weights as safetensors" in " ".join(out.stderr.split())
