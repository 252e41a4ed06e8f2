"""Optimisation over whole trajectories: RectifID and discriminative tokens.

Both run the sampler again and again and differentiate through parts of it, so they are functions
around a run and not terms of a guide.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.energy.base import CLEAN, Carried, Energy, Judge, find, of
from fairlead.guidance.algebra import Guide
from fairlead.guidance.context import Run
from fairlead.guidance.energy.term import measured
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel
from fairlead.guidance.recipes import recipe
from fairlead.guidance.spec import guide as parse
from fairlead.samplers.base import Sampler
from fairlead.samplers.base import get as get_sampler
from fairlead.schedules import Level


@dataclass(frozen=True)
class Steered:
    """What an optimisation over trajectories ends with.

    Attributes:
        x: Samples `(n, ...)`.
        history: Mean energy of the samples after each iteration, the unguided run first.
        nfe: Network evaluations of each sample, all iterations together.
    """

    x: Tensor
    history: list[float]
    nfe: int


class _Runner:
    """A guided model whose steps may be differentiated, walked over spans of a grid."""

    def __init__(
        self,
        denoiser: Denoiser,
        condition: Mapping[str, Any] | None,
        guide: Guide | str | None,
        sampler: Sampler | str,
        levels: list[Level],
        n: int,
        seed: int,
    ) -> None:
        self.rule, self.levels, self.seed, self.n = get_sampler(sampler), levels, seed, n
        self.denoiser, self.guide = denoiser, parse(guide)
        device = denoiser.device or torch.device("cpu")
        self.states = {"cond": Condition(condition or {}).expand(n).to(device)}
        self.evaluations = 0
        self.begin().check()

    def begin(self) -> GuidedModel:
        """A fresh model at the start of a trajectory."""
        steps = len(self.levels) - 1
        self.run = Run(self.seed, range(self.n), steps, record=False, levels=self.levels)
        self.model = GuidedModel(self.guide, Evaluator(self.denoiser, self.states), self.run)
        return self.model

    def start(self, dtype: torch.dtype) -> Tensor:
        """Noise at the first level."""
        if self.denoiser.shape is None:
            raise ValueError("trajectories: this denoiser does not know the shape of a sample")
        like = torch.empty(self.n, *self.denoiser.shape, dtype=dtype, device=self.denoiser.device)
        return self.levels[0].sigma * self.run.normal(like, "start")

    def forget(self) -> None:
        """Makes the next step prepare its conditions anew, now that gradients are wanted."""
        self.model.evaluator = Evaluator(self.denoiser, self.states)
        self.model.ctx = None

    def walk(self, x: Tensor, first: int, last: int) -> Tensor:
        """From level `first` to level `last` of the grid."""
        for s, t in pairwise(self.levels[first : last + 1]):
            before = self.run.report.nfe
            self.model.begin(s)
            x = self.rule.walk(self.model, x, s, t)
            spent = torch.as_tensor(self.run.report.nfe - before)
            self.evaluations += int(spent.max())
        return x


@recipe(ids=("S131",))
def rectifid(
    denoiser: Denoiser,
    condition: Mapping[str, Any] | None = None,
    *,
    energy: Any,
    guide: Guide | str | None = None,
    sampler: Sampler | str = "euler",
    segments: int = 4,
    substeps: int = 1,
    s: float = 1.0,
    iterations: int = 20,
    clip: float | None = 1.0,
    accumulate: bool = True,
    n: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Steered:
    r"""Solves for a whole guided trajectory of a few-step flow by fixed-point iteration.

    With ``Phi_k`` one segment, ``z_0`` the noise, ``e_k`` its end at the last iteration and
    ``zh_k`` its target (both the end of a plain run at first), an iteration is

    .. math::
        e'_k &= \Phi_k(z_{k-1}), \qquad
        z_k \gets z_k + (e'_k - e_k) + (\hat z_k - e_k), \qquad e_k \gets e'_k, \\
        \hat z_k &= e_k - s \, G_k, \qquad
        G_k = \nabla_{z_{k-1}} E(z_K) \, / \max(1, \lVert \cdot \rVert / \mathtt{clip}),

    with gradients that pass from ``z_k`` to ``e'_k`` as the identity. So displacements add up, and
    only points of zero gradient are fixed; ``accumulate=False`` is the form of the paper's theory,
    ``z_k = e'_k + (zh_k - e_k)``.

    * Cost: ``iterations + 2`` trajectories, ``iterations`` of them with a backward pass, which
      holds the graph of one whole trajectory.
    * Defaults by family: 4 segments, ``cfg(3)``, ``s`` 1 to 2, 20 to 100 iterations
      (piecewise rectified flow).

    Args:
        denoiser: A few-step flow; any other where its segments are fine enough.
        condition: As for ``fl.sample``.
        energy: Judges clean samples: an energy or a function, lower is better.
        guide: A guide or its text, differentiated through.
        sampler: Of a segment's steps; a deterministic one without memory between steps.
        segments: ``K``, >= 1.
        substeps: Steps of each segment, >= 1.
        s: Step size.
        iterations: Iterations, >= 0; 0 is the plain run.
        clip: Bound on the length of each sample's gradient in each segment; ``None`` for none.
        accumulate: Whether displacements add up.
        n: Number of samples.
        seed: Seed of the noise.
        dtype: ``float32``, or ``float64``.

    Returns:
        Samples, the mean energy after each iteration, and the cost.

    Raises:
        ValueError: A number is out of range; the energy judges noisy samples or attention maps, is
            not one number a sample, or has no gradient.
        FloatingPointError: The energy or a gradient is NaN or infinite.
        RuntimeError: Gradients cannot be taken, under ``torch.inference_mode``.

    Source:
        Sun, Zhou, Zhang, Yang, Yan, Zhang, Cheng, Liu, Sun, Zhang (2024), arXiv:2405.14677.
    """
    for name, count, least in (
        ("segments", segments, 1),
        ("substeps", substeps, 1),
        ("iterations", iterations, 0),
    ):
        if not isinstance(count, int) or count < least:
            raise ValueError(f"rectifid: {name} must be a whole number >= {least}, got {count}")
    if not math.isfinite(s):
        raise ValueError(f"rectifid: s must be finite, got {s}")
    if clip is not None and not clip > 0:
        raise ValueError(f"rectifid: clip must be positive, got {clip}")
    judge = _clean("rectifid", energy)
    _require_gradients("rectifid")
    levels = denoiser.schedule.grid(segments * substeps)
    runner = _Runner(denoiser, condition, guide, sampler, levels, n, seed)
    z: list[Tensor] = [runner.start(dtype)]
    with torch.no_grad():
        for k in range(segments):
            z.append(runner.walk(z[-1], k * substeps, (k + 1) * substeps))
    ends, targets = list(z), list(z)
    history = [measured(judge, z[-1], CLEAN, "after the plain run").mean().item()]
    for i in range(iterations + 1):
        runner.begin()
        final = i == iterations  # the last run only applies the last targets
        points = [z[0].detach().requires_grad_(not final)]
        with torch.set_grad_enabled(not final):
            for k in range(1, segments + 1):
                end = runner.walk(points[-1], (k - 1) * substeps, k * substeps)
                push = targets[k] - ends[k] + (z[k] - ends[k] if accumulate else 0.0)
                points.append(end + push.detach())
                ends[k] = end.detach()
            value = measured(judge, points[-1], CLEAN, f"at iteration {i}")
        z = [p.detach() for p in points]
        history.append(value.mean().item())
        if final:
            break
        if not value.requires_grad:
            raise ValueError(
                f"energy {judge.name!r} has no gradient at iteration {i}: it and the network must "
                "be differentiable, without detach or torch.no_grad"
            )
        gradients = torch.autograd.grad(value.sum(), points[:-1])
        _require_finite(judge.name, f"at iteration {i}", value, *gradients)
        for k, g in enumerate(gradients, 1):
            if clip is not None:
                length = g.flatten(1).norm(dim=1).clamp(min=clip)
                g = g * (clip / length).reshape(-1, *[1] * (g.ndim - 1))
            targets[k] = ends[k] - s * g
    return Steered(z[-1], history, runner.evaluations)


@dataclass(frozen=True)
class Token:
    """A learned condition.

    Attributes:
        value: The embedding, shaped like where it started.
        accuracy: Share of each update's samples that the judge assigns to the class.
    """

    value: Tensor
    accuracy: list[float]


@recipe(ids=("S206",))
def discriminative_token(
    denoiser: Denoiser,
    name: str,
    start: Tensor,
    judge: Judge,
    *,
    guide: Guide | str | None = "cfg(7)",
    sampler: Sampler | str = "ddim",
    steps: int = 30,
    n: int = 5,
    updates: int = 50,
    rate: float = 1.25e-3,
    decay: float = 1e-2,
    clip: float = 1.0,
    enough: float = 0.7,
    patience: int = 15,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Token:
    r"""Learns a condition whose samples a classifier assigns to a class.

    The samples of an update come from the same noise; only their last step is differentiated:

    .. math:: v \gets \mathrm{AdamW}\bigl(v, \; \nabla_v \, \mathrm{mean} \, E(x_0(v))\bigr)

    * Cost: ``steps`` evaluations of each branch and sample an update, one step of them with a
      backward pass.
    * Defaults by family: ``cfg(7)``, 30 steps, 5 samples, at most 50 updates (Stable Diffusion);
      small models take a larger ``rate``.

    Args:
        denoiser: A model that takes the condition ``name`` as an embedding, and has a null for it.
        name: Name of the condition.
        start: Where to start, the embedding of one sample, such as that of a common word.
        judge: A classifier of clean samples, asked for the class.
        guide: A guide or its text.
        sampler: A sampler.
        steps: Number of steps, >= 1.
        n: Samples of an update.
        updates: Most updates.
        rate: Step size of AdamW.
        decay: Weight decay.
        clip: Bound on the length of the gradient.
        enough: Share of right samples at which learning stops, in (0, 1].
        patience: Updates without a better share after which it stops.
        seed: Seed of the noise.
        dtype: ``float32``, or ``float64``.

    Returns:
        The embedding with the best share, and the shares.

    Raises:
        ValueError: The judge judges noisy samples, or a number is out of range.
        FloatingPointError: The judge's energy is NaN or infinite.
        RuntimeError: Gradients cannot be taken, under ``torch.inference_mode``.

    Source:
        Schwartz, Snæbjarnarson, Chefer, Cotterell, Belongie, Wolf, Benaim (2023),
        arXiv:2303.17155; the gradient is bounded before it is applied, where the authors' code
        bounds what earlier batches have accumulated.
    """
    if not isinstance(judge, Judge) or judge.noisy:
        raise ValueError("discriminative_token: judge must be a classifier of clean samples")
    _require_gradients("discriminative_token")
    if not 0 < enough <= 1:
        raise ValueError(f"discriminative_token: enough must be in (0, 1], got {enough}")
    if steps < 1 or n < 1 or updates < 1:
        raise ValueError("discriminative_token: steps, n and updates must be at least 1")
    levels = denoiser.schedule.grid(steps)
    value = start.detach().clone().to(dtype).requires_grad_()
    optimizer = torch.optim.AdamW([value], lr=rate, weight_decay=decay)
    best, kept, waited = -1.0, value.detach().clone(), 0
    shares: list[float] = []
    for _ in range(updates):
        batch = value.expand(n, *value.shape)
        runner = _Runner(denoiser, {name: batch}, guide, sampler, levels, n, seed)
        with torch.no_grad():
            x = runner.walk(runner.start(dtype), 0, steps - 1)
        runner.forget()
        with torch.enable_grad():
            x = runner.walk(x, steps - 1, steps)
            loss = measured(judge, x, CLEAN, f"at update {len(shares)}").mean()
            right = judge.log_probs(x.detach()).argmax(1) == torch.as_tensor(judge.label)
        shares.append(right.double().mean().item())
        waited = 0 if shares[-1] > best else waited + 1
        if shares[-1] >= best:  # of equal shares the later: its energy has been lowered for longer
            best, kept = shares[-1], value.detach().clone()
        if shares[-1] >= enough or waited >= patience:
            break
        _require_finite(judge.name, f"at update {len(shares) - 1}", loss)
        optimizer.zero_grad()
        if loss.requires_grad:  # not where the condition has no part, as at w = 0
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([value], clip)
        optimizer.step()
    return Token(kept, shares)


def _require_gradients(owner: str) -> None:
    """Refuses `torch.inference_mode`, under which no gradient can be taken."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{owner}: gradients cannot be taken under torch.inference_mode; call it outside, or "
            "inside `with torch.inference_mode(False):`"
        )


def _require_finite(name: str, at: str, value: Tensor, *gradients: Tensor) -> None:
    """Refuses NaN and infinity, naming the energy and where."""
    for what, tensors in (("value", (value,)), ("gradient", gradients)):
        if not all(bool(torch.isfinite(t).all()) for t in tensors):
            raise FloatingPointError(f"the {what} of energy {name!r} is NaN or infinite {at}")


def _clean(owner: str, energy: Any) -> Energy:
    name = of(owner, energy)
    if not isinstance(name, Carried):
        raise TypeError(f"{owner}: give the energy itself, not its name {name!r}")
    judge = find(owner, name, {})
    if judge.attention:
        raise ValueError(f"{owner}: the energy {judge.name!r} judges attention maps; use fl.Layout")
    if judge.noisy:
        raise ValueError(f"{owner}: the energy {judge.name!r} judges noisy samples, not clean ones")
    return judge
