"""One-step students of flows on the simplex: pairs of a teacher, a loss, and their sampler."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fairlead.condition import Condition
from fairlead.discrete.denoiser import TokenDenoiser
from fairlead.discrete.process import Process, transition
from fairlead.discrete.sampler import Draws, Numbers, TokenSampler, process_of, register
from fairlead.discrete.simplex import needs_dirichlet, uniform_points
from fairlead.guidance.context import Run
from fairlead.guidance.guided import GuidedModel
from fairlead.schedules import Level


@register("distilled", ids=("S068",))
@dataclass(frozen=True)
class Distilled(TokenSampler):
    r"""Answers with a student of a Dirichlet flow, in one evaluation.

    .. math:: x \sim \mathrm{Dir}(1), \qquad \hat z = \arg\max_k p_\mathrm{student}(k \mid x, 0)

    The student was trained on what its teacher, guided or not, makes of the same `x`
    (``fl.discrete.pairs``, ``fl.discrete.distillation_loss``). It takes 0 as its time, which no
    point of the flow has.

    * Cost: one evaluation of the student; a guide of the teacher is already in it.

    Raises:
        ValueError: There is more than one step, or the process is no ``Dirichlet``.

    Source:
        Stark et al. (2024), arXiv:2402.05841.
    """

    spaces: ClassVar[tuple[str, ...]] = ("simplex",)

    def grid(self, process: Process, steps: int) -> list[Level]:
        if steps != 1:
            raise ValueError(f"{self.name}: steps must be 1, got {steps}")
        return process.grid(1)

    def check(self, model: GuidedModel) -> None:
        needs_dirichlet(self.name, process_of(model))

    def start(self, process: Process, shape: tuple[int, ...], draws: Draws) -> Tensor:
        return uniform_points(process, shape, draws)

    def step(self, model: GuidedModel, z: Tensor, s: Level, t: Level, draws: Draws) -> Tensor:
        return model(z, asked(transition(s, t))).denoise.argmax(-1)


@dataclass(frozen=True)
class Pairs:
    """Starts of a teacher, and its answers to them.

    Attributes:
        start: Points of the simplex, `(n, L, K)`, float64.
        answer: Tokens, `(n, L)`.
        condition: What the teacher was asked for, by name, `(n, ...)`.
    """

    start: Tensor
    answer: Tensor
    condition: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.answer)

    def rows(self, index: Tensor) -> "Pairs":
        """Those of `index`."""
        some = {k: v[index] for k, v in self.condition.items()}
        return Pairs(self.start[index], self.answer[index], some)


def pairs(
    teacher: TokenDenoiser,
    condition: Mapping[str, Any] | None = None,
    *,
    n: int,
    length: int | None = None,
    seed: int = 0,
    first: int = 0,
    **options: Any,
) -> Pairs:
    """What a teacher makes of uniform points of the simplex.

    Pair `i` depends on `(seed, first + i)` alone.

    Args:
        teacher: A denoiser of a Dirichlet process.
        condition: Values by name, each of batch `n`, or one value for all.
        n: Number of pairs.
        length: Length of a sequence, where the teacher does not know it.
        seed: Seed of the starts.
        first: Index of the first pair.
        **options: As for `fl.discrete.sample`: `guide`, `steps`, `sampler` (default:
            `dirichlet`), ...

    Raises:
        ValueError: The process is no `Dirichlet`; as `fl.discrete.sample`.
    """
    from fairlead.discrete.sampling import sample

    needs_dirichlet("pairs", teacher.process)
    known = length or (teacher.shape or (None,))[0]
    if known is None:
        raise ValueError("pairs: this teacher does not know the length of a sequence; give it")
    draws = Numbers(Run(seed, range(first, first + n)))
    start = uniform_points(teacher.process, (n, known), draws)
    options = {"sampler": "dirichlet", "record": False, **options}
    answer = sample(teacher, condition, z=start, n=n, seed=seed, first=first, **options).x
    return Pairs(start, answer.cpu(), Condition(condition or {}).expand(n).tensors)


def distillation_loss(student: TokenDenoiser, some: Pairs) -> Tensor:
    """Cross-entropy of the teacher's answers under the student, `(n, L)`, in nats.

    Raises:
        ValueError: The process is no `Dirichlet`.
    """
    needs_dirichlet("distillation_loss", student.process)
    device = student.device or torch.device("cpu")
    level = asked(student.process.level(1.0))
    logits = student.logits(some.start.to(device), level, Condition(some.condition).to(device))
    answer = some.answer.to(device)
    return F.cross_entropy(logits.transpose(1, 2), answer, reduction="none")


def asked(level: Level) -> Level:
    """The level at which a student is asked: its time is 0."""
    return replace(level, network_time=0.0)
