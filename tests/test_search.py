"""The search for scales of training-free guidance, on scores that are known."""

import math

import pytest

import fairlead as fl
from fairlead.search import search_tfg

START = fl.TFG("measurement", rho=0.25, mu=0.25, gamma=0.01)


def peak(guide):
    """Best at rho = 2, mu = 0.5, gamma = 0.04, in octaves."""
    goal = {"rho": 2.0, "mu": 0.5, "gamma": 0.04}
    return -sum(abs(math.log2(getattr(guide, k) / v)) for k, v in goal.items())


def test_beam_search_climbs_to_the_peak():
    found = search_tfg(START, peak, rounds=10)
    assert (found.guide.rho, found.guide.mu, found.guide.gamma) == (2.0, 0.5, 0.04)
    assert found.score == pytest.approx(0.0)
    assert len(found.tried) == len({g for g, _ in found.tried})


def test_a_wider_beam_tries_more_and_the_cap_holds():
    few, many = (search_tfg(START, peak, beam=b, rounds=3).tried for b in (1, 4))
    assert len(few) < len(many)
    capped = search_tfg(START, lambda g: g.rho, cap=4.0, rounds=10)
    assert capped.guide.rho == 1.0


def test_what_starts_at_zero_stays_and_diverged_guides_lose():
    still = search_tfg(fl.TFG("measurement", rho=0.25, mu=0.0), lambda g: g.rho + g.mu)
    assert still.guide.mu == 0.0
    bad = search_tfg(START, lambda g: math.nan if g.rho > 0.25 else g.mu)
    assert bad.guide.rho == 0.25


def test_parzen_estimator_comes_close():
    pytest.importorskip("optuna")
    found = search_tfg(START, peak, trials=40)
    assert len(found.tried) == 40
    assert found.score > -2.5
    again = search_tfg(START, peak, trials=40)
    assert again.guide == found.guide


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam must be at least 1"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"cap": 1.0}, "cap must be at least 2"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(ValueError, match=f"search_tfg: {message}"):
        search_tfg(START, peak, **options)


def test_nothing_to_search():
    with pytest.raises(ValueError, match="all start at 0"):
        search_tfg(fl.TFG("measurement", rho=0.0, mu=0.0), peak)
