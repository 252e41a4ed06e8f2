"""Streams of images: frames at all noise levels in one batch, and frames that are left out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from fairlead.attention import Attended, AttentionLayer
from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Guide, Schedule
from fairlead.guidance.branch import AttentionPerturbation, Branch
from fairlead.guidance.context import Context, Run
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel
from fairlead.guidance.report import Report
from fairlead.guidance.spec import guide as parse
from fairlead.parameters import Range, check_fields
from fairlead.schedules import Level


@dataclass(frozen=True)
class SimilarityFilter:
    r"""Leaves frames out that look like the last one that was processed.

    .. math:: P(\text{skip}) = \max\Bigl(0, \frac{s - \eta}{1 - \eta}\Bigr), \qquad
              s = \cos(I, I_\mathrm{ref})

    over all pixels; a processed frame becomes the reference. Frames are drawn at random, so that a
    still scene is not frozen for good.

    Args:
        eta: Similarity below which nothing is skipped; at 1 and above nothing is skipped at all.
        longest: Most frames that are skipped in a row.
        seed: Seed of the draws.

    Raises:
        ValueError: A parameter is out of range.

    Source:
        Kodaira et al. (2023), arXiv:2312.12491, section 3.4; the cap as in its code.
    """

    eta: Annotated[float, Range(-1, inf)] = 0.98
    longest: Annotated[int, Range(0, inf, closed="left")] = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)

    def probability(self, frame: Tensor, reference: Tensor) -> float:
        """The probability that a frame is skipped, given the last processed one."""
        if self.eta >= 1:
            return 0.0
        a, b = frame.double().flatten(), reference.double().flatten()
        lengths = (a.norm() * b.norm()).clamp(min=1e-30)
        return max(0.0, (float(a @ b / lengths) - self.eta) / (1 - self.eta))

    def over(self, frames: Iterator[Tensor]) -> Iterator[tuple[Tensor, bool]]:
        """Each frame, and whether it is skipped."""
        state = _Filtering(self)
        for frame in frames:
            yield frame, state.skips(frame)


class _Filtering:
    """A filter in the course of a stream."""

    def __init__(self, rule: SimilarityFilter) -> None:
        self.rule = rule
        self.generator = torch.Generator().manual_seed(rule.seed)
        self.reference: Tensor | None = None
        self.skipped = 0

    def skips(self, frame: Tensor) -> bool:
        """Whether this frame is left out; if not, it is the new reference."""
        drawn = float(torch.rand((), generator=self.generator, dtype=torch.float64))
        last = self.reference if self.skipped < self.rule.longest else None
        if last is not None and drawn < self.rule.probability(frame, last):
            self.skipped += 1
            return True
        self.reference, self.skipped = frame.detach().clone(), 0
        return False


@dataclass(eq=False)
class _Live:
    """Which rows of the batch hold a frame."""

    rows: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class _OverFrames(AttentionPerturbation):
    """Every row attends to the keys and values of all rows of its branch that hold a frame."""

    patterns: str | tuple[str, ...]
    live: _Live

    def layers(self, denoiser: Denoiser) -> list[AttentionLayer]:
        return denoiser.match_attention("stream", self.patterns, ("self",))

    def __call__(self, call: Attended, rows: Sequence[int], ctx: Context) -> Tensor:
        shown = [i for i, row in enumerate(rows) if self.live.rows[row]]
        if not shown:
            return call.attend()
        if call.mask is not None:
            raise ValueError(
                f"stream: {call.layer.name!r} attends under a mask, so that its rows cannot be "
                "joined: choose other layers for across"
            )
        return call.attend(k=_joined(call.k, shown, len(rows)), v=_joined(call.v, shown, len(rows)))


def _joined(values: Tensor, shown: list[int], rows: int) -> Tensor:
    """`(rows * fold, heads, N, d)` with the tokens of the shown rows in each row."""
    folded = values.reshape(rows, -1, *values.shape[1:])[shown]  # (shown, fold, heads, N, d)
    line: Tensor = folded.permute(1, 2, 0, 3, 4).flatten(2, 3)
    return line.expand(rows, *line.shape).flatten(0, 1)


@dataclass(frozen=True)
class _Across(Schedule):
    """Lets every branch attend over frames."""

    name: ClassVar[str] = "across"

    attention: _OverFrames

    def branch(self, branch: Branch, ctx: Context) -> Branch:
        return replace(branch, perturbations=(*branch.perturbations, self.attention))


class Stream:
    r"""Edits a stream of frames in few steps, one network call a frame (Stream Batch).

    Frames enter at the first level as ``x = alpha x0 + sigma n``. A batch holds one frame at each
    level; a call moves all of them on by a consistency step, ``x' = alpha' D + sigma' n'`` with
    the clean estimate ``D`` and noise that is fixed for each level. A frame comes out as many
    calls after it went in as there are levels, and is what denoising it alone would have given.

    Guides may not depend on the step (``interval``, ``cache``, ...), since rows are at different
    ones: that raises at the first frame. What they remember of a sample starts from zero.
    ``rcfg`` refers to each frame's own source, or, ``onetime``, to one negative prediction a
    frame, which joins the batch as one more row.

    Args:
        denoiser: The model.
        condition: Condition of all frames, each value for one sample.
        guide: A guide or its text.
        times: Times of the levels in the schedule's units, falling; or levels.
        seed: Seed of the noise.
        states: Further conditions by name, as for ``fl.sample``.
        models: Further denoisers by name.
        similarity: Leaves similar frames out: their output is the last one again.
        across: Self-attention layers by name, as for ``pag`` (``"**"``: all), in which every frame
            attends to all frames of the batch, so that they look alike; a frame is then not what
            it would be alone. Default: none.
        check: Whether a NaN or infinity raises.

    Raises:
        ValueError: There are no levels, or their noise does not fall; a condition, state or model
            is missing; ``across`` names no layer.

    Example:
        >>> import torch, fairlead as fl
        >>> p = fl.exact.GaussianMixture([[-1.0], [1.0]], 0.1, labels=[0, 1])
        >>> d = p.denoiser(fl.schedules.VP())
        >>> stream = fl.Stream(d, {"label": 1}, guide="cfg(1.2) | rcfg()", times=[0.6, 0.4, 0.2])
        >>> frames = [torch.full((1,), -1.0 + i / 10) for i in range(5)]
        >>> outputs = [stream.push(frame) for frame in frames] + stream.drain()
        >>> [out is None for out in outputs]
        [True, True, False, False, False, False, False]

    Source:
        Kodaira et al. (2023), arXiv:2312.12491, sections 3.1 to 3.4.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        condition: Mapping[str, Any] | None = None,
        *,
        guide: Guide | str | None = None,
        times: Sequence[float | Level],
        seed: int = 0,
        states: Mapping[str, Mapping[str, Any]] | None = None,
        models: Mapping[str, Denoiser] | None = None,
        similarity: SimilarityFilter | None = None,
        across: str | tuple[str, ...] = "",
        check: bool = True,
    ) -> None:
        schedule = denoiser.schedule
        self.levels = [t if isinstance(t, Level) else schedule.level(float(t)) for t in times]
        ratios = [level.log_snr for level in self.levels]
        if not ratios or any(a >= b for a, b in pairwise(ratios)):
            raise ValueError(
                "stream: times must be at least one, from noisy to clean, got "
                f"{[level.t for level in self.levels]}"
            )
        if self.levels[-1].sigma == 0 or self.levels[0].alpha == 0:
            raise ValueError("stream: every level needs both signal and noise")
        self.denoiser, self.seed, self.check = denoiser, seed, check
        self.guide = parse(guide)
        self.guide.require("continuous")
        self._live = _Live()
        if across:
            over = _OverFrames(across, self._live)
            over.layers(denoiser)
            self.guide = self.guide | _Across(over)
        self.models = models
        self.filter = None if similarity is None else _Filtering(similarity)
        self.run: Run | None = None
        self.change(condition, states)
        self._filled = 0
        self._last: Tensor | None = None

    def change(
        self,
        condition: Mapping[str, Any] | None = None,
        states: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Gives all frames, also those inside, another condition from the next call on."""
        device = self.denoiser.device or torch.device("cpu")
        given = {"cond": condition or {}, **(states or {})}
        size = len(self.levels)
        found = {k: Condition(v).expand(size).to(device) for k, v in given.items()}
        for one in found.values():
            self.denoiser.check(one)
        self._evaluator = Evaluator(self.denoiser, found, self.models)
        self._model: GuidedModel | None = None

    @property
    def report(self) -> Report:
        """The log so far, with network calls and evaluations by row of the batch."""
        return Report() if self.run is None else self.run.report

    def push(self, frame: Tensor) -> Tensor | None:
        """Puts a clean frame in, and returns the one that comes out.

        Args:
            frame: One sample, without a batch dimension.

        Returns:
            The frame that went in `len(times) - 1` calls ago, edited; `None` while the batch
            fills. A frame that is left out returns the last output.

        Raises:
            ValueError: The frame has another shape than the ones before, or the guide depends on
                the step.
        """
        if self.filter is not None and self.filter.skips(frame):
            return self._last
        out = self._tick(frame, True)
        self._filled += 1
        if self._filled < len(self.levels):
            return None
        self._last = out
        return out

    def drain(self) -> list[Tensor]:
        """The frames that are still inside, in order; the stream begins anew after."""
        inside = min(self._filled, len(self.levels) - 1)
        empty = None if self.run is None else torch.zeros_like(self._buffer[0])
        found = []
        for i in range(len(self.levels) - 1):
            if empty is not None:
                out = self._tick(empty, False)
                if i >= len(self.levels) - 1 - inside:
                    found.append(out)
        self._filled, self.run, self._model = 0, None, None
        return found

    def _start(self, frame: Tensor) -> None:
        size = len(self.levels)
        self._live.rows = [False] * size
        like = frame.expand(size, *frame.shape)
        shape = (-1, *[1] * frame.ndim)
        self.run = Run(
            self.seed,
            range(size),
            size,
            check=self.check,
            record=False,
            reference=torch.zeros_like(like),
            streaming=True,
        )
        # row i of the noise belongs to level i
        self._noise = self.run.normal(like, "stream")
        columns = [[getattr(lv, k) for lv in self.levels] for k in ("t", "alpha", "sigma")]
        t, alpha, sigma = (torch.tensor(c, dtype=torch.float64) for c in columns)
        alpha, sigma = (v.reshape(shape).to(like) for v in (alpha, sigma))
        self._level = Level(t, alpha, sigma)  # type: ignore[arg-type]
        self._buffer = sigma * self._noise

    def _tick(self, frame: Tensor, live: bool) -> Tensor:
        frame = frame.to(self.denoiser.device or frame.device)
        if self.run is None:
            self._start(frame)
        run = self.run
        assert run is not None
        if frame.shape != self._buffer.shape[1:]:
            raise ValueError(
                f"stream: frames must have the shape {tuple(self._buffer.shape[1:])}, got "
                f"{tuple(frame.shape)}"
            )
        if self._model is None:
            self._model = GuidedModel(self.guide, self._evaluator, run)
            self._model.check()
        model, size = self._model, len(self.levels)
        alpha, sigma = torch.as_tensor(self._level.alpha), torch.as_tensor(self._level.sigma)
        run.take(torch.tensor([0, *range(size - 1)]))
        run.begin_row(0)
        self._live.rows = [live, *self._live.rows[:-1]]
        assert run.reference is not None
        run.reference = torch.cat([frame[None].to(run.reference), run.reference[1:]])
        first = alpha[:1] * frame[None].to(self._buffer) + sigma[:1] * self._noise[:1]
        x = torch.cat([first, self._buffer[1:]])
        model.begin(self._level)
        with torch.no_grad():
            clean = model(x, self._level).denoise
        moved = alpha[1:] * clean[:-1] + sigma[1:] * self._noise[1:]
        self._buffer = torch.cat([x[:1], moved])
        run.report.entries.clear()  # a stream has no end, its log would have none
        return clean[-1]
