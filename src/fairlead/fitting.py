"""Numbers that methods need before they can run: fitted once on a few trajectories."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Guide
from fairlead.guidance.policies.linear import LinearGuidance, regress
from fairlead.guidance.policies.rows import wanted_below
from fairlead.guidance.spec import guide as parse
from fairlead.samplers.base import Sampler
from fairlead.samplers.base import get as get_sampler
from fairlead.sampling import Step, sample


def fit_linear(
    denoiser: Denoiser,
    condition: Mapping[str, Any] | None = None,
    *,
    guide: Guide | str,
    sampler: Sampler | str = "ddim",
    steps: int = 20,
    end: float = 0.5,
    **options: Any,
) -> LinearGuidance:
    """Fits the coefficients of `linear` on trajectories of the plain guide.

    Args:
        denoiser: The model.
        condition: Conditions of the trajectories; the paper takes about 200.
        guide: The guide that will be made cheaper, such as `cfg(7.5)`.
        sampler: The sampler that it will run under, of one evaluation a step.
        steps: Number of steps that it will run.
        end: Share of the steps after which the terms are off.
        **options: As for `fl.sample`: `n`, `seed`, `negative` and so on.

    Returns:
        The policy: `guide | policy`.

    Raises:
        ValueError: The sampler takes several evaluations a step, or the guide wants no or
            several branches beside the base.

    Example:
        >>> import torch, fairlead as fl
        >>> p = fl.exact.GaussianMixture([[-1.0], [1.0]], 0.1, labels=[0, 1])
        >>> d = p.denoiser(fl.schedules.VP())
        >>> label = {"label": torch.arange(20) % 2}
        >>> policy = fl.fit_linear(d, label, guide="cfg(2)", steps=8)
        >>> out = fl.sample(d, label, guide=fl.CFG(2.0) | policy, steps=8, sampler="ddim")
        >>> out.nfe[0].item()
        10
    """
    guide, rule = parse(guide), get_sampler(sampler)
    if rule.evaluations != 1:
        raise ValueError(
            f"fit_linear: needs a sampler of one evaluation a step, got {rule} of "
            f"{rule.evaluations}; take ddim or dpmpp_2m"
        )
    LinearGuidance().admit(guide)
    other = wanted_below(guide)[0].name
    seen: tuple[list[Tensor], list[Tensor]] = ([], [])

    def keep(step: Step) -> None:
        for name, kept in zip(("cond", other), seen, strict=True):
            if name not in step.noises:
                raise ValueError(f"fit_linear: {guide} does not evaluate {name!r} at every step")
            kept.append(step.noises[name])

    sample(denoiser, condition, guide=guide, sampler=rule, steps=steps, callback=keep, **options)
    return LinearGuidance(regress(*seen, end=end), end, steps)
