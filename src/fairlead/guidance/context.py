"""What a guide knows at a step (`Context`) and remembers between steps (`Run`)."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser, working_dtype
from fairlead.energy.base import Energy, find
from fairlead.guidance.branch import COND, Branch, Capture, Maps, Predictions
from fairlead.guidance.report import Report
from fairlead.parameters import nearest
from fairlead.schedules import Level

if TYPE_CHECKING:
    from fairlead.guidance.algebra import Policy, Term

Place = tuple[int, ...]
"""Where a node stands in the tree of a guide."""

Lifetime = Literal["step", "trajectory"]

Weight = float | Tensor
"""A number, or a tensor that broadcasts against `x`."""

Planned = tuple[Weight, Branch, Branch]
"""A weight of this evaluation and the two branches whose difference it weighs."""


def magnitude(weight: Weight) -> Weight:
    """The absolute value of a weight."""
    return weight.abs() if isinstance(weight, Tensor) else abs(weight)


class Run:
    """The memory of one sampling run; made when sampling starts, thrown away when it ends.

    Args:
        seed: Seed of every random draw.
        indices: Index of each sample; sample `i` sees the same draws in any batch.
        steps: Number of steps, if known.
        check: Whether a NaN or infinity in a prediction raises.
        record: Whether the report keeps the norm of each term at each step.
        levels: The levels that the sampler walks, `steps + 1` of them, if known.
        energies: Energies by name, for guides that ask for one.
        masks: Masks by name, for guides that act on a region.
        reference: Clean samples that a guide may refer to, such as the source of an edit,
            `(B, ...)`.
        rewards: Functions that guides and samplers score samples with, by name.
        streaming: Whether the samples of a batch are at different steps, so that guides may not
            ask at which.
    """

    def __init__(
        self,
        seed: int = 0,
        indices: Iterable[int] | None = None,
        steps: int = 1,
        *,
        check: bool = True,
        record: bool = True,
        levels: Sequence[Level] = (),
        energies: Mapping[str, Any] | None = None,
        masks: Mapping[str, Tensor] | None = None,
        reference: Tensor | None = None,
        rewards: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        streaming: bool = False,
    ) -> None:
        self.seed = seed
        self.indices = None if indices is None else list(indices)
        self.step = -1
        self.stage = 0
        self.steps = steps
        self.check = check
        self.levels = tuple(levels)
        self.energies = dict(energies or {})
        self.rewards = dict(rewards or {})
        self.masks = dict(masks or {})
        self.reference = reference
        self.streaming = streaming
        self.memory: dict[str, Any] = {}
        self.carried: dict[str, Tensor] = {}
        self.report = Report(record)
        self._slots: dict[Any, tuple[int, Any, Any]] = {}
        self._fixed: dict[Any, Tensor] = {}

    def advance(self) -> None:
        """Begins the next step."""
        self.step += 1
        self.stage = 0

    def energy(self, owner: str, name: str) -> Energy:
        """An energy that a guide asks for by name.

        Raises:
            ValueError: There is none of that name.
        """
        return find(owner, name, self.energies)

    def reward(self, owner: str, name: str) -> Callable[[Tensor], Tensor]:
        """A function that a guide or a sampler scores samples with, by name.

        Raises:
            ValueError: There is none of that name.
            TypeError: It is no function.
        """
        if name not in self.rewards:
            raise ValueError(
                f"{owner}: there is no reward {name!r}: pass rewards={{{name!r}: function}}; "
                f"{nearest(name, self.rewards)}"
            )
        if not callable(self.rewards[name]):
            raise TypeError(
                f"{owner}: the reward {name!r} must be a function, got {self.rewards[name]!r}"
            )
        return self.rewards[name]

    def drop_history(self) -> None:
        """Makes a multistep solver begin anew, where the prediction has a jump in time."""
        self.memory.clear()

    def forget(self) -> None:
        """Empties every slot and the history of multistep solvers."""
        self._slots.clear()
        self.memory.clear()

    def recall(self, key: Any, default: Any) -> Any:
        """A slot as the last step left it, whatever this step has written since."""
        if key not in self._slots:
            return default
        step, value, before = self._slots[key]
        if step != self.step:
            return value
        return default if before is None else before[0]

    def remember(self, key: Any, value: Any) -> None:
        """Writes a slot; counts once a step, so later stages of a solver change nothing."""
        kept = self._slots.get(key)
        if kept is None:
            self._slots[key] = (self.step, value, None)
        elif kept[0] != self.step:
            self._slots[key] = (self.step, value, (kept[1],))

    def normal(
        self, like: Tensor, key: str, count: int = 0, rows: Sequence[int] | None = None
    ) -> Tensor:
        """Standard normal noise shaped like `like`, a function of seed, sample, step and key.

        Drawn in float32 on the CPU, so that it is the same on every device and dtype. `rows`
        says which samples of the batch `like` holds, where it is not all of them.
        """
        return self._normal(like, key, self.step, count, rows)

    def fixed(self, like: Tensor, key: str, rows: Sequence[int] | None = None) -> Tensor:
        """As `normal`, but the same in every step of the run."""
        slot = (key, tuple(like.shape), None if rows is None else tuple(rows))
        if slot not in self._fixed:
            self._fixed[slot] = self._normal(like, key, -2, 0, rows)
        return self._fixed[slot].to(like)

    def _normal(
        self, like: Tensor, key: str, step: int, count: int, rows: Sequence[int] | None
    ) -> Tensor:
        tag = zlib.crc32(key.encode())
        noise = torch.empty(like.shape, dtype=torch.float32)
        generator = torch.Generator()
        for row, index in zip(noise, self._indices(len(like), rows), strict=True):
            row.normal_(generator=generator.manual_seed(_mix(self.seed, index, step, tag, count)))
        return noise.to(like)

    def rand(self, like: Tensor, key: str, count: int = 0) -> Tensor:
        """Uniform numbers in (0, 1) shaped like `like`, in float64, as `normal` draws them."""
        tag = zlib.crc32(key.encode())
        drawn = torch.empty(like.shape, dtype=torch.float64)
        generator = torch.Generator()
        for row, index in zip(drawn, self._indices(len(like)), strict=True):
            seed = _mix(self.seed, index, self.step, tag, count)
            row.uniform_(generator=generator.manual_seed(seed))
        return drawn.clamp_(min=2.0**-53).to(like.device)

    def integers(self, batch: int, high: int, key: str) -> Tensor:
        """One uniform integer in [0, high) a sample, a function of seed, sample, step and key."""
        tag = zlib.crc32(key.encode())
        drawn = [_mix(self.seed, index, self.step, tag, 0) % high for index in self._indices(batch)]
        return torch.tensor(drawn)

    def uniform(self, batch: int | None, key: str) -> list[float]:
        """Numbers in [0, 1), one a sample, or one for all of them where `batch` is `None`.

        A function of seed, step and key, and of the sample where there is one each.
        """
        tag = zlib.crc32(key.encode())
        indices = (-1,) if batch is None else self._indices(batch)
        return [_mix(self.seed, i, self.step, tag, 0) / 2.0**63 for i in indices]

    @property
    def place(self) -> int:
        """Index of the step, for guides.

        Raises:
            ValueError: The samples of the batch are at different steps.
        """
        if self.streaming:
            raise ValueError(
                "stream: this guide asks at which step it is, and the rows of a stream are at "
                "different ones; leave out schedules and policies over the course of a run"
            )
        return self.step

    def begin_row(self, row: int) -> None:
        """Makes one sample of the batch a new one: what is remembered of it is zero."""
        self._slots = {k: (v[0], *_zeroed(v[1:], row)) for k, v in self._slots.items()}

    def take(self, index: Tensor) -> None:
        """Makes row `i` of all that is remembered that of sample `index[i]`."""
        self._slots = {k: (v[0], *_rows(v[1:], index)) for k, v in self._slots.items()}
        self.memory = _rows(self.memory, index)
        self.reference = _rows(self.reference, index)
        self.carried = _rows(self.carried, index)

    def keep(self, x: Tensor, rows: Tensor) -> Tensor:
        """Goes on with some of the samples `x` alone; returns them.

        Solvers that kept `x` itself find that they keep what is returned.
        """
        batch, same = len(x), {id(x): x[rows.to(x.device)]}
        self._slots = {k: (v[0], *_rows(v[1:], rows, batch, same)) for k, v in self._slots.items()}
        self.memory = _rows(self.memory, rows, batch, same)
        self.reference = _rows(self.reference, rows, batch)
        self.carried = _rows(self.carried, rows, batch)
        self.indices = list(self._indices(batch, rows.tolist()))
        self._fixed.clear()
        return same[id(x)]

    def _indices(self, batch: int, rows: Sequence[int] | None = None) -> Sequence[int]:
        if rows is not None:
            return rows if self.indices is None else [self.indices[i] for i in rows]
        return range(batch) if self.indices is None else self.indices


def _rows(
    value: Any, index: Tensor, batch: int | None = None, same: dict[int, Tensor] | None = None
) -> Any:
    """Every tensor inside of `batch` rows, by default as many as the index, with rows picked.

    `same` holds what was picked before, by the identity of the tensor.
    """
    if isinstance(value, Tensor):
        if same and id(value) in same:
            return same[id(value)]
        batched = value.ndim > 0 and len(value) == (len(index) if batch is None else batch)
        return value[index.to(value.device)] if batched else value
    if isinstance(value, dict):
        return {k: _rows(v, index, batch, same) for k, v in value.items()}
    if isinstance(value, list):
        return [_rows(v, index, batch, same) for v in value]
    if isinstance(value, tuple):
        made = [_rows(v, index, batch, same) for v in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    return value


def _zeroed(value: Any, row: int) -> Any:
    """Every tensor inside with zeros in a row."""
    if isinstance(value, Tensor):
        return value.index_fill(0, torch.tensor([row], device=value.device), 0)
    if isinstance(value, dict):
        return {k: _zeroed(v, row) for k, v in value.items()}
    if isinstance(value, list):
        return [_zeroed(v, row) for v in value]
    if isinstance(value, tuple):
        made = [_zeroed(v, row) for v in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    return value


def _mix(*key: int) -> int:
    """A well-spread 63-bit number from integers (the finaliser of splitmix64, chained)."""
    mask, h = 2**64 - 1, 0
    for k in key:
        h = (h ^ (k & mask)) + 0x9E3779B97F4A7C15 & mask
        h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & mask
        h = (h ^ h >> 27) * 0x94D049BB133111EB & mask
        h ^= h >> 31
    return h >> 1


class Plan:
    """What one evaluation of a guide wants.

    Attributes:
        base: The branch that terms are added to.
        terms: Weights and branches of the differences of each active term, by place.
        coefficients: Sum of the weights of each wanted branch, beside the base's own 1.
        read: Branches wanted whatever their coefficient: a rule looks at them.
        renoise: The branch that renoises, if not the guided prediction.
        policies: Policies and their places, outermost first.
        gradients: Weight of each active term that adds the gradient of an energy, and the branch
            whose prediction it looks at, by place.
        through: Branches whose prediction is differentiated in `x`.
        apart: Whether an active term moves the `denoise` end alone.
        moves: Terms that move the sample before the step, with their places.
        affine: Whether the prediction is affine in the branches.
        captures: What is kept of the attention of branches.
    """

    __slots__ = (
        "affine",
        "apart",
        "base",
        "captures",
        "coefficients",
        "gradients",
        "moves",
        "policies",
        "read",
        "renoise",
        "terms",
        "through",
    )

    def __init__(self, base: Branch = COND) -> None:
        self.base = base
        self.terms: dict[Place, list[Planned]] = {}
        self.coefficients: dict[Branch, Weight] = {}
        self.read: set[Branch] = set()
        self.renoise: Branch | None = None
        self.policies: list[tuple[Policy, Place]] = []
        self.gradients: dict[Place, tuple[Weight, Branch]] = {}
        self.through: set[Branch] = set()
        self.apart = False
        self.moves: list[tuple[Term, Place]] = []
        self.affine = True
        self.captures: dict[Branch, list[Capture]] = {}

    def enter(self, place: Place, differences: list[Planned]) -> None:
        """Enters what an active term adds."""
        self.terms[place] = differences
        for weight, positive, negative in differences:
            self.want(positive, weight)
            self.want(negative, -weight)

    def want(self, branch: Branch, coefficient: Weight) -> None:
        """Adds to the coefficient of a branch."""
        self.coefficients[branch] = self.coefficients.get(branch, 0.0) + coefficient

    def capture(self, branch: Branch, capture: Capture) -> None:
        """Keeps something of a branch's attention, for `Predictions.maps`; the branch is wanted."""
        self.look_at(branch)
        kept = self.captures.setdefault(branch, [])
        if capture not in kept:
            kept.append(capture)

    def look_at(self, branch: Branch) -> None:
        """Wants a branch whatever its coefficient."""
        self.read.add(branch)
        self.coefficients.setdefault(branch, 0.0)


class Context:
    """One evaluation of a guide, as terms, rules, schedules and policies see it.

    Attributes:
        x: The noisy sample, `(B, ...)`; `None` where `fl.combine` was given none.
        level: Noise level of this evaluation.
        start: Noise level at which the step began; differs in later stages of a solver.
        run: The run's memory.
        denoiser: The sampled model, or `None`.
        plan: What this evaluation wants.
        weight: Inside a rule, the total absolute weight of the terms below it; 1 where that
            is 0, so that dividing is safe.
        place: Where the node that is being asked stands.
        tokens: What was generated so far, `(B, n)`, where tokens follow one another.
        look: Where tokens follow one another: from moved keys and values of the tokens before,
            `(R, layers, 2, heads, n, width)`, and whether hidden states are wanted, the
            log-probabilities of the next token `(R, V)` and the mean hidden state `(R, H)`.
        batch: Number of samples.
        ndim: Number of dimensions of a prediction.
        done: Predictions so far, for what depends on them before all are there.
        renoising: Whether the update that is asked for is that of the `renoise` end.
        conditions: Names of the conditions, where they are known.
        maps: What was kept of the attention of branches at this evaluation.
        given: The condition of a state, for transforms that need another one.
        evaluated: What the network predicts at this evaluation: branches and their rows, `None`
            for all. Policies provide the rest.
        offered: Branches and rows that each policy was offered, by place.
        scratch: What is handed from the evaluation to `Policy.observe`; empty at its start.
    """

    def __init__(
        self,
        x: Tensor | None,
        level: Level | None,
        run: Run,
        denoiser: Denoiser | None = None,
        *,
        start: Level | None = None,
        batch: int = 0,
        ndim: int = 0,
        like: Tensor | None = None,
    ) -> None:
        self.x = x
        self._level = level
        self.start = start or level
        self.run = run
        self.denoiser = denoiser
        self.tokens: Tensor | None = None
        self.look: Callable[[Tensor, bool], tuple[Tensor, Tensor | None]] | None = None
        self._like = like  # where there is no x: a prediction, for dtype and device
        self.batch = batch if x is None else x.shape[0]
        # predictions over a vocabulary have one dimension more than the tokens
        tokens = x is not None and not x.is_floating_point()
        self.ndim = ndim if x is None else x.ndim + tokens
        self.conditions: frozenset[str] = frozenset()
        self.plan = Plan()
        self.maps: Maps = {}
        self.given: Callable[[str], Condition] | None = None
        self.weight: Weight = 1.0
        self.place: Place = ()
        self.done: Predictions | None = None
        self.renoising = False
        self.memo: dict[Any, Tensor] = {}
        self.graph: dict[Branch, tuple[Tensor, Tensor]] = {}
        self.evaluated: dict[Branch, Tensor | None] = {}
        self.offered: dict[Place, Mapping[Branch, Tensor | None]] = {}
        self.scratch: dict[Any, Any] = {}

    def move(self, x: Tensor, level: Level, start: Level) -> None:
        """Makes this the context of the next evaluation of a batch of the same shape."""
        self.x, self._level, self.start = x, level, start

    def release(self) -> None:
        """Lets go of what belongs to one evaluation, such as the graph of a prediction."""
        self.done = None
        self.memo.clear()
        self.graph.clear()

    def pull(self, branch: Branch, cotangent: Tensor) -> Tensor:
        """`J^T v`, `J` the derivative in `x` of a prediction: one backward through the network.

        Raises:
            ValueError: The prediction was not evaluated by the network, or has no derivative.
        """
        if branch not in self.graph:
            raise ValueError(
                f"the guide differentiates the branch {branch.name!r} in x, which needs the "
                "network: use fl.sample, and no policy that provides this branch"
            )
        leaf, prediction = self.graph[branch]
        if not prediction.requires_grad:
            raise ValueError(
                f"the prediction of branch {branch.name!r} has no derivative in x: the network "
                "must be differentiable, and may not run under torch.no_grad"
            )
        self.run.report.backwards += 1
        (pulled,) = torch.autograd.grad(prediction, leaf, cotangent, retain_graph=True)
        return pulled

    @property
    def level(self) -> Level:
        """Noise level of this evaluation.

        Raises:
            ValueError: `fl.combine` was given no `t` and `schedule`.
        """
        if self._level is None:
            raise ValueError("combine: this guide needs the noise level; give x, t and schedule")
        return self._level

    @property
    def alpha(self) -> Weight:
        """Signal level, a number or a tensor that broadcasts against `x`."""
        return self.level.alpha

    @property
    def sigma(self) -> Weight:
        """Noise level, a number or a tensor that broadcasts against `x`."""
        return self.level.sigma

    @property
    def target(self) -> Level:
        """The level at which the step ends; this evaluation's own where it is not known."""
        levels, step = self.run.levels, self.run.step
        return levels[step + 1] if 0 <= step < len(levels) - 1 else self.level

    @property
    def progress(self) -> float:
        """`i / (N - 1)`: 0 in the first step, 1 in the last."""
        return self.run.place / max(1, self.run.steps - 1)

    @property
    def fraction(self) -> float:
        """`i / N`: the share of the steps that is behind."""
        return self.run.place / self.run.steps

    @property
    def step(self) -> int:
        """Index of the step, from 0."""
        return self.run.place

    @property
    def like(self) -> Tensor:
        """A tensor with the shape, dtype and device of the batch."""
        like = self.x if self._like is None else self._like
        return torch.empty(self.batch, *[1] * (self.ndim - 1)) if like is None else like

    def noise(self, x0: Tensor) -> Tensor:
        """The noise prediction that belongs to a clean estimate."""
        if self.x is None:
            raise ValueError("combine: this guide needs the noisy sample; give x, t and schedule")
        return (self.x - self.alpha * x0) / self.sigma

    def recall(self, default: Any = None, name: str = "") -> Any:
        """What the node remembered in the last step, else `default`."""
        return self.run.recall((self.place, name), default)

    def remember(self, value: Any, name: str = "") -> None:
        """Keeps a value for the next step; counts once a step."""
        self.run.remember((self.place, name), value)

    def normal(self, like: Tensor, key: str, rows: Sequence[int] | None = None) -> Tensor:
        """Standard normal noise shaped like `like`, the same in all stages of a step.

        `rows` says which samples of the batch `like` holds, where it is not all of them.
        """
        return self.run.normal(like, key, rows=rows)

    def per_sample(self, values: Sequence[float]) -> Tensor:
        """A weight per sample as a tensor that broadcasts against `x`.

        Raises:
            ValueError: There are not as many as samples in the batch.
        """
        if len(values) != self.batch:
            raise ValueError(
                f"weight: {len(values)} values were given for a batch of {self.batch} samples"
            )
        like = self.like
        # tokens: log-probabilities are in float64
        dtype = working_dtype(like) if like.is_floating_point() else torch.float64
        weight = torch.tensor(values, dtype=dtype, device=like.device)
        return weight.reshape(-1, *[1] * (self.ndim - 1))
