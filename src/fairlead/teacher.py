"""Samples beside a teacher that lends its self-attention: the layout of a text under a style."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from fairlead.attention import Attended, Edit, attending
from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Guide
from fairlead.guidance.context import Run
from fairlead.guidance.recipes import recipe
from fairlead.guidance.report import Report
from fairlead.samplers.base import Sampler
from fairlead.sampling import Step, sample
from fairlead.schedules import Level
from fairlead.wrapped import Wrapped, without

ROLE = "teaches"
"""Name of the condition that is 1 in the rows of teachers and 0 in those of students."""


@dataclass(frozen=True)
class Taught:
    """What `sample_taught` returns.

    Attributes:
        x: The students' samples, `(n, ...)`.
        teacher: The teachers' samples, `(n, ...)`.
        nfe: Network evaluations of each student and its teacher together, `(n,)`.
        report: The log of the run.
    """

    x: Tensor
    teacher: Tensor
    nfe: Tensor
    report: Report


class _Class(Wrapped):
    """A model for batches of pairs, each a teacher and then its student."""

    def __init__(self, inner: Denoiser, layers: str | tuple[str, ...]) -> None:
        super().__init__(inner, trained=inner.trained)
        self.lent = inner.match_attention("sample_taught", layers, ("self",))
        self.adapted = [a for a in inner.attention_layers.values() if a.adapters]
        self.teaching = False

    @property
    def companions(self) -> frozenset[str]:
        return super().companions | {ROLE}

    def check(self, condition: Condition) -> None:
        self.inner.check(without(condition, ROLE))

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        n = len(x)
        if condition[ROLE].tolist() != [1, 0] * (n // 2):
            raise ValueError(
                "sample_taught: a call parts students from their teachers: give an even max_batch, "
                "and a guide without weights or policies for single samples"
            )
        edits = [Edit(layer, 0, n, _alone) for layer in self.adapted]
        if self.teaching:
            edits += [Edit(layer, 0, n, _lend) for layer in self.lent]
        with attending(edits, n, self.grid or tuple(x.shape[2:]), outermost=True):
            return self.inner.predict(x, level, without(condition, ROLE))


def _paired(call: Attended, tokens: Tensor) -> Tensor:
    """Tokens of pairs, `(pairs, 2, fold, ...)`."""
    return tokens.reshape(len(call.rows) // 2, 2, -1, *tokens.shape[1:])


def _lend(call: Attended) -> Tensor:
    """Students attend as their teachers do, to values of their own."""
    q, k = (_paired(call, t)[:, :1].expand_as(_paired(call, t)) for t in (call.q, call.k))
    return call.attend(q=q.reshape(call.q.shape), k=k.reshape(call.k.shape))


def _alone(call: Attended) -> Tensor:
    """Adapters add nothing to teachers."""
    out = call.attend()
    if call.index == 0:  # the text
        return out
    pairs = _paired(call, out)
    return torch.cat([torch.zeros_like(pairs[:, :1]), pairs[:, 1:]], 1).reshape(out.shape)


@recipe(ids=("S065",))
def sample_taught(
    denoiser: Denoiser,
    condition: Mapping[str, Any],
    teacher: Mapping[str, Any],
    *,
    guide: Guide | str | None = "cfg(5)",
    sampler: Sampler | str = "ddim",
    steps: int = 50,
    end: float = 0.3,
    layers: str | tuple[str, ...] = "**",
    n: int = 1,
    seed: int = 0,
    first: int = 0,
    negative: Mapping[str, Any] | None = None,
    states: Mapping[str, Mapping[str, Any]] | None = None,
    max_batch: int | None = None,
    check: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Taught:
    r"""Samples whose layout is that of a teacher: the same model, without the style.

    Student and teacher begin with the same noise and are guided alike. In the first steps each
    self-attention layer of the student, in every branch, takes the attention matrix of its
    teacher and keeps its own values:

    .. math:: \mathrm{softmax}\Bigl(\tfrac{1}{\sqrt d} \, Q_\mathrm{teacher}
              K_\mathrm{teacher}^T\Bigr) \, V_\mathrm{student}

    Adapters that attend to an image prompt add nothing to the teacher. The teacher of StyleStudio;
    ``adain`` and ``cfg(5, against="negative")`` with a negative style image are its other parts.

    * Cost: that of ``fl.sample`` twice: 4 NFE a step under ``cfg``.
    * Neutral: ``end = 0``, or a teacher under the student's own condition.
    * Defaults by family: SDXL 50 steps, ``end`` 0.2 to 0.4.

    Args:
        denoiser: The model; it knows the shape of a sample.
        condition: Values by name for the students.
        teacher: What the teachers have in place of some of them, in every state: a style that is
            null. May be empty where adapters bring the style.
        guide: A guide or its text; it acts on both.
        sampler: A sampler, its name or its text.
        steps: Number of steps.
        end: Share of the run, in [0, 1], after which the student attends by itself.
        layers: Self-attention layers by name, as for ``pag``.
        n: Number of students.
        seed: Seed of all random draws.
        first: Index of the first student.
        negative: Negative condition, as for ``fl.sample``.
        states: Further conditions by name.
        max_batch: Most rows in one network call; even.
        check: Whether a NaN or infinity raises.
        dtype: ``float32``, or ``float64``.

    Raises:
        ValueError: ``end`` is out of range; a pattern names no layer (lists them); the teacher has
            a condition that the students lack; a call parts a student from its teacher; or as for
            ``fl.sample``.

    Example:
        >>> import fairlead as fl
        >>> from fairlead.testing import tiny_denoiser
        >>> out = fl.sample_taught(tiny_denoiser(), {"label": 3}, {"label": 5}, steps=10)
        >>> out.x.shape, out.teacher.shape, out.nfe.tolist()
        (torch.Size([1, 2, 8, 8]), torch.Size([1, 2, 8, 8]), [40])

    Source:
        Lei, Song, Zhu, Wang, Zhang (2024), arXiv:2412.08503; steps as in their code.
    """
    if not 0 <= end <= 1:
        raise ValueError(f"sample_taught: end must be in [0, 1], got {end}")
    for name in teacher:
        if name not in condition:
            raise ValueError(
                f"sample_taught: the teacher has a condition {name!r}, which the students lack; "
                f"they have: {', '.join(condition) or 'none'}"
            )
    given = {"cond": {}, **(states or {})}
    if negative is not None:
        given["negative"] = negative
    both = {
        state: _interleaved({**condition, **value}, teacher, n) for state, value in given.items()
    }
    model = _Class(denoiser, layers)
    lessons = ceil(end * steps)
    model.teaching = lessons > 0

    def after(step: Step) -> None:
        model.teaching = step.index + 1 < lessons

    levels = denoiser.schedule.grid(steps)
    indices = [i for i in range(first, first + n) for _ in range(2)]
    cond = both.pop("cond")
    result = sample(
        model,
        cond,
        guide=guide,
        sampler=sampler,
        levels=levels,
        n=2 * n,
        states=both,
        max_batch=max_batch,
        callback=after,
        dtype=dtype,
        run=Run(seed, indices, steps, check=check, levels=levels),
    )
    pairs = result.x.reshape(n, 2, *result.x.shape[1:])
    nfe = result.nfe.reshape(n, 2).sum(1)
    return Taught(pairs[:, 1], pairs[:, 0], nfe, result.report)


def _interleaved(
    condition: Mapping[str, Any], teacher: Mapping[str, Any], n: int
) -> dict[str, Tensor]:
    """Conditions of pairs: teacher, student, teacher, ..."""
    own = Condition(condition).expand(n)
    theirs = own.replace(**Condition(teacher).expand(n).tensors)
    pairs = {k: torch.stack([theirs[k].to(v.dtype), v], 1).flatten(0, 1) for k, v in own.items()}
    return {**pairs, ROLE: torch.tensor([1, 0] * n)}
