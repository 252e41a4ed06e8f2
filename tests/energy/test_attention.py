"""Energies of attention maps: values by hand, the identities, and a layer whose maps are moved."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.energy.attention import mask

F64 = {"dtype": torch.float64}


def maps(*rows, heads=1, frames=1):
    """One layer on a grid of one row: the attention of its cells to one token."""
    s = torch.tensor(rows, **F64)[:, None, None, None, :, None]
    return {"layer": s.expand(-1, frames, heads, -1, -1, -1)}


LEFT = {0: (0.0, 0.0, 0.5, 1.0)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # the two cells inside are 0.5 and 0.3, those outside 0.2 and 0.1
        ({"inside": 0.5, "outside": 0.5}, 1 - 0.5 + 4 * 0.2),
        ({"inside": 1.0, "outside": 1.0}, 1 - 0.4 + 4 * 0.15),
        ({"inside": 0.1, "outside": 0.1}, 1 - 0.5 + 4 * 0.2),  # at least one cell
        ({"inside": 1.0, "outside": 1.0, "foreground": 2.0, "background": 0.0}, 2 * 0.6),
        # the centre of mass is (0.3 + 0.4 + 0.3) / 1.1, that of the box 0.5
        ({"foreground": 0.0, "background": 0.0, "centre": 3.0}, 3 * (1.0 / 1.1 - 0.5) ** 2),
    ],
)
def test_worked_by_hand(options, expected):
    value = fl.energy.Boxes(LEFT, **options)(maps([0.5, 0.3, 0.2, 0.1]))
    assert_close(value, torch.tensor([expected], **F64))


def test_heads_and_frames_add_tokens_objects_and_layers_are_averaged():
    row, other = [0.5, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]
    one = fl.energy.Boxes(LEFT, centre=0.7)
    left, right = one(maps(row)), one(maps(other))
    only = fl.energy.Boxes(LEFT)
    assert_close(only(maps(row, heads=3, frames=2)), 6 * only(maps(row)))
    centre = fl.energy.Boxes(LEFT, foreground=0.0, background=0.0, centre=0.7)
    assert_close(centre(maps(row, heads=3)), centre(maps(row)))  # a mean over heads
    both = {"a": maps(row)["layer"], "b": maps(other)["layer"]}
    assert_close(one(both), (left + right) / 2)
    tokens = {"layer": torch.cat([maps(row)["layer"], maps(other)["layer"]], -1)}
    assert_close(fl.energy.Boxes({(0, 1): LEFT[0]}, centre=0.7)(tokens), (left + right) / 2)
    apart = fl.energy.Boxes({0: LEFT[0], 1: LEFT[0]}, centre=0.7)
    assert_close(apart(tokens), (left + right) / 2)


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 10_000))
@settings(max_examples=30)
def test_even_attention_inside_the_box_has_no_distance_of_centres(h, w, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(2, generator=generator).sort().values.tolist() for _ in range(2))
    box = (x[0], y[0], x[1], y[1])
    m = mask(box, h, w)
    if not m.any():
        return
    s = (m.double() / m.sum()).reshape(1, 1, 1, h, w, 1)
    centre = fl.energy.Boxes({0: box}, foreground=0.0, background=0.0, centre=1.0)
    assert_close(centre({"layer": s}), torch.zeros(1, **F64), atol=1e-20, rtol=0)
    # all of it inside: nothing outside is seen, and the fullest cells hold 1 / |m| each
    whole = fl.energy.Boxes({0: box}, 1.0, 1.0)
    assert_close(whole({"layer": s}), torch.tensor([1 - 1 / int(m.sum())], **F64))


def test_without_a_box_only_the_background_counts():
    row = maps([0.5, 0.3, 0.2, 0.1])
    none = fl.energy.Boxes({0: None}, outside=1.0, centre=1.0)
    assert_close(none(row), torch.tensor([4 * 1.1 / 4], **F64))
    thin = fl.energy.Boxes({0: (0.0, 0.0, 0.1, 1.0)}, outside=1.0, centre=1.0)  # rounds to nothing
    assert_close(thin(row), none(row))
    full = fl.energy.Boxes({0: (0.0, 0.0, 1.0, 1.0)}, inside=1.0)
    assert_close(full(row), torch.tensor([1 - 1.1 / 4], **F64))


def test_frames_are_compared_with_the_next():
    """Velocities: of three frames, the second has no box, so that no pair has two."""
    rows = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]], **F64)
    s = {"layer": rows.reshape(1, 3, 1, 1, 4, 1)}
    cells = [(i / 4, 0.0, (i + 1) / 4, 1.0) for i in range(4)]
    options = {"foreground": 0.0, "background": 0.0, "centre": 1.0}
    follows = fl.energy.Boxes({0: [cells[0], cells[1], cells[3]]}, **options)
    assert_close(follows(s), torch.zeros(1, **F64))
    # the last frame is wanted one to the left: 1 for its place, 1 for the step before it
    late = fl.energy.Boxes({0: [cells[0], cells[1], cells[2]]}, **options)
    assert_close(late(s), torch.tensor([2.0], **F64))
    # 0, 1, 3 where 0, 2, 2 are wanted: 1 + 1 for places, (1 - 2)^2 + (2 - 0)^2 for steps
    other = fl.energy.Boxes({0: [cells[0], cells[2], cells[2]]}, **options)
    assert_close(other(s), torch.tensor([7.0], **F64))
    gap = fl.energy.Boxes({0: [cells[0], None, cells[2]]}, **options)
    assert_close(gap(s), torch.tensor([1.0], **F64))


def test_a_box_that_moves_keeps_its_size():
    lefts = torch.linspace(0, 0.7, 29).tolist()
    sizes = {int(mask((x, 0.0, x + 0.3, 1.0), 1, 10).sum()) for x in lefts}
    assert sizes == {3}


def test_each_prompt_may_have_its_own_boxes():
    s = maps([0.5, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4])
    right = {0: (0.5, 0.0, 1.0, 1.0)}
    each = fl.energy.Boxes([LEFT, right])(s)
    assert_close(each[:1], fl.energy.Boxes(LEFT)(s)[:1])
    assert_close(each[1:], fl.energy.Boxes(right)(s)[1:])
    with pytest.raises(ValueError, match="boxes of 2 prompts were given for 1 samples"):
        fl.energy.Boxes([LEFT, right])(maps([0.5, 0.3, 0.2, 0.1]))


def test_attention_of_a_random_layer_is_moved_into_boxes():
    """8x8 cells, 3 frames, 2 heads: 40 steps of 0.8 down the gradient of 5 E."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x, keys = draw(1, 3, 1, 64, 8), draw(2, 6, 8)

    def layer(x):
        logits = x @ keys.transpose(-1, -2) / 8**0.5
        return {"layer": logits.softmax(-1).reshape(1, 3, 2, 8, 8, 6)}

    def centres(x):
        s = layer(x)["layer"][..., 1].mean(2)
        cells = torch.arange(8.0, **F64)
        return torch.stack([(s.sum(d) * cells).sum(-1) / s.sum((-1, -2)) for d in (-1, -2)], -1)[0]

    corners = [(1, 1), (2, 3), (4, 4)]  # rows and columns; the centres are one further
    boxes = [(c / 8, r / 8, (c + 3) / 8, (r + 3) / 8) for r, c in corners]
    energy = fl.energy.Boxes({1: boxes}, centre=0.03)
    before, wanted = energy(layer(x)).item(), torch.tensor(corners, **F64) + 1
    assert (centres(x) - 3.5).abs().max() < 0.6
    for _ in range(40):
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(5 * energy(layer(leaf)).sum(), leaf)
        x = x - 0.8 * g
    assert energy(layer(x)).item() < 0.5 * before
    assert (centres(x) - wanted).abs().max() < 0.8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fl.energy.Boxes({}), "boxes must name at least one token"),
        (lambda: fl.energy.Boxes({-1: None}), "tokens must be whole numbers of at least 0"),
        (lambda: fl.energy.Boxes({(): None}), "tokens must be whole numbers"),
        (lambda: fl.energy.Boxes({0: (0.5, 0.0, 0.5, 1.0)}), "must satisfy 0 <= left < right"),
        (lambda: fl.energy.Boxes({0: (0.0, 0.0, 1.5, 1.0)}), r"got \(0\.0, 0\.0, 1\.5, 1\.0\)"),
        (lambda: fl.energy.Boxes({0: [(0.0, 1.0)]}), "a box must be"),
        (lambda: fl.energy.Boxes(LEFT, inside=0.0), r"inside must be in \(0, 1\], got 0"),
        (lambda: fl.energy.Boxes(LEFT, outside=1.5), r"outside must be in \(0, 1\], got 1.5"),
        (lambda: fl.energy.Boxes(LEFT, background=-1.0), "background must be at least 0"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_the_model_does_not_have_is_named():
    with pytest.raises(ValueError, match=r"tokens must be in \[0, 0\], got 4"):
        fl.energy.Boxes({4: LEFT[0]})(maps([0.5, 0.3, 0.2, 0.1]))
    with pytest.raises(ValueError, match="one for each of the 2 frames, got 3"):
        fl.energy.Boxes({0: [LEFT[0]] * 3})(maps([0.5, 0.3, 0.2, 0.1], frames=2))


def test_adds_to_energies_of_its_kind_alone():
    boxes = fl.energy.Boxes(LEFT)
    s = maps([0.5, 0.3, 0.2, 0.1])
    dark = fl.energy.Function(lambda m: m["layer"].flatten(1).sum(1), name="dark", attention=True)
    assert_close((boxes + 0.5 * dark)(s), boxes(s) + 0.55)
    with pytest.raises(ValueError, match="one judges attention maps, another samples"):
        boxes + fl.energy.Symmetry()
