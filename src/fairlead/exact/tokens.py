"""Short sequences of tokens whose joint distribution is a table: everything is enumerable."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.discrete.denoiser import TokenDenoiser
from fairlead.discrete.process import Process
from fairlead.discrete.sampler import Factorised, TokenSampler
from fairlead.discrete.sampler import get as get_sampler
from fairlead.discrete.sampling import prepare
from fairlead.energy.base import Judge
from fairlead.guidance.algebra import Guide
from fairlead.guidance.context import Run
from fairlead.guidance.domains import FLOOR
from fairlead.guidance.spec import guide as parse
from fairlead.schedules import Level

GOLDEN = {
    "tilt": {
        2.0: (0.774194, 0.050179, 0.025090, 0.150538),
        3.0: (0.873413, 0.022015, 0.005504, 0.099068),
    },
    "left to right": {
        2.0: (0.793403, 0.051424, 0.022167, 0.133005),
        3.0: (0.904235, 0.022792, 0.003841, 0.069132),
    },
    "right to left": {
        2.0: (0.722246, 0.063587, 0.023406, 0.190761),
        3.0: (0.781551, 0.038822, 0.004925, 0.174701),
    },
    "masked": {
        2.0: (0.757825, 0.057506, 0.022787, 0.161883),
        3.0: (0.842893, 0.030807, 0.004383, 0.121917),
    },
    "rates": {
        2.0: (0.760267, 0.057088, 0.022744, 0.159901),
        3.0: (0.853826, 0.029379, 0.004286, 0.112509),
    },
}
"""Laws of the golden tokens over 00, 01, 10, 11 for `label` 0, by sampler and by scale.

`tilt` is `p_c^w p_u^(1-w) / Z` of whole sequences; the next two are tokenwise guidance in the
two orders; `masked` is the limit of many steps of the masked process with normalised tempering,
the average of the orders; `rates` the limit of raw rates.
"""

LATEST = 1 - 1e-9
"""Latest time of a likelihood: at 1 a token that shows may be impossible."""


@dataclass(frozen=True)
class TokenTable:
    """A distribution of sequences for each class, as a table.

    Attributes:
        joint: `(C, K, ..., K)`, one table a class, each adding up to 1; float64.
        prior: `(C,)`, the probabilities of the classes.
    """

    joint: Tensor
    prior: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "joint", torch.as_tensor(self.joint, dtype=torch.float64))
        object.__setattr__(self, "prior", torch.as_tensor(self.prior, dtype=torch.float64))
        shape = tuple(self.joint.shape)
        if len(shape) < 2 or len(set(shape[1:])) != 1:
            raise ValueError(f"TokenTable: joint must be (C, K, ..., K), got {shape}")
        if self.prior.shape != shape[:1]:
            raise ValueError(
                f"TokenTable: prior must be ({shape[0]},), got {tuple(self.prior.shape)}"
            )
        for name, table in (("joint", self.joint.flatten(1)), ("prior", self.prior[None])):
            total = table.sum(1)
            if bool((table < 0).any()) or not torch.allclose(total, torch.ones_like(total)):
                raise ValueError(f"TokenTable: {name} must hold probabilities that add up to 1")

    @property
    def tokens(self) -> int:
        """Number of token values."""
        return self.joint.shape[1]

    @property
    def length(self) -> int:
        """Length of a sequence."""
        return self.joint.ndim - 1

    @cached_property
    def sequences(self) -> Tensor:
        """Every sequence, `(K^L, L)`, the last token fastest."""
        values = torch.arange(self.tokens)
        return torch.cartesian_prod(*[values] * self.length).reshape(-1, self.length)

    @cached_property
    def laws(self) -> Tensor:
        """Probabilities of the sequences, `(C + 1, K^L)`; the last row is the mixture."""
        flat = self.joint.flatten(1)
        return torch.cat([flat, (self.prior @ flat)[None]])

    def tilted(self, w: float, label: int) -> Tensor:
        """`p_c^w p_u^(1-w) / Z` of whole sequences, `(K^L,)`."""
        c, u = self.laws[label], self.laws[-1]
        weight = torch.where(c > 0, c**w * u.clamp(min=1e-300) ** (1 - w), 0.0)
        return weight / weight.sum()

    def ordered(self, w: float, label: int, order: Sequence[int]) -> Tensor:
        """The law of tokens written one after the other in an order, each tempered, `(K^L,)`."""
        total = torch.ones(len(self.sequences), dtype=torch.float64)
        for i in range(len(order)):
            seen = self.sequences[:, list(order[:i])]
            match = (seen[:, None] == seen[None]).all(-1)
            token = self.sequences[:, order[i]]
            tables = []
            for law in (self.laws[label], self.laws[-1]):
                p = torch.stack(
                    [(match & (token[None] == k)).double() @ law for k in range(self.tokens)], 1
                )
                tables.append(p / p.sum(1, keepdim=True).clamp(min=1e-300))
            c, u = tables
            weight = torch.where(c > 0, c**w * u.clamp(min=1e-300) ** (1 - w), 0.0)
            weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-300)
            total = total * weight.gather(1, token[:, None])[:, 0]
        return total

    def denoiser(self, process: Process, **options: Any) -> TokenDenoiser:
        """The exact denoiser; condition `label`, null is the mixture.

        For uniform noise it predicts the leave-one-out posterior, as trained networks do, else
        `p(x | z)`. Options are those of `TokenDenoiser`.
        """
        return TokenDenoiser(
            _Oracle(self, process),
            process,
            {"label": len(self.prior)},
            length=self.length,
            choices={"label": len(self.prior)},
            trained=("cond", "null"),
            **options,
        )

    def classifier(self, process: Process, label: int = 0, name: str = "classifier") -> Judge:
        """The exact classifier of noisy sequences; takes tokens, or weights on them."""
        return _Classifier(self, process, label, name)


def golden_tokens() -> TokenTable:
    """Two binary tokens in two classes, the toy that `GOLDEN` is about."""
    joint = [[[0.6, 0.1], [0.1, 0.2]], [[0.1, 0.2], [0.5, 0.2]]]
    return TokenTable(torch.tensor(joint, dtype=torch.float64), torch.tensor([0.5, 0.5]))


class _Oracle:
    """Log-probabilities of the clean tokens from the table."""

    def __init__(self, table: TokenTable, process: Process) -> None:
        self.table, self.process = table, process
        self.others = process.leave_one_out

    def __call__(self, z: Tensor, t: Tensor, label: Tensor) -> Tensor:
        table, time = self.table, self.process.from_network(float(t[0]))
        seen = self.process.likelihood(z, min(time, LATEST))
        index = table.sequences.expand(len(z), -1, -1)
        factors = [seen[:, i].gather(1, index[..., i]) for i in range(table.length)]
        law = table.laws.to(z.device)[label]
        out = []
        for i in range(table.length):
            weight = law
            for j, factor in enumerate(factors):
                if not (self.others and i == j):
                    weight = weight * factor
            columns = [weight[:, table.sequences[:, i] == k].sum(1) for k in range(table.tokens)]
            out.append(torch.stack(columns, -1))
        p = torch.stack(out, 1)
        total = p.sum(-1, keepdim=True)
        p = torch.where(total > 0, p / total.clamp(min=1e-300), 1 / table.tokens)
        return torch.where(p > 0, p.clamp(min=1e-300).log(), FLOOR)


class _Classifier(Judge):
    """Log-probabilities of the classes of a noisy sequence, exact."""

    noisy = True

    def __init__(self, table: TokenTable, process: Process, label: int, name: str) -> None:
        self.table, self.process, self.label, self.name = table, process, label, name

    def log_probs(self, z: Tensor, level: Level | None = None) -> Tensor:
        table = self.table
        seen = self.process.likelihood(z, min(level.t, LATEST) if level is not None else 0.0)
        index = table.sequences.expand(len(z), -1, -1)
        evidence = torch.ones(len(z), len(table.sequences), dtype=torch.float64)
        for i in range(table.length):
            evidence = evidence * seen[:, i].gather(1, index[..., i])
        joint = evidence @ table.laws[:-1].T * table.prior
        total = joint.sum(-1, keepdim=True)
        p = torch.where(total > 0, joint / total.clamp(min=1e-300), table.prior)
        return p.clamp(min=1e-300).log()


def token_law(
    denoiser: TokenDenoiser,
    condition: Mapping[str, Any] | None = None,
    *,
    guide: Guide | str | None = None,
    sampler: TokenSampler | str = "ancestral",
    steps: int = 8,
    levels: Sequence[Level] | None = None,
    space: Any = None,
    z: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """The exact law of what a sampler draws: every case is followed, none is drawn.

    Args:
        denoiser: A model whose sequences are short: `size^L` states are kept.
        condition: One value a name.
        guide: As for `fl.discrete.sample`.
        sampler: As for `fl.discrete.sample`.
        steps: Number of steps.
        levels: The levels to walk, in place of the grid of the process.
        space: As for `fl.discrete.sample`.
        z: Where to start, `(L,)`; default: pure noise.
        **options: `energies`, `rewards`, `models`, `masks`, as for `fl.discrete.sample`.

    Returns:
        `(size^L,)` in float64, the last token fastest; with masks for what is still masked.

    Example:
        >>> import fairlead as fl
        >>> d = fl.exact.golden_tokens().denoiser(fl.discrete.Masked(2, eps=0.0))
        >>> law = fl.exact.token_law(d, {"label": 0}, guide="cfg(2)", steps=16)
        >>> clean = law.reshape(3, 3)[:2, :2].flatten()
        >>> [round(p, 6) for p in clean.tolist()]
        [0.749832, 0.067342, 0.028594, 0.154232]
    """
    rule, process = get_sampler(sampler), denoiser.process
    assert denoiser.shape is not None
    length = denoiser.shape[0]
    walk = list(levels or rule.grid(process, steps))
    values = torch.arange(process.size)
    states = torch.cartesian_prod(*[values] * length).reshape(-1, length)
    law = torch.ones(len(states), dtype=torch.float64)
    if z is None:
        prior = process.prior()
        for i in range(length):
            law = law * prior[states[:, i]]
    else:
        law = (states == z).all(1).double()
    masks = {
        k: torch.as_tensor(v, dtype=torch.float32) for k, v in options.pop("masks", {}).items()
    }
    energies = options.pop("energies", None)

    def model_of(rows: int) -> Any:
        fitted = {k: v.expand(rows, length) for k, v in masks.items()}
        run = Run(
            0,
            range(rows),
            len(walk) - 1,
            record=False,
            levels=walk,
            energies=energies,
            masks=fitted,
        )
        given = {"cond": Condition(condition or {}).expand(rows)}
        return prepare(denoiser, given, parse(guide), rule, run, space=space, **options)

    factorised = isinstance(rule, Factorised)
    alone = None if factorised else model_of(1)
    models: dict[int, Any] = {}
    for number, (s, t) in enumerate(pairwise(walk)):
        live = law > 0
        if isinstance(rule, Factorised):
            rows = int(live.sum())
            model = models.setdefault(rows, None) or model_of(rows)
            models[rows] = model
            model.run.step = number - 1
            model.begin(s)
            with torch.no_grad():
                p = rule.log_probs(model, states[live], s, t).exp()
            table = torch.ones(rows, len(states), dtype=torch.float64)
            for i in range(length):
                table = table * p[:, i][:, states[:, i]]
            law = law[live] @ table
            continue
        after = torch.zeros_like(law)
        assert alone is not None
        for state, mass in zip(states[live], law[live].tolist(), strict=True):
            for path in _paths():
                alone.run.step = number - 1
                alone.begin(s)
                with torch.no_grad():
                    out = rule.step(alone, state[None].clone(), s, t, path)
                after[_index(out[0], process.size)] += mass * path.chance
        law = after
    live = law > 0
    rows = int(live.sum())
    model = model_of(rows)
    model.run.step = len(walk) - 2
    model.begin(walk[-1])
    with torch.no_grad():
        ends = rule.finish(model, states[live].clone(), walk[-1], _Path([]))
    final = torch.zeros_like(law)
    for end, mass in zip(ends, law[live], strict=True):
        final[_index(end, process.size)] += mass
    return final


def _index(z: Tensor, size: int) -> int:
    index = 0
    for token in z.tolist():
        index = index * size + token
    return index


def _paths() -> Iterator["_Path"]:
    """Every way through a step's random choices, which has its probability once it is walked."""
    plan: list[int] | None = []
    while plan is not None:
        path = _Path(plan)
        yield path
        plan = path.following()


class _Path:
    """Random choices (`Draws`) along one path; later ones are the first possible."""

    def __init__(self, plan: list[int]) -> None:
        self.plan = plan
        self.taken: list[int] = []
        self.sizes: list[int] = []
        self.chance = 1.0

    def _choose(self, p: Tensor) -> int:
        possible = (p > 1e-14).nonzero().flatten().tolist()
        place = len(self.taken)
        number = self.plan[place] if place < len(self.plan) else 0
        self.taken.append(number)
        self.sizes.append(len(possible))
        self.chance *= p[possible[number]].item()
        return int(possible[number])

    def categorical(self, log_p: Tensor) -> Tensor:
        rows = log_p.double().exp().reshape(-1, log_p.shape[-1])
        return torch.tensor([self._choose(r) for r in rows]).reshape(log_p.shape[:-1])

    def subset(self, log_weight: Tensor, counts: Tensor) -> Tensor:
        taken = torch.zeros(log_weight.shape, dtype=torch.bool)
        for row, weights in enumerate(log_weight.double()):
            for _ in range(int(counts[row])):
                left = weights.masked_fill(taken[row], -torch.inf)
                if torch.isneginf(left.max()):
                    break
                taken[row, self._choose(torch.softmax(left, 0))] = True
        return taken

    def following(self) -> list[int] | None:
        """The plan of the next path, depth first; `None` after the last."""
        for place in reversed(range(len(self.taken))):
            if self.taken[place] + 1 < self.sizes[place]:
                return [*self.taken[:place], self.taken[place] + 1]
        return None
