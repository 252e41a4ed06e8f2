"""Tables of condition dropout: probabilities by hand, draws, and which guides they support."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead import nulls
from fairlead.training import DropoutTable, history_levels


def denoiser():
    net = lambda x, t, **condition: x  # noqa: E731
    null = {"image": nulls.zeros(), "text": nulls.empty_prompt(-1.0), "face": nulls.kept()}
    return fl.Denoiser(net, fl.schedules.EDM(), "sample", null=null, shape=(2,))


def batch(n):
    return {"image": torch.ones(n, 3), "text": torch.ones(n), "face": torch.ones(n)}


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (DropoutTable.joint(["a", "b"], 0.2), {"all": 0.8, "none": 0.2}),
        (
            DropoutTable.independent({"text": 0.1, "image": 0.08}),
            {"all": 0.828, "text": 0.072, "image": 0.092, "none": 0.008},
        ),
        (
            DropoutTable.independent({"a": 0.5, "b": 0.5}),
            {"all": 0.25, "a": 0.25, "b": 0.25, "none": 0.25},
        ),
        (DropoutTable.pix2pix(), {"all": 0.85, "image": 0.05, "none": 0.05, "text": 0.05}),
        (
            DropoutTable.chain(["audio", "style"], [0.1, 0.35, 0.55]),
            {"none": 0.1, "audio": 0.35, "audio+style": 0.55},
        ),
    ],
)
def test_tables_by_hand(table, expected):
    assert dict(table.states) == pytest.approx(expected)


def test_draws_have_the_probabilities_and_put_nulls_in_place():
    table = DropoutTable.pix2pix()
    drawn = table.draw(denoiser(), batch(4000), torch.Generator().manual_seed(0))
    for state, p in table.states.items():
        mask = drawn.where(state)
        # four standard errors of a share of 4000
        assert abs(mask.double().mean().item() - p) < 4 * (p * (1 - p) / 4000) ** 0.5
        text = 1.0 if state in ("all", "text") else -1.0
        image = 1.0 if state in ("all", "image") else 0.0
        assert_close(drawn.condition["text"][mask], torch.full((int(mask.sum()),), text))
        assert_close(drawn.condition["image"][mask], torch.full((int(mask.sum()), 3), image))
    assert_close(drawn.condition["face"], torch.ones(4000))


def test_targets_may_change_with_the_state():
    # online negatives: the negative prompt goes with the degraded target
    table = DropoutTable(["text"], {"all": 0.95, "text=negative": 0.05})
    negative = {"negative": {"text": torch.full((500,), 7.0)}}
    drawn = table.draw(denoiser(), batch(500), torch.Generator().manual_seed(0), negative)
    low = drawn.where("text=negative")
    assert 5 <= int(low.sum()) <= 50
    assert_close(drawn.condition["text"][low], torch.full((int(low.sum()),), 7.0))
    assert_close(drawn.condition["text"][~low], torch.ones(int((~low).sum())))
    with pytest.raises(ValueError, match=r"'text=negative' needs states="):
        table.draw(denoiser(), batch(500), torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("guide", "table", "missing"),
    [
        ("nested(['image', 'text'], [1.5, 7.5])", DropoutTable.pix2pix(), []),
        ("nested(['text', 'image'], [1.5, 7.5])", DropoutTable.joint(["image", "text"]), ["text"]),
        ("nested(['image', 'text'], [3, 3])", DropoutTable.joint(["image", "text"]), []),
        ("cfg(3)", DropoutTable.joint(["image", "text"]), []),
        ("cfg(3)", DropoutTable(["image"], {"all": 1.0}), ["null"]),
        ("none", DropoutTable(["image"], {"all": 1.0}), []),
        (
            "independent(['audio', 'style'], [1, 3])",
            DropoutTable.chain(["audio", "style"], [0.1, 0.35, 0.55]),
            ["style"],
        ),
    ],
)
def test_supports_what_it_trained(guide, table, missing):
    assert table.missing(guide) == missing
    assert table.supports(guide) == (not missing)


def test_trained_states_for_a_denoiser():
    assert DropoutTable.pix2pix().trained == {"cond", "image", "text", "null"}
    chain = DropoutTable.chain(["audio", "style"], [0.1, 0.35, 0.55])
    assert chain.trained == {"cond", "audio", "null"}


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({"all": 0.5}, "probabilities must add up to 1, got 0.5"),
        ({"all": 1.5, "none": -0.5}, "'all' must have a probability, got 1.5"),
        ({"all": 0.5, "a": 0.5}, "'a' and 'all' are one state"),
        ({"a@0.5": 1.0}, "'a@0.5' is no state to train on"),
        ({"b": 1.0}, "'b' names 'b', which is none of the conditions"),
    ],
)
def test_bad_tables_are_named(states, message):
    with pytest.raises(ValueError, match=f"DropoutTable: {message}"):
        DropoutTable(["a"], states)


def test_levels_of_a_history():
    levels = history_levels(200, 4, torch.Generator().manual_seed(0))
    assert levels.shape == (200, 4)
    assert 0 <= levels.min() < 0.05
    assert 0.95 < levels.max() <= 1
    assert abs(torch.corrcoef(levels.T)[0, 1]) < 0.3
    with pytest.raises(ValueError, match="a chain of 2 conditions has 3 states, got 2"):
        DropoutTable.chain(["a", "b"], [0.5, 0.5])
