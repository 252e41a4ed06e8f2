"""Flows on the simplex of probabilities: Dirichlet flow matching and Bayesian flow networks."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fairlead.discrete.process import Process, transition
from fairlead.discrete.sampler import Draws, Numbers, TokenSampler, guided, process_of, register
from fairlead.guidance.domains import project
from fairlead.guidance.guided import GuidedModel
from fairlead.parameters import Range, choose
from fairlead.schedules import Level


@dataclass(frozen=True)
class OnSimplex(Process):
    """A process whose noisy sequences are points of the simplex, `(B, L, K)`.

    The time `t` of its levels falls from 1 to 0; the network's own time is `network_time`.
    """

    points: ClassVar[bool] = True

    eps: Annotated[float, Range(0, 1, closed="left")] = 0.0

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        u = torch.rand(*shape, self.tokens, generator=generator, dtype=torch.float64)
        return _shares(u)

    def loss(self, logits: Tensor, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Cross-entropy of the clean token at every position."""
        return F.cross_entropy(logits.float().transpose(1, 2), x, reduction="none")


@dataclass(frozen=True)
class Dirichlet(OnSimplex):
    r"""Points of ``Dir(1 + (al - 1) e_x)``, with ``al`` from 1, the uniform law, to ``top``.

    Networks take ``al`` as their time and predict ``p(x | z)``; guides combine probabilities. In
    training ``al = 1 + s E`` with `E` exponential, which also goes beyond ``top``
    (``training_times``).

    Args:
        tokens: Number `K` of token values, >= 2.
        eps: Not used.
        top: Largest ``al``, > 1.

    Source:
        Stark et al. (2024), arXiv:2402.05841.
    """

    name: ClassVar[str] = "dirichlet"
    space: ClassVar[str] = "simplex"

    top: Annotated[float, Range(1, math.inf, closed="neither")] = 8.0

    def network_time(self, t: Tensor) -> Tensor:
        return 1 + (1 - t) * (self.top - 1)

    def from_network(self, time: float) -> float:
        return 1 - (time - 1) / (self.top - 1)

    def training_times(
        self, n: int, generator: torch.Generator | None = None, scale: float = 2.0
    ) -> Tensor:
        """Times `(n,)` at which networks are trained; below 0 where ``al`` is above ``top``."""
        al = -scale * (1 - torch.rand(n, generator=generator)).log()
        return 1 - al / (self.top - 1)

    @staticmethod
    def features(z: Tensor, al: Tensor, pc: float = 2.0) -> Tensor:
        """What networks of the paper read: `z (1 - q)` beside `z q`, `(B, L, 2 K)`.

        ``q = pc / (al + pc - 1)`` falls from 1 at ``al = 1``; `al` has the shape `(B,)`.
        """
        q = (pc / (al + pc - 1))[:, None, None].to(z)
        return torch.cat([z * (1 - q), z * q], -1)

    def concentration(self, t: float) -> float:
        """``al`` at a time."""
        return 1 + (1 - t) * (self.top - 1)

    def likelihood(self, z: Tensor, t: float) -> Tensor:
        p: Tensor = z.double() ** (self.concentration(t) - 1)
        return p / p.sum(-1, keepdim=True).clamp(min=1e-300)

    def corrupt(self, x: Tensor, t: Tensor, generator: torch.Generator | None = None) -> Tensor:
        al = self.network_time(t)[:, None, None]
        concentration = 1 + (al - 1) * F.one_hot(x, self.tokens)
        gamma = torch._standard_gamma(concentration.double(), generator)
        return gamma / gamma.sum(-1, keepdim=True)


@dataclass(frozen=True)
class BayesianFlow(OnSimplex):
    r"""Beliefs ``theta`` about each token, sharpened by noisy looks at it.

    With the accuracy ``beta(t) = -(4/K) log(1 - t + t e^{-K beta_1 / 4})`` of the network's time
    `t` from 0 to 1 and ``beta_1 = 20.4054 / K``, ``theta = softmax(y)`` and
    ``y ~ N(beta (K e_x - 1), beta K)``. Networks are shown ``theta`` (those of the paper
    ``2 theta - 1``); the loss is ``K beta'(t) / 2 |e_x - p_theta|^2``. A token whose belief is
    certain keeps it, so that a start with such rows is filled in around them.

    Args:
        tokens: Number `K` of token values, >= 2.
        eps: Not used.

    Source:
        Tao, Abe (2024), arXiv:2407.20294.
    """

    name: ClassVar[str] = "bayesian-flow"

    def network_time(self, t: Tensor) -> Tensor:
        return 1 - t

    def from_network(self, time: float) -> float:
        return 1 - time

    def beta(self, t: float) -> float:
        """Accuracy at the time of a level."""
        end, own = math.exp(-20.4054 / 4), 1 - t
        return -(4 / self.tokens) * math.log(1 - own + own * end)

    def rate(self, t: Tensor) -> Tensor:
        """``beta'`` at the times of levels, with respect to the network's time."""
        end, own = math.exp(-20.4054 / 4), 1 - t
        return (4 / self.tokens) * (1 - end) / (1 - own + own * end)

    def likelihood(self, z: Tensor, t: float) -> Tensor:
        return z.double()

    def loss(self, logits: Tensor, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        wide = logits.double() if logits.dtype == torch.float64 else logits.float()
        off = F.one_hot(x, self.tokens).to(wide) - wide.softmax(-1)
        return (self.tokens / 2 * self.rate(t).to(wide))[:, None] * off.square().sum(-1)

    def corrupt(self, x: Tensor, t: Tensor, generator: torch.Generator | None = None) -> Tensor:
        beta = torch.tensor([self.beta(float(v)) for v in t], dtype=torch.float64)[:, None, None]
        n = torch.randn(*x.shape, self.tokens, generator=generator, dtype=torch.float64)
        mean = beta * (self.tokens * F.one_hot(x, self.tokens) - 1)
        return torch.softmax(mean + (beta * self.tokens).sqrt() * n, -1)


def _shares(u: Tensor) -> Tensor:
    """A uniform point of the simplex from uniform numbers."""
    e = -u.log()
    return e / e.sum(-1, keepdim=True)


def uniform_points(process: Process, shape: tuple[int, ...], draws: Draws) -> Tensor:
    """Points of the simplex where a flow starts, `(B, L, K)`."""
    like = torch.empty(*shape, process.tokens, dtype=torch.float64)
    return _shares(cast(Numbers, draws).uniform(like))


def needs_dirichlet(owner: str, process: Process) -> Dirichlet:
    """The process, which must be a `Dirichlet`.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(process, Dirichlet):
        raise ValueError(f"{owner}: needs a Dirichlet process, not {process.name}")
    return process


@register("dirichlet", ids=("S068",))
@dataclass(frozen=True)
class DirichletFlow(TokenSampler):
    r"""Follows the flow of the Dirichlet path by Euler steps in ``al``.

    .. math:: u(x) = \sum_i p_w(i) \, C(x_i, \mathrm{al}) (e_i - x), \qquad
        C(b, a) = -\frac{\partial I_b(a, K - 1)}{\partial a}
                  \frac{B(a, K - 1)}{(1 - b)^{K-1} b^{a-1}} ,

    with ``p_w`` the guided probabilities (domain ``simplex``), ``I`` the regularised incomplete
    beta function and ``B`` the beta function. ``form="score"`` combines scores, which gives the
    same ``p_w`` but does not project it where an entry is negative.

    * Cost: one evaluation of the guided model a step.
    * The answer is the argmax of the last ``p_w``.

    Args:
        form: ``linear`` projects ``p_w`` onto the simplex; ``score`` leaves it.
        answer: ``guided``; or ``cond``, the argmax of the conditional probabilities, as the
            released code has it.

    Raises:
        ValueError: A parameter is unknown, or the process is no ``Dirichlet``.

    Source:
        Stark et al. (2024), arXiv:2402.05841.
    """

    spaces: ClassVar[tuple[str, ...]] = ("simplex",)

    form: Literal["linear", "score"] = "linear"
    answer: Literal["guided", "cond"] = "guided"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.name, "form", self.form, ("linear", "score"))
        choose(self.name, "answer", self.answer, ("guided", "cond"))

    def check(self, model: GuidedModel) -> None:
        needs_dirichlet(self.name, process_of(model))

    def start(self, process: Process, shape: tuple[int, ...], draws: Draws) -> Tensor:
        return uniform_points(process, shape, draws)

    def step(self, model: GuidedModel, z: Tensor, s: Level, t: Level, draws: Draws) -> Tensor:
        process = needs_dirichlet(self.name, process_of(model))
        p = self._guided(model(z, transition(s, t)).denoise)
        al, to = process.concentration(s.t), process.concentration(t.t)
        flow = p * coefficient(z, max(al, 1.001), process.tokens)
        moved = z + (to - al) * (flow - z * flow.sum(-1, keepdim=True))
        return project(moved)

    def _guided(self, p: Tensor) -> Tensor:
        return project(p) if self.form == "linear" else p

    def finish(self, model: GuidedModel, z: Tensor, t: Level, draws: Draws) -> Tensor:
        last, predictions = model.last, model.predictions
        assert last is not None and predictions is not None  # noqa: PT018
        return (predictions.base if self.answer == "cond" else self._guided(last.denoise)).argmax(
            -1
        )


def coefficient(b: Tensor, al: float, size: int) -> Tensor:
    """`C(b, al)` of Dirichlet flow matching; 0 at `b = 1` and where `b^(al - 1)` is 0."""
    from scipy.special import betainc, betaln

    x = b.double().clamp(0, 1).cpu().numpy()
    h = 1e-4
    slope = (betainc(al + h, size - 1, x) - betainc(al - h, size - 1, x)) / (2 * h)
    inside = b.double().clamp(1e-300, 1 - 1e-12)
    log_density = (size - 1) * torch.log1p(-inside) + (al - 1) * inside.log()
    value = -torch.from_numpy(slope).to(b) * (float(betaln(al, size - 1)) - log_density).exp()
    fits = (b > 0) & (b < 1 - 1e-12) & (log_density > -600)
    return torch.where(fits, value, 0.0)


@register("bfn", ids=("S033",))
@dataclass(frozen=True)
class BayesianFlowSampler(TokenSampler):
    r"""Sharpens beliefs by looks at tokens that the guided model believes in.

    In step `i` of `n`, with ``a = beta(i/n) - beta((i-1)/n)`` and ``k ~ p_w``,

    .. math:: y = a (K e_k - 1) + \sqrt{a K} \, n, \qquad
              \theta \gets \theta e^y / \sum \theta e^y .

    * Cost: one evaluation of the guided model a step, and one for the answer, its argmax.
    * Guides combine log-probabilities: ``w = 1`` is conditional; the paper's strength is
      ``w - 1``, 4 there.

    Args:
        receiver: ``draw``, ``k ~ p_w``, whose law is right in the limit; or ``argmax``, as the
            released code has it: sharper, less diverse.

    Raises:
        ValueError: A parameter is unknown, or the process is no ``BayesianFlow``.

    Source:
        Tao, Abe (2024), arXiv:2407.20294.
    """

    spaces: ClassVar[tuple[str, ...]] = ("clean",)

    receiver: Literal["draw", "argmax"] = "draw"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.name, "receiver", self.receiver, ("draw", "argmax"))

    def check(self, model: GuidedModel) -> None:
        if not isinstance(process_of(model), BayesianFlow):
            raise ValueError(
                f"{self.name}: needs a BayesianFlow process, not {process_of(model).name}"
            )

    def start(self, process: Process, shape: tuple[int, ...], draws: Draws) -> Tensor:
        return torch.full((*shape, process.tokens), 1 / process.tokens, dtype=torch.float64)

    def step(self, model: GuidedModel, z: Tensor, s: Level, t: Level, draws: Draws) -> Tensor:
        process: Any = process_of(model)
        log_p = guided(model, z, s, t)
        k = log_p.argmax(-1) if self.receiver == "argmax" else draws.categorical(log_p)
        a = process.beta(t.t) - process.beta(s.t)
        n = cast(Numbers, draws).normal(z)
        y = (
            a * (process.tokens * F.one_hot(k, process.tokens) - 1)
            + math.sqrt(a * process.tokens) * n
        )
        return torch.softmax(z.clamp(min=1e-300).log() + y, -1)

    def finish(self, model: GuidedModel, z: Tensor, t: Level, draws: Draws) -> Tensor:
        return guided(model, z, t, t).argmax(-1)
