"""Names, text forms and checked parameters of samplers."""

import math
import pickle

import pytest

from fairlead import samplers
from fairlead.samplers import SAMPLERS, Sampler, get, register


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_name_makes_the_default(name):
    sampler = get(name)
    assert type(sampler) is SAMPLERS[name]
    assert str(sampler) == name
    assert get(f"{name}()") == sampler == get(sampler) == pickle.loads(pickle.dumps(sampler))
    assert getattr(samplers, type(sampler).__name__) is type(sampler)
    assert sampler.order >= 1 <= sampler.evaluations


@pytest.mark.parametrize(
    "sampler",
    [
        samplers.DDIM(0.5),
        samplers.DDPM("large"),
        samplers.DDPM(0.25),
        samplers.Heun(40, 0.05, 50.0, 1.003),
        samplers.DPMpp2M("heun", lower_order_final=False),
        samplers.UniPC(3, "bh1", corrector=False),
        samplers.PCG(3, gain=-1.0, max_step=math.inf),
    ],
)
def test_text_round_trip(sampler):
    assert get(str(sampler)) == sampler


def test_infinity_and_positions_have_a_text():
    assert get("heun(churn_max=inf)") == samplers.Heun()
    assert get(" unipc( 3 , 'bh1') ") == samplers.UniPC(3, "bh1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dim(eta=1)", r"unknown name 'dim'; did you mean 'ddim'.*\n.*\n.*position 0"),
        ("ddim(etaa=1)", r"ddim has no parameter 'etaa'; did you mean 'eta'\?\n.*\n.*position 5"),
        ("ddim(eta=f())", r"got f\(\)\n.*\n.*position 9"),
        ("ddim(1, 2)", r"ddim: too many positional"),
        ("ddim(**{})", r"\*\* is not allowed"),
        ("ddim(", r"sampler: "),
        ("", r"sampler: "),
        ("1 + 1", r"expected a name"),
        ("a.b(1)", r"expected a name"),
    ],
)
def test_bad_text_says_where(text, message):
    with pytest.raises(ValueError, match=message):
        get(text)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="expected a sampler or text, got int"):
        get(3)


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="'ddim' is taken by DDIM"):
        register("ddim")(Sampler)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        ("DDIM", {"eta": 1.5}, r"ddim: eta must be in \[0, 1\], got 1.5"),
        ("DDPM", {"variance": -0.1}, r"ddpm: variance must be in \[0, 1\], got -0.1"),
        ("DDPM", {"variance": "smal"}, r"ddpm: variance must be one of .* 'small'"),
        ("EulerAncestral", {"eta": -1.0}, r"euler_ancestral: eta"),
        ("Heun", {"churn": math.nan}, r"heun: churn must be in \[0, inf\), got nan"),
        ("DPMpp2S", {"eta": 2}, r"dpmpp_2s: eta"),
        ("DPMpp2M", {"variant": "mid"}, r"dpmpp_2m: variant"),
        ("DPMpp2M", {"difference": "x"}, r"dpmpp_2m: difference"),
        ("DPMpp2MSDE", {"eta": 2.0}, r"dpmpp_2m_sde: eta"),
        ("DPMpp2MSDE", {"variant": "x"}, r"dpmpp_2m_sde: variant"),
        ("UniPC", {"order": 4}, r"unipc: order must be 2 or 3, got 4"),
        ("UniPC", {"variant": "bh3"}, r"unipc: variant"),
        ("PCG", {"langevin": -1}, r"pcg: langevin must be in \[0, inf\), got -1"),
        ("PCG", {"langevin": 1.5}, r"pcg: langevin must be a whole number, got 1.5"),
        ("PCG", {"max_step": 0.0}, r"pcg: max_step"),
        ("PCG", {"gain": math.inf}, r"pcg: gain"),
    ],
)
def test_bad_value_is_named(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(samplers, cls)(**arguments)
