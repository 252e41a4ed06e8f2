r"""Keep what a score accepts: with a certificate for the share of good ones, and early rejection.

A score of clean samples and a threshold make a filter, and a filter needs two answers. How many
of those that it keeps are good? `certify` finds the most lenient of some thresholds for which a
few labels prove that at least a given share is, with a given confidence. What does a kept sample
cost? `select` gives up a sample part-way, by the score of its clean estimate, and `floors` sets
how low that may be, so that few acceptable samples are lost.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from scipy.stats import beta
from torch import Tensor

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Guide
from fairlead.guidance.context import Run
from fairlead.guidance.report import Report
from fairlead.samplers.base import Sampler
from fairlead.sampling import Step, sample

Score = Callable[[Tensor], Tensor]
"""From clean samples `(n, ...)` to numbers `(n,)`, higher is better."""


@dataclass(frozen=True)
class Tested:
    """A threshold and what the labelled samples say of it.

    Attributes:
        threshold: Samples that score at least this are kept.
        kept: How many labelled samples are.
        good: How many of these are good.
        low: Lower end of the exact one-sided interval of the share of good ones, at the
            confidence asked for.
        recall: Share of all good labelled samples that is kept.
    """

    threshold: float
    kept: int
    good: int
    low: float
    recall: float


@dataclass(frozen=True)
class Certificate:
    """A threshold that is proven to keep good samples.

    Attributes:
        threshold: The most lenient one that is proven; infinite where none is.
        share: The share of good samples among those kept, that it is proven for.
        confidence: Probability, over the labelled samples, that the statement is true.
        tested: All thresholds, the strictest first.
    """

    threshold: float
    share: float
    confidence: float
    tested: tuple[Tested, ...]

    def __bool__(self) -> bool:
        return self.threshold < math.inf

    def __str__(self) -> str:
        said = f"at least {self.share:.1%} of what is kept is good, confidence {self.confidence:g}"
        lines = [f"{said}: score >= {self.threshold:.4g}" if self else f"not proven: {said}"]
        for t in self.tested:
            lines.append(
                f"score >= {t.threshold:<10.4g} {t.good}/{t.kept} good, at least {t.low:.3f}; "
                f"recall {t.recall:.3f}"
            )
        return "\n".join(lines)


def certify(
    score: Tensor,
    good: Tensor,
    thresholds: Sequence[float] | Tensor,
    *,
    share: float = 0.95,
    confidence: float = 0.9,
) -> Certificate:
    r"""The most lenient threshold for which labels prove that enough of what is kept is good.

    Of the ``K`` labelled samples that score at least ``tau``, the number ``G`` of good ones is
    binomial with the true share ``q(tau)``. The thresholds are tested from the strictest on, each
    by the exact bound of Clopper and Pearson, and the first that fails ends the test:

    .. math:: q(\tau) \ge p \text{ is proven if } B^{-1}(\delta; \, G, \, K - G + 1) \ge p,
              \qquad \delta = 1 - \text{confidence} .

    That the threshold which comes out is wrong has probability at most ``delta``, whatever the
    score, the law of the samples and the number of thresholds: before a wrong one is accepted, the
    strictest wrong one of all must have been. It holds for samples that are drawn as the labelled
    ones were, by the same model, guide and condition.

    At least ``log(delta) / log(share)`` samples must be kept (45 for 0.95 and 0.9), so the
    strictest threshold should keep some more of them: `quantiles` of other samples do that.

    Args:
        score: ``(n,)`` scores of the labelled samples; ``-inf`` for those given up early, which
            need no label.
        good: ``(n,)`` whether each is good.
        thresholds: Chosen without looking at the labels, nor at these scores.
        share: The share of good samples to prove, in (0, 1).
        confidence: In (0, 1).

    Raises:
        ValueError: Shapes differ, a number is out of range, or there is no threshold.

    Example:
        >>> import torch, fairlead as fl
        >>> score = torch.arange(100.0)
        >>> found = fl.selection.certify(score, score >= 20, [50.0, 30.0, 10.0, 0.0], share=0.9)
        >>> found.threshold
        30.0

    Source:
        Clopper & Pearson (1934); fixed-sequence testing as in Angelopoulos, Bates, Candès, Jordan,
        Lei (2021), arXiv:2110.01052.
    """
    _one_each("certify", score, good)
    for name, value in (("share", share), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"certify: {name} must be in (0, 1), got {value}")
    levels = sorted({float(t) for t in thresholds}, reverse=True)
    if not levels or not all(math.isfinite(t) for t in levels):
        raise ValueError(f"certify: thresholds must be finite, at least one, got {levels}")
    right = good.bool()
    tested, found = [], math.inf
    for level in levels:
        keep = score >= level
        kept, hits = int(keep.sum()), int((keep & right).sum())
        low = float(beta.ppf(1 - confidence, hits, kept - hits + 1)) if hits else 0.0
        tested.append(Tested(level, kept, hits, low, hits / max(int(right.sum()), 1)))
    for one in tested:
        if one.low < share:
            break
        found = one.threshold
    return Certificate(found, share, confidence, tuple(tested))


def quantiles(score: Tensor, shares: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0)) -> list[float]:
    """Thresholds that keep given shares of some samples, which need no labels.

    Args:
        score: ``(n,)``; not those of the samples to be labelled.
        shares: Each in (0, 1].

    Raises:
        ValueError: There is no score, or a share is out of range.
    """
    if score.ndim != 1 or not len(score):
        raise ValueError(f"quantiles: score must be (n,), n >= 1, got {tuple(score.shape)}")
    ordered = score.double().sort(descending=True).values
    found = []
    for share in shares:
        if not 0 < share <= 1:
            raise ValueError(f"quantiles: shares must be in (0, 1], got {share}")
        found.append(ordered[math.ceil(round(share * len(ordered), 6)) - 1].item())
    return found


@dataclass(frozen=True)
class Drawn:
    """Samples, their scores on the way, and what they cost.

    Attributes:
        x: ``(n, ...)``; those given up early are the clean estimate at which they were.
        score: ``(n,)``, ``-inf`` for those given up early.
        early: Scores ``(n,)`` of the clean estimate by step, ``-inf`` for those given up before.
        nfe: Network evaluations of each sample, ``(n,)``.
    """

    x: Tensor
    score: Tensor
    early: dict[int, Tensor]
    nfe: Tensor

    @property
    def finished(self) -> Tensor:
        """``(n,)`` whether a sample was not given up."""
        return self.score > -math.inf


@dataclass(frozen=True)
class Selected:
    """What was kept, and out of how many.

    Attributes:
        x: ``(n, ...)`` kept samples, in the order of their indices.
        score: ``(n,)`` their scores.
        drawn: Samples begun.
        given_up: How many of them were given up early.
        nfe: Network evaluations of all of them together.
    """

    x: Tensor
    score: Tensor
    drawn: int
    given_up: int
    nfe: int

    @property
    def cost(self) -> float:
        """Network evaluations a kept sample."""
        return self.nfe / max(len(self.x), 1)

    def __str__(self) -> str:
        return (
            f"kept {len(self.x)} of {self.drawn}, {self.given_up} given up early, "
            f"{self.cost:.1f} network evaluations a kept sample"
        )


def floors(drawn: Drawn, threshold: float, *, loss: float = 0.05) -> dict[int, float]:
    r"""How low a clean estimate may score at each step before its sample is given up.

    Of ``m`` samples that end at ``threshold`` or above, the floor of a step is the ``k``-th lowest
    score there, ``k = floor(loss (m + 1) / J)`` for ``J`` steps. A new sample that would end at
    ``threshold`` or above is given up at a step with probability at most ``k / (m + 1)`` (its
    rank among ``m + 1`` exchangeable ones), so at any step with at most ``loss``, on average over
    the samples that set the floors. No labels are needed.

    Floors come first and a certificate after them: `certify` on samples that were drawn with the
    floors proves the share of what passes both.

    Args:
        drawn: Samples that were all finished, scored at the steps in question: `draw` with
            ``checks``.
        threshold: From which score on a sample is acceptable.
        loss: Share of acceptable samples that may be lost, in (0, 1).

    Returns:
        The floor by step; ``-inf`` where there are too few samples to lose one.

    Raises:
        ValueError: ``loss`` is out of range, there are no steps, or samples were given up.

    Source:
        Split conformal prediction: Vovk, Gammerman, Shafer (2005).
    """
    if not 0 < loss < 1:
        raise ValueError(f"floors: loss must be in (0, 1), got {loss}")
    if not drawn.early:
        raise ValueError("floors: samples were scored at no step; draw them with checks=[...]")
    if not bool(drawn.finished.all()):
        raise ValueError("floors: samples were given up early; draw them without floors")
    ends = drawn.score >= threshold
    k = math.floor(loss * (int(ends.sum()) + 1) / len(drawn.early))
    return {
        step: score[ends].sort().values[k - 1].item() if k else -math.inf
        for step, score in drawn.early.items()
    }


def draw(
    denoiser: Denoiser,
    condition: Mapping[str, Any] | None = None,
    *,
    n: int,
    score: Score,
    checks: Sequence[int] = (),
    floors: Mapping[int, float] | None = None,
    guide: Guide | str | None = None,
    sampler: Sampler | str = "heun",
    steps: int = 32,
    seed: int = 0,
    first: int = 0,
    negative: Mapping[str, Any] | None = None,
    models: Mapping[str, Denoiser] | None = None,
    energies: Mapping[str, Any] | None = None,
    max_batch: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Drawn:
    """Samples that are scored on the way, and given up where they score below a floor.

    A sample that is not given up comes out as `fl.sample` draws it: what happens to others does
    not matter to it. Those given up leave the batch and cost nothing more, so the guide's numbers
    and the energies must serve every sample alike: draw one class at a time.

    Args:
        denoiser: The model.
        condition: Values by name, each of batch `n`, or one value for all.
        n: Number of samples.
        score: From clean samples to scores.
        checks: Steps, from 1, after which the clean estimate is scored.
        floors: Lowest score by step; those steps are checked too.
        guide: As for `fl.sample`, and so are the arguments below.
        sampler: One that treats every sample on its own.
        steps: Number of steps.
        seed: Seed of all random draws.
        first: Index of the first sample.
        negative: Negative condition, one for all.
        models: Further denoisers by name.
        energies: Energies by name.
        max_batch: Most rows in one network call.
        dtype: `float32`, or `float64`.

    Raises:
        ValueError: A step of a check is not inside the run, or the score has another shape.
    """
    floors = dict(floors or {})
    stops = sorted({*checks, *floors})
    if any(not 1 <= stop < steps for stop in stops):
        raise ValueError(f"draw: steps of checks must be in [1, {steps - 1}], got {stops}")
    levels = denoiser.schedule.grid(steps)
    state = Condition(condition or {}).expand(n)
    run = Run(seed, range(first, first + n), steps, levels=levels, energies=energies)
    rows = torch.arange(n)
    nfe, early = torch.zeros(n, dtype=torch.long), {}
    end = torch.full((n,), -math.inf, dtype=torch.float64)
    x: Tensor | None = None
    whole = torch.empty(0)
    for begin, stop in pairwise([0, *stops, steps]):
        seen: list[Step] = []
        run.report = Report(record=False)
        out = sample(
            denoiser,
            {k: v[rows.to(v.device)] for k, v in state.items()},
            n=len(rows),
            x=x,
            levels=levels[begin : stop + 1],
            run=run,
            guide=guide,
            sampler=sampler,
            negative=negative,
            models=models,
            max_batch=max_batch,
            dtype=dtype,
            callback=seen.append,
        )
        nfe[rows] += out.nfe.long()
        clean = out.x if stop == steps else seen[-1].denoised
        if not begin:
            whole = torch.empty(n, *clean.shape[1:], dtype=clean.dtype, device=clean.device)
        whole[rows.to(whole.device)] = clean
        found = score(clean).detach()
        if tuple(found.shape) != (len(rows),):
            raise ValueError(
                f"draw: score must give one number a sample, ({len(rows)},), got "
                f"{tuple(found.shape)}"
            )
        found = found.double().cpu()
        if stop == steps:
            end[rows] = found
            break
        early[stop] = torch.full((n,), -math.inf, dtype=torch.float64)
        early[stop][rows] = found
        stays = (found >= floors.get(stop, -math.inf)).nonzero().flatten()
        if not len(stays):
            break
        x = out.x
        if len(stays) < len(rows):
            x, rows = run.keep(x, stays), rows[stays]
    return Drawn(whole, end, early, nfe)


def select(
    denoiser: Denoiser,
    condition: Mapping[str, Any] | None = None,
    *,
    n: int,
    score: Score,
    threshold: float,
    floors: Mapping[int, float] | None = None,
    batch: int = 64,
    most: int = 10_000,
    first: int = 0,
    **options: Any,
) -> Selected:
    """Draws until `n` samples score at least the threshold.

    Args:
        denoiser: The model.
        condition: Values by name, one for all samples.
        n: Number of samples to keep.
        score: From clean samples to scores.
        threshold: That of a `Certificate`, or any other.
        floors: Lowest score by step, as `floors` finds them.
        batch: Samples drawn at a time; all of a batch count as drawn.
        most: Most samples drawn; fewer than `n` are kept if they do not suffice.
        first: Index of the first sample.
        **options: Further arguments of `draw`.

    Raises:
        ValueError: `n`, `batch` or `most` is below 1.

    Example:
        >>> import fairlead as fl
        >>> p = fl.exact.GaussianMixture([[-1.0], [1.0]], 0.1)
        >>> d = p.denoiser(fl.schedules.EDM())
        >>> out = fl.selection.select(d, n=8, score=lambda x: x[:, 0], threshold=0.5, steps=8)
        >>> bool((out.x > 0.5).all()), len(out.x)
        (True, 8)
    """
    for name, value in (("n", n), ("batch", batch), ("most", most)):
        if value < 1:
            raise ValueError(f"select: {name} must be at least 1, got {value}")
    parts: list[Drawn] = []
    kept = drawn = 0
    while kept < n and drawn < most:
        count = min(batch, most - drawn)
        part = draw(
            denoiser,
            condition,
            n=count,
            score=score,
            floors=floors,
            first=first + drawn,
            **options,
        )
        parts.append(part)
        drawn += count
        kept += int((part.score >= threshold).sum())
    end = torch.cat([p.score for p in parts])
    rows = (end >= threshold).nonzero().flatten()[:n]
    x = torch.cat([p.x for p in parts])
    return Selected(
        x[rows.to(x.device)],
        end[rows],
        drawn,
        int((end == -math.inf).sum()),
        int(sum(p.nfe.sum() for p in parts)),
    )


def _one_each(owner: str, score: Tensor, good: Tensor) -> None:
    if score.ndim != 1 or good.shape != score.shape or not len(score):
        raise ValueError(
            f"{owner}: score and good must be (n,), one a sample, got {tuple(score.shape)} and "
            f"{tuple(good.shape)}"
        )
    if bool(score.isnan().any()):
        raise ValueError(f"{owner}: score must not be nan")
