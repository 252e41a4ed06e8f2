"""The text form: round trips, errors with positions, and that nothing is ever executed."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fairlead as fl
from fairlead.guidance.algebra import REGISTRY, Rule, Schedule, Term
from fairlead.text import TextError

ERRORS = [
    ("cfg(3) | agp()", 9, "unknown name 'agp'; expected a rule.*did you mean .*'apg'"),
    ("cgf(3)", 0, "unknown name 'cgf'; expected a term.*did you mean .*'cfg'"),
    ("cfg(3) | pag(2)", 9, "'pag' is a term; expected a rule, a schedule or a policy"),
    ("rescale(0.7)", 0, "'rescale' is a rule; expected a term"),
    ("cfg(3) + apg()", 9, "'apg' is a rule; expected a term"),
    ("cfg(3) - pag(2)", 9, "only \\+ and \\| combine guides"),
    ("cfg(3) * 2", 9, "only \\+ and \\| combine guides"),
    ("cfg(3", 3, "was never closed"),
    ("", 0, "invalid syntax"),
    ("cfg(scale=3)", 4, "cfg has no parameter 'scale'"),
    ("cfg()", 0, "missing a required argument: 'w'"),
    ("cfg(1, 'null', 3)", 0, "too many positional arguments"),
    ("cfg(**{})", 4, "guide: "),
    ("cfg(x)", 4, "arguments are numbers"),
    ("cfg(1 + 1)", 4, "arguments are numbers"),
    ("cfg(__import__('os'))", 4, "arguments are numbers"),
    ("cfg(3).w", 0, "expected a term"),
    ("fl.cfg(3)", 0, "expected a term"),
    ("3", 0, "expected a term"),
    ("cfg(3) + [pag(1)]", 9, "expected a term"),
    ("lambda: 1", 0, "expected a term"),
    ("(cfg(3) | apg()) | (apg())()", 19, "expected a rule"),
]


@pytest.mark.parametrize(("text", "position", "message"), ERRORS)
def test_errors_name_token_position_and_nearest(text, position, message):
    with pytest.raises(TextError, match=message) as caught:
        fl.guide(text)
    assert caught.value.position == position
    *_, shown, marker = str(caught.value).split("\n")
    assert shown.strip() == text
    assert marker.startswith("  " + " " * position + "^")


def test_values_out_of_range_name_the_parameter():
    with pytest.raises(ValueError, match=r"rescale: phi must be in \[0, 1\], got 7"):
        fl.guide("cfg(3) | rescale(7)")
    with pytest.raises(ValueError, match="cfg: w must be in"):
        fl.guide("cfg(nan)")
    with pytest.raises(TypeError, match="cfg: w must be a number, got 'three'"):
        fl.guide("cfg('three')")
    with pytest.raises(TypeError, match="cfg: w must be a number, got None"):
        fl.guide("cfg(None)")
    with pytest.raises(TypeError, match="expected a guide or text, got int"):
        fl.guide(3)


def test_forms_of_one_guide():
    guide = fl.CFG(4.0) | fl.Interval(-1.0, float("inf"), unit="sigma")
    for text in (
        "cfg(4) | interval(-1, inf, unit='sigma')",
        "  cfg(w=4.0)|interval(low=-1, high=+inf, unit='sigma')  ",
        '(cfg(4)) | interval(-1, inf, "sigma")',
    ):
        assert fl.guide(text) == guide
    assert fl.guide(None) == fl.guide("none") == fl.guide("none + none")
    assert fl.guide("cfg(3) | apg") == fl.guide("cfg(3) | apg()")
    assert fl.guide("cfg([1, 2.5])") == fl.CFG((1.0, 2.5))
    assert fl.guide(guide) is guide


numbers = st.floats(-100, 100) | st.integers(-50, 50)
shares = st.floats(0, 1)
terms = st.one_of(
    st.builds(fl.CFG, numbers | st.lists(numbers, min_size=1, max_size=3)),
    st.builds(fl.CFG, numbers, st.text("abc' \"\\é\n", max_size=5)),
    st.builds(fl.PAG, numbers, st.sampled_from(["mid", "blocks.*", ("a", "b")])),
    st.builds(fl.ICG, numbers, st.sampled_from(["index", "gaussian"])),
    st.builds(fl.TSG, numbers, st.floats(0, 3)),
    st.builds(fl.Autoguidance, numbers),
)
pipes = st.one_of(
    st.builds(fl.APG, numbers, st.floats(0.1, 9) | st.just(float("inf")), st.floats(-0.9, 0.9)),
    st.builds(fl.Rescale, shares),
    st.tuples(numbers, numbers).map(lambda ab: fl.Interval(*sorted(ab))),
    st.builds(fl.Curve, st.sampled_from(["linear", "cosine"]), st.none() | numbers),
    st.builds(fl.AdaptiveGuidance, numbers, shares),
)
guides = st.recursive(
    terms,
    lambda inner: (
        st.tuples(inner, inner).map(lambda ab: ab[0] + ab[1])
        | st.tuples(inner, pipes).map(lambda ab: ab[0] | ab[1])
    ),
    max_leaves=6,
)


@given(guides)
def test_every_guide_survives_its_text(guide):
    assert fl.guide(str(guide)) == guide
    assert str(fl.guide(str(guide))) == str(guide)


@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_method_says_what_it_is(name):
    cls = REGISTRY[name]
    assert cls.kind in ("term", "rule", "schedule", "policy")
    assert issubclass(cls, (Term, Rule, Schedule))
    assert cls.ids
    assert "Source:" in cls.__doc__
    assert name == name.lower()


HOSTILE = ["__import__('os').abort()", "exit()", "lambda: 0", ".w", "**", "*", "if", "{}"]
SIGNS = ["(", ")", "+", "|", ",", "=", "[", "]", "3", "0.5", "nan", "'mid'", " ", ":", "w", "-"]
pieces = st.sampled_from([*REGISTRY, "none", *SIGNS, *HOSTILE, "\n"])


@given(st.lists(pieces, max_size=12).map("".join) | st.text(max_size=30))
def test_any_text_is_a_guide_or_an_error_and_runs_nothing(text):
    try:
        guide = fl.guide(text)
    except (ValueError, TypeError):
        return
    assert fl.guide(str(guide)) == guide


@pytest.mark.parametrize("text", ["(" * 500 + "cfg(3)" + ")" * 500, "cfg(3)" + " + cfg(3)" * 3000])
def test_huge_text_is_refused_or_read(text):
    with contextlib.suppress(ValueError, RecursionError, MemoryError):
        fl.guide(text)


@pytest.mark.parametrize("text", ["cfg(3)\0", "cfg(" + "9" * 5000 + ")", "cfg(1e999)", "\ud800"])
def test_odd_text_is_an_error(text):
    with pytest.raises(ValueError):  # noqa: PT011
        fl.guide(text)
