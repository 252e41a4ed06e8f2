"""RePaint: its identities, its cost, the exact conditional of a Gaussian, what it refuses."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.exact import GaussianMixture
from fairlead.guidance.guided import GuidedModel
from fairlead.schedules import VP

RHO = 0.9
PAIR = GaussianMixture([[0.0, 0.0]], [[[1.0, RHO], [RHO, 1.0]]])
KNOWN = torch.tensor([[2.0, 0.0]], dtype=torch.float64)


def draw(sampler="repaint", n=4, steps=12, mask=(1.0, 0.0), schedule=None, **options):
    options = {"masks": {"known": list(mask)}, "reference": KNOWN, **options}
    d = PAIR.denoiser(schedule or VP())
    return fl.sample(d, sampler=sampler, steps=steps, n=n, dtype=torch.float64, **options)


@pytest.mark.parametrize("place", ["sample", "estimate"])
@pytest.mark.parametrize("times", [1, 3])
def test_all_known_is_the_known(place, times):
    x = draw(f"repaint(times={times}, place='{place}')", mask=(1.0, 1.0)).x
    assert torch.equal(x, KNOWN.expand(4, 2))


@pytest.mark.parametrize("place", ["sample", "estimate"])
@pytest.mark.parametrize("inner", ["ddpm", "ddim(eta=0.5)", "heun"])
def test_nothing_known_once_is_the_sampler(place, inner):
    text = f'repaint(times=1, place="{place}", sampler="{inner}")'
    assert torch.equal(draw(text, mask=(0.0, 0.0)).x, draw(inner).x)


def test_nothing_known_keeps_the_law():
    x = draw("repaint(times=2)", n=500, steps=100, mask=(0.0, 0.0)).x
    # four standard errors of a variance
    assert_close(x.T.cov(), PAIR.parts.covariances[0].double(), atol=4 * (2 / 500) ** 0.5, rtol=0)


def test_levels_that_are_walked_again_have_their_noise():
    """On a point mass at 0 every visit starts at the level's own standard deviation."""
    seen = []

    class Watched(GaussianMixture):
        def x0(self, x, level, label=None):
            seen.append(x.std().item() / level.sigma)
            return super().x0(x, level, label)

    d = Watched([[0.0, 0.0]], 1e-12).denoiser(VP())
    known = {"masks": {"known": [0, 0]}, "reference": KNOWN}
    sampler = "repaint(times=2, jump=2)"
    fl.sample(d, sampler=sampler, steps=5, n=1000, dtype=torch.float64, **known)
    assert seen == pytest.approx([1.0] * 9, abs=0.08)


@pytest.mark.parametrize("schedule", [VP(), fl.schedules.EDM(), fl.schedules.RectifiedFlow()])
def test_the_known_part_is_met_on_every_schedule(schedule):
    x = draw("repaint(times=2, jump=3)", schedule=schedule).x
    assert torch.equal(x[:, 0], KNOWN[0, 0].expand(4))


def test_after_every_step_the_known_part_has_the_level_of_noise():
    seen = []
    draw("repaint(times=1)", n=1000, steps=6, callback=lambda s: seen.append((s.x[:, 0], s.level)))
    for x, level in seen:
        assert_close(x.mean().item(), 2 * level.alpha, atol=0.13, rtol=0)
        assert_close(x.std().item(), level.sigma, atol=0.09, rtol=0)


@pytest.mark.parametrize(
    ("jump", "steps", "evaluations"),
    # every level but the first and the clean one; of 12 steps jumps of 4 are walked from levels
    # 11 and 7 (level 3 has no 4 above it)
    [(1, 12, 12 + 2 * 11), (4, 12, 12 + 2 * 2 * 4), (12, 12, 12)],
)
def test_cost(jump, steps, evaluations):
    assert draw(f"repaint(times=3, jump={jump})", steps=steps).nfe.tolist() == [evaluations] * 4


def test_default_of_the_paper_has_its_number_of_calls():
    out = draw("repaint(times=10, jump=10)", n=1, steps=250)
    # 2410 in the authors' schedule
    assert out.nfe.tolist() == [2410]


def test_replacement_is_biased_and_resampling_mends_it():
    """x2 given x1 = 2 is N(1.8, 0.19)."""
    error = {}
    for times in (1, 8):
        x = draw(f"repaint(times={times})", n=400, steps=30).x[:, 1]
        error[times] = abs(x.mean().item() - RHO * 2.0)
    assert error[1] > 0.2
    assert error[8] < error[1] / 2


def test_guides_see_the_steps_that_are_walked_again(monkeypatch):
    seen, call = [], GuidedModel.__call__

    def watched(self, x, level, **options):
        target = self.run.levels[self.run.step + 1]
        seen.append((self.run.step, self.start, level, self.noise(x)[0, 0].item(), target))
        return call(self, x, level, **options)

    monkeypatch.setattr(GuidedModel, "__call__", watched)
    draw("repaint(times=2, jump=2)", steps=5)
    levels = VP().grid(5)
    order = [0, 1, 0, 1, 2, 3, 2, 3, 4]
    assert [(step, start, level) for step, start, level, *_ in seen] == [
        (i, levels[i], levels[i]) for i in order
    ]
    assert len({noise for *_, noise, _ in seen}) == len(order)


def test_bad_arguments():
    with pytest.raises(ValueError, match="repaint: sampler must keep no memory"):
        fl.samplers.RePaint(sampler="unipc")
    with pytest.raises(ValueError, match="repaint: times must be in"):
        fl.samplers.RePaint(0)
    with pytest.raises(ValueError, match="repaint: jump must be a whole number"):
        fl.samplers.RePaint(2, 1.5)
    with pytest.raises(ValueError, match="repaint: place must be"):
        fl.samplers.RePaint(place="noise")
    with pytest.raises(ValueError, match="the known part is missing"):
        draw(reference=None)
    with pytest.raises(ValueError, match=r"the mask 'known' is missing.*'knwn'"):
        draw(masks={"knwn": [1, 0]})


def test_text():
    sampler = fl.samplers.get("repaint(times=5, jump=2, sampler='ddim(eta=1.0)')")
    assert fl.samplers.get(str(sampler)) == sampler
    assert sampler.evaluations == 5
