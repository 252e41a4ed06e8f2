"""What a sampler of tokens is, where its random choices come from, and the plain one."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import ClassVar, Protocol, TypeVar, cast

import torch
from torch import Tensor

from fairlead.discrete.denoiser import TokenDenoiser
from fairlead.discrete.process import Process, transition
from fairlead.guidance.context import Run
from fairlead.guidance.domains import normalised
from fairlead.guidance.guided import GuidedModel
from fairlead.parameters import check_fields
from fairlead.schedules import Level
from fairlead.text import Reader


class Draws(Protocol):
    """Where random choices come from: numbers while sampling, every case while enumerating."""

    def categorical(self, log_p: Tensor) -> Tensor:
        """One index of each row of normalised log-probabilities `(..., K)`, `(...)`."""
        ...

    def subset(self, log_weight: Tensor, counts: Tensor) -> Tensor:
        """Which of `(B, L)` are taken, `counts` `(B,)` of each row, without replacement.

        The next one is taken with a probability proportional to its weight among those left;
        what has the weight 0 is never taken.
        """
        ...


class Numbers:
    """Random choices by numbers that belong to `(seed, sample)`, in float64."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._count = 0

    def _gumbel(self, like: Tensor) -> Tensor:
        return -(-self.uniform(like).log()).log()

    def uniform(self, like: Tensor) -> Tensor:
        """Numbers in (0, 1) shaped like `like`, in float64."""
        self._count += 1
        return self.run.rand(like, "tokens", self._count)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers shaped like `like`."""
        self._count += 1
        return self.run.normal(like, "tokens", self._count)

    def categorical(self, log_p: Tensor) -> Tensor:
        return (log_p + self._gumbel(log_p)).argmax(-1)

    def subset(self, log_weight: Tensor, counts: Tensor) -> Tensor:
        keys = log_weight + self._gumbel(log_weight)
        rank = keys.argsort(dim=-1, descending=True).argsort(dim=-1)
        taken: Tensor = (rank < counts[:, None]) & ~log_weight.isneginf()
        return taken


@dataclass(frozen=True)
class TokenSampler(ABC):
    """An update rule for tokens; an immutable value, registered with `@register`."""

    name: ClassVar[str] = ""
    ids: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str] = "token sampler"
    spaces: ClassVar[tuple[str, ...]] = ("clean", "posterior")
    """Spaces of a denoiser that it can work with, the preferred one first; else it changes it."""

    def __post_init__(self) -> None:
        check_fields(self)

    def domain(self, space: str) -> str:
        """The domain in which guides combine."""
        return {"clean": "logprob"}.get(space, space)

    @property
    def evaluations(self) -> int:
        """Evaluations of the guided model a step."""
        return 1

    def check(self, model: GuidedModel) -> None:  # noqa: B027  most samplers ask for nothing
        """Refuses a model that it cannot serve, before the first step."""

    def grid(self, process: Process, steps: int) -> list[Level]:
        """The levels that it walks, from pure noise to clean tokens."""
        return process.grid(steps)

    def start(self, process: Process, shape: tuple[int, ...], draws: Draws) -> Tensor:
        """Where sampling starts: tokens of pure noise."""
        if process.mask is not None:
            return torch.full(shape, process.mask)
        return draws.categorical(process.prior().log().expand(*shape, -1))

    @abstractmethod
    def step(self, model: GuidedModel, z: Tensor, s: Level, t: Level, draws: Draws) -> Tensor:
        """From tokens at level `s` to the less noisy level `t`."""

    def finish(self, model: GuidedModel, z: Tensor, t: Level, draws: Draws) -> Tensor:
        """What becomes of the tokens at the last level."""
        return z

    def __str__(self) -> str:
        given = [
            f"{f.name}={value!r}"
            for f in fields(self)
            if f.default is MISSING or (value := getattr(self, f.name)) != f.default
        ]
        return f"{self.name}({', '.join(given)})" if given else self.name


@dataclass(frozen=True)
class Factorised(TokenSampler):
    """A sampler whose step draws every position on its own, from one table."""

    @abstractmethod
    def log_probs(self, model: GuidedModel, z: Tensor, s: Level, t: Level) -> Tensor:
        """Normalised log-probabilities of the tokens after the step, `(B, L, size)`."""

    def step(self, model: GuidedModel, z: Tensor, s: Level, t: Level, draws: Draws) -> Tensor:
        return draws.categorical(self.log_probs(model, z, s, t))


TOKEN_SAMPLERS: dict[str, type[TokenSampler]] = {}
"""Every registered sampler of tokens by its name in text."""

S = TypeVar("S", bound=type[TokenSampler])


def register(name: str, ids: tuple[str, ...] = ()) -> Callable[[S], S]:
    """Class decorator: gives a sampler of tokens its name in text.

    Raises:
        ValueError: The name is taken.
    """

    def enter(cls: S) -> S:
        if name in TOKEN_SAMPLERS:
            raise ValueError(f"register: {name!r} is taken by {TOKEN_SAMPLERS[name].__name__}")
        cls.name, cls.ids = name, ids
        TOKEN_SAMPLERS[name] = cls
        return cls

    return enter


def get(sampler: TokenSampler | str) -> TokenSampler:
    """A sampler of tokens from its name or text; samplers pass through.

    Raises:
        ValueError: The text is no sampler; says where and the nearest name.
    """
    if isinstance(sampler, TokenSampler):
        return sampler
    reader = Reader("sampler", sampler)
    reader.name(reader.body, "the name of a sampler of tokens")
    return cast(TokenSampler, reader.make(reader.body, TOKEN_SAMPLERS, TOKEN_SAMPLERS))


def process_of(model: GuidedModel) -> Process:
    """The process of the sampled model."""
    return cast(TokenDenoiser, model.evaluator.denoiser).process


def guided(model: GuidedModel, z: Tensor, s: Level, t: Level) -> Tensor:
    """The guided prediction at `s`, normalised log-probabilities."""
    return normalised(model(z, transition(s, t)).denoise, str(model.guide))


def space_of(model: GuidedModel) -> str:
    """The space that guides combine in."""
    return cast(TokenDenoiser, model.evaluator.denoiser).space


@register("ancestral", ids=("XD7", "S129"))
@dataclass(frozen=True)
class Ancestral(Factorised):
    r"""Draws every token from the guided reverse transition.

    In the space ``clean`` the guided prediction of the clean tokens goes through the posterior
    (D-CFG for masked tokens, as released); in the space ``posterior`` both posteriors are made
    first and guided then (D-CFG for uniform noise):

    .. math:: p_w(z_t \mid z_s) \propto p(z_t \mid z_s, c)^w \, p(z_t \mid z_s)^{1-w} .

    For masked tokens the first keeps the share ``u = (a_t - a_s) / (1 - a_s)`` of what is written
    in a step, the second makes it ``u Z_w / (u Z_w + 1 - u)``.

    * Cost: one evaluation of the guided model a step.
    * ``w = 1`` and ``w = 0`` are the sampler of one branch, to the bit.

    Raises:
        ValueError: The guide does not serve the domain; a row adds up to 0.

    Example:
        >>> import fairlead as fl
        >>> toy = fl.exact.golden_tokens()
        >>> d = toy.denoiser(fl.discrete.Masked(2))
        >>> out = fl.discrete.sample(d, {"label": 0}, guide="cfg(2)", steps=8, n=3)
        >>> out.x.shape, out.nfe.tolist()
        (torch.Size([3, 2]), [16, 16, 16])

    Source:
        Austin et al. (2021), arXiv:2107.03006; guided: Schiff et al. (2024), arXiv:2412.10193.
    """

    def log_probs(self, model: GuidedModel, z: Tensor, s: Level, t: Level) -> Tensor:
        prediction = guided(model, z, s, t)
        if space_of(model) == "posterior":
            return prediction
        denoiser = cast(TokenDenoiser, model.evaluator.denoiser)
        posterior = denoiser.process.log_posterior(prediction, z, s, t, denoiser.form)
        return normalised(posterior, self.name)
