"""Sampling in stages: a guide, a size and a part of the levels each, for more pixels.

A network that was trained at one size repeats objects when it starts from noise at a larger one.
Staged methods therefore sample at the trained size first, enlarge the clean estimate, noise it
again, and go on, each stage under a guide of its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Guide
from fairlead.guidance.context import Run
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel
from fairlead.guidance.policies.reuse_maps import MapReuse
from fairlead.guidance.recipes import recipe
from fairlead.guidance.resample import along
from fairlead.guidance.resample import resize as matrix
from fairlead.guidance.rules.bands import Bands
from fairlead.guidance.spec import guide as parse
from fairlead.guidance.terms.cfg import CFG
from fairlead.samplers.base import Sampler
from fairlead.sampling import Result, Step, check_levels, sample
from fairlead.schedules import Level, NoiseSchedule

Size = tuple[int, ...]
Resize = Callable[[Tensor, Size], Tensor]
"""From clean samples `(B, C, ...)` and a size behind the channels to enlarged ones."""


@dataclass(frozen=True)
class Stage:
    """A part of a run.

    Attributes:
        guide: A guide or its text.
        levels: The levels it walks, noisiest first; a stage may begin noisier than the one before
            ended.
        size: Size behind the channels; `None` keeps that of the stage before.
        refresh: Whether it begins with the clean estimate, resized and noised anew to its first
            level. Without, it goes on with the sample as it is, which must have its size.
    """

    guide: Guide | str
    levels: tuple[Level, ...]
    size: Size | None = None
    refresh: bool = True


def linear(x: Tensor, size: Size) -> Tensor:
    """Resizes by linear interpolation, pixel centres matched."""
    sizes = iter(size)
    return along(x, lambda n: matrix(n, next(sizes)))


def nearest(x: Tensor, size: Size) -> Tensor:
    """Resizes to the nearest pixel."""
    for dim, n in enumerate(size, 2):
        index = torch.arange(n, device=x.device) * x.shape[dim] // n
        x = x.index_select(dim, index)
    return x


def sample_stages(
    denoiser: Denoiser,
    condition: Mapping[str, Any] | None = None,
    *,
    stages: Sequence[Stage],
    sampler: Sampler | str = "ddim",
    n: int = 1,
    seed: int = 0,
    first: int = 0,
    resize: Resize = linear,
    negative: Mapping[str, Any] | None = None,
    states: Mapping[str, Mapping[str, Any]] | None = None,
    models: Mapping[str, Denoiser] | None = None,
    energies: Mapping[str, Any] | None = None,
    max_batch: int | None = None,
    callback: Callable[[Step], None] | None = None,
    check: bool = True,
    record: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Result:
    """Samples stage by stage; the first is to the bit the beginning of an ordinary run.

    Steps count on through the stages, so `progress` and `fraction` in a guide are those of the
    whole run. What guides and multistep solvers remember is dropped at a refresh, and where the
    guide changes.

    Args:
        denoiser: The model; its network must take every size.
        condition: Values by name, as in `fl.sample`.
        stages: The stages; the levels of each rise in signal.
        sampler: A sampler, its name or its text.
        n: Number of samples.
        seed: Seed of all random draws.
        first: Index of the first sample.
        resize: Enlarges clean estimates. For latents decode, resize and encode: resizing latents
            makes artifacts.
        negative: As in `fl.sample`, like what follows.
        states: Further conditions by name.
        models: Further denoisers by name.
        energies: Energies by name.
        max_batch: Most rows in one network call.
        callback: Called with a `Step` after each step.
        check: Whether a NaN or infinity raises.
        record: Whether the report keeps the norm of each term at each step.
        dtype: `float32`, or `float64`.

    Returns:
        The result of the last stage, with the report of all of them.

    Raises:
        ValueError: There is no stage, the first has no size and the model knows none, a size has
            another number of dimensions or changes without a refresh, or an argument is refused
            by `fl.sample`.

    Example:
        >>> import fairlead as fl
        >>> grid = tuple(fl.schedules.EDM().grid(6))
        >>> stages = [Stage("cfg(2)", grid[:4], (8, 8)), Stage("cfg(6)", grid[3:], (16, 16))]
        >>> d = fl.testing.tiny_denoiser()
        >>> sample_stages(d, {"label": 3}, stages=stages).x.shape
        torch.Size([1, 2, 16, 16])
    """
    plan = _plan(denoiser, stages)
    total = sum(len(stage.levels) - 1 for stage in stages)
    run = Run(seed, range(first, first + n), total, check=check, record=record, energies=energies)
    given = {"cond": condition or {}, **(states or {})}
    if negative is not None:
        given["negative"] = negative
    evaluator = Evaluator(denoiser, {k: Condition(v) for k, v in given.items()}, models)
    for _, guide, _ in plan:  # what a later stage lacks is named before any step
        GuidedModel(guide, evaluator, run).check()
    assert denoiser.shape is not None
    shape, device = (n, denoiser.shape[0], *plan[0][2]), denoiser.device or torch.device("cpu")
    start = run.normal(torch.empty(shape, dtype=dtype, device=device), "start")
    x = stages[0].levels[0].sigma * start
    clean = x
    before: Guide | None = None

    def after(step: Step) -> None:
        nonlocal clean
        clean = step.denoised
        if callback is not None:
            callback(step)

    for i, (stage, guide, size) in enumerate(plan):
        if i and stage.refresh:
            clean = clean if tuple(clean.shape[2:]) == size else resize(clean, size)
            level = stage.levels[0]
            x = level.alpha * clean + level.sigma * run.normal(clean, "refresh")
        if i and (stage.refresh or guide != before):
            run.forget()
        done = run.step + 1
        run.levels = (stage.levels[0],) * done + tuple(stage.levels)
        result = sample(
            denoiser,
            condition,
            guide=guide,
            sampler=sampler,
            levels=stage.levels,
            x=x,
            callback=after,
            dtype=dtype,
            run=run,
            negative=negative,
            states=states,
            models=models,
            max_batch=max_batch,
        )
        x, before = result.x, guide
    return result


def _plan(denoiser: Denoiser, stages: Sequence[Stage]) -> list[tuple[Stage, Guide, Size]]:
    """Stages with their guides and sizes, checked before anything is drawn."""
    if not stages:
        raise ValueError("sample_stages: stages must name at least one stage")
    if denoiser.shape is None:
        raise ValueError("sample_stages: this denoiser does not know the shape of a sample")
    size, found = denoiser.shape[1:], []
    for i, stage in enumerate(stages):
        check_levels(f"sample_stages: stage {i}: ", stage.levels)
        new = size if stage.size is None else tuple(stage.size)
        if len(new) != len(size) or min(new, default=1) < 1:
            raise ValueError(
                f"sample_stages: the size of stage {i} must be {len(size)} numbers of at least 1, "
                f"got {new}"
            )
        if i and not stage.refresh and new != size:
            raise ValueError(
                f"sample_stages: stage {i} changes the size from {size} to {new}, which needs "
                "refresh=True"
            )
        guide = parse(stage.guide)
        guide.require("continuous")
        found.append((stage, guide, new))
        size = new
    return found


@recipe(ids=("S107",))
def rectified_hr(
    schedule: NoiseSchedule,
    sizes: tuple[Size, Size],
    *,
    w: tuple[float, float] = (5.0, 30.0),
    stages: int = 2,
    steps: int = 50,
    refresh: int = 30,
    w_power: float = 1.0,
    refresh_power: float = 1.0,
    multiple: int = 8,
    guide: Callable[[float], Guide] = CFG,
) -> tuple[Stage, ...]:
    r"""Stages of RectifiedHR: the scale rises with the size, against the loss of energy.

    With ``f(a, b, i, p) = a + (b - a) (i/(K-1))^p`` stage ``i`` has the size ``f`` of ``sizes``,
    rounded up to a multiple, and the scale ``w_i = f(w_0, w_1, i, p_w)``, and ends with step
    ``int(f(refresh, N, i, p_T))`` of one grid of ``N`` steps. Each enlarges the clean estimate
    and noises it to the level of the next step.

    * Cost: that of an ordinary run of as many steps, each at its size.
    * Defaults by family: SDXL 2048 as below; 2048x4096 three stages, ``w`` to 50, ``refresh=40``;
      4096 with both powers 0.5; video 480x832 to 960x1664 ``w`` 5 to 10.

    Args:
        schedule: Noise schedule of the model.
        sizes: First and last size.
        w: First and last guidance scale.
        stages: Number of stages ``K``, at least 2.
        steps: Number of steps ``N``.
        refresh: Step at which the first stage ends.
        w_power: Exponent ``p_w``.
        refresh_power: Exponent ``p_T``.
        multiple: Sizes are multiples of it.
        guide: From a scale to a guide.

    Raises:
        ValueError: ``stages`` is below 2, or two stages end at the same step.

    Example:
        >>> import fairlead as fl
        >>> made = rectified_hr(fl.schedules.VP(), ((64, 64), (128, 128)))
        >>> [(str(s.guide), s.size, len(s.levels) - 1) for s in made]
        [('cfg(5.0)', (64, 64), 30), ('cfg(30.0)', (128, 128), 20)]

    Source:
        Yang, Shen, Hou, Liu, Wang, Tao, Wan, Zhang, Chen (2025), arXiv:2503.02537.
    """
    if stages < 2:
        raise ValueError(f"rectified_hr: stages must be at least 2, got {stages}")

    def between(a: float, b: float, i: int, power: float) -> float:
        return float(a + (b - a) * (i / (stages - 1)) ** power)

    ends = [0, *(int(between(refresh, steps, i, refresh_power)) for i in range(stages))]
    if any(b <= a for a, b in pairwise(ends)):
        raise ValueError(f"rectified_hr: each stage needs a step, but they end at {ends[1:]}")
    grid = schedule.grid(steps)
    made = []
    for i, (start, end) in enumerate(pairwise(ends)):
        size = tuple(
            multiple * math.ceil(between(a, b, i, 1.0) / multiple)
            for a, b in zip(*sizes, strict=True)
        )
        made.append(Stage(guide(between(*w, i, w_power)), tuple(grid[start : end + 1]), size))
    return tuple(made)


@recipe(ids=("S048",))
def frecas(
    schedule: NoiseSchedule,
    sizes: Sequence[Size],
    steps: Sequence[int],
    ends: Sequence[float],
    *,
    w: float = 7.5,
    high: float = 35.0,
    gamma: float = 1.5,
    maps: float = 0.0,
) -> tuple[Stage, ...]:
    r"""Stages of FreCaS: from the second on the new frequencies are guided by a larger scale.

    A stage begins where the signal-to-noise ratio ``alpha^2/sigma^2`` is ``(h_old/h_new)^gamma``
    times that at the end of the one before, and walks to its own end in equal steps of time.

    * Cost: that of the steps, each at its size.
    * Defaults by family: SDXL ``steps=(40, 10)``, ``ends=(200, 0)``, ``gamma`` 1.5 (2048) or 2
      (4096), ``high`` 25 to 35; SD 2.1 ``gamma = 3``, ``high`` 45 (1024) or 35 (2048); flow models
      ``gamma = 1``, their ``t' = m t/(1 + (m - 1) t)`` with ``m = sqrt(h_new/h_old)``. With a text
      the paper takes ``maps`` 0.4 to 0.8.

    Args:
        schedule: Noise schedule of the model.
        sizes: Size of each stage.
        steps: Number of steps of each.
        ends: Time at which each ends; the last is 0.
        w: Scale of all frequencies in the first stage, of the low ones in the others.
        high: Scale of what the size before cannot show.
        gamma: Exponent of the change of the signal-to-noise ratio.
        maps: Share of the cross-attention maps of the stage before, in [0, 1] (``reuse_maps``).

    Raises:
        ValueError: The lists differ in length, ``maps`` is out of range, or ``w`` is 1 while
            ``high`` is not.

    Example:
        >>> import fairlead as fl
        >>> vp = fl.schedules.DiscreteVP.scaled_linear()
        >>> made = frecas(vp, [(64, 64), (128, 128)], (40, 10), (200, 0), high=20.5)
        >>> str(made[1].guide), round(made[1].levels[0].t)
        ('cfg(7.5) | bands(3.0)', 342)

    Source:
        Zhang, Li, Zhang (2024), arXiv:2410.18410.
    """
    if not len(sizes) == len(steps) == len(ends):
        raise ValueError(
            "frecas: sizes, steps and ends must be as many as stages, got "
            f"{len(sizes)}, {len(steps)} and {len(ends)}"
        )
    if w == 1 and high != 1:
        raise ValueError("frecas: w must not be 1 where high is not: the scale of CFG carries both")
    made: list[Stage] = []
    start = schedule.level(schedule.t_max)
    for i, (size, count, end) in enumerate(zip(sizes, steps, ends, strict=True)):
        guide: Guide = CFG(w)
        if i:
            ratio = sizes[i - 1][0] / size[0]
            last = made[-1].levels[-1]
            start = schedule.level_at(last.log_snr + gamma * math.log(ratio))
            if high != w:
                guide = guide | Bands((high - 1) / (w - 1), ratio=ratio)
        guide = guide | MapReuse(maps) if maps else guide
        times = [start.t + (end - start.t) * k / count for k in range(1, count + 1)]
        made.append(Stage(guide, (start, *(schedule.level(t) for t in times)), size))
    return tuple(made)
