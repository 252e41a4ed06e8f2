"""Claims of saliency-aware fusion of two models."""

import torch
from torch import Tensor

import fairlead as fl
from fairlead.guidance.algebra import Guide
from fairlead.metrics import mean_interval
from fairlead.studies.claims._harness import Finding, claim

SIZE, N = 16, 200


def halves(mean: float, left: bool) -> fl.Denoiser:
    """Exact denoiser of images `N(0, I)` whose condition makes one half `N(mean, 0.25)`."""
    inside = torch.zeros(1, 1, SIZE, SIZE)
    inside[..., : SIZE // 2] = 1.0
    inside = inside if left else 1 - inside

    def predict(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        noise = (8 * t).exp().reshape(-1, 1, 1, 1)  # t is log(sigma) / 4
        known = (label.reshape(-1, 1, 1, 1) == 0) * inside
        variance = torch.where(known > 0, 0.25, 1.0)
        return (variance * x + noise * mean * known) / (variance + noise)

    return fl.Denoiser(predict, fl.schedules.EDM(), "sample", {"label": 1}, shape=(1, SIZE, SIZE))


def both_halves(guide: Guide | str, model: str) -> tuple[Tensor, Tensor]:
    """Mean of the left and of the right half of each sample."""
    out = fl.sample(
        halves(1.0, left=True),
        {"label": torch.zeros(N, dtype=torch.long)},
        guide=guide,
        states={"subject": {"label": torch.zeros(N, dtype=torch.long)}},
        models={model: halves(-1.0, left=False)},
        sampler="euler",
        steps=64,
        record=False,
    )
    return out.x[..., : SIZE // 2].mean((1, 2, 3)), out.x[..., SIZE // 2 :].mean((1, 2, 3))


def satisfied(left: Tensor, right: Tensor) -> Tensor:
    """Whether both conditions are met: left mean above 0.8 and right mean below -0.8."""
    return ((left > 0.8) & (right < -0.8)).double()


@claim(
    "magic_fusion",
    ids=("S082",),
    claim="Taking each position from the model that responds more there satisfies both models' "
    "conditions, where averaging their noises does not.",
    setting="16x16 pixels of N(0, I); one exact model knows the left half, N(1, 0.25), the other "
    "the right half, N(-1, 0.25); w = 1, sigma 80 to 0.002, rho 7, 64 Euler steps, 200 samples; "
    "success: left mean above 0.8 and right mean below -0.8",
    expected="100 % fused, 0 % averaged, 0 % with one model; half means 0.99 and -1.00 fused, 0.60 "
    "and -0.61 averaged, within 0.03",
)
def two_halves() -> Finding:
    """Success and half means agree."""
    guides = {
        "fused": ("cfg(1) + magic_fusion(1)", 1.0, (0.99, -1.00)),
        "averaged": ("cfg(1) + sine(1, v=0.5, model='expert')", 0.0, (0.60, -0.61)),
        "one model": ("cfg(1)", 0.0, None),
    }
    measured, checks = {}, {}
    for name, (guide, success, means) in guides.items():
        left, right = both_halves(guide, "expert")
        share = satisfied(left, right).mean().item()
        halves_ = [mean_interval(left), mean_interval(right)]
        measured[name] = {"success": share, "left, right": halves_}
        checks[f"{name}: success"] = abs(share - success) < 0.02
        if means is not None:
            checks[f"{name}: means"] = all(
                abs(h.value - m) < 0.03 for h, m in zip(halves_, means, strict=True)
            )
    return Finding(measured, checks, nfe=4 * 64)
