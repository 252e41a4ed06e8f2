"""Branches: the single predictions that a guide combines."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from fairlead.attention import Attended, AttentionLayer
from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.guidance.replacing import Replacement
from fairlead.parameters import nearest

if TYPE_CHECKING:
    from fairlead.guidance.context import Context


class Transform(ABC):
    """Changes a branch's condition; a hashable value."""

    def check(self, condition: Condition, denoiser: Denoiser) -> None:  # noqa: B027
        """Refuses a condition that it cannot change, before the first step."""

    @abstractmethod
    def __call__(self, condition: Condition, denoiser: Denoiser, ctx: "Context") -> Condition:
        """The changed condition.

        Random draws come from `ctx.normal`, so that the stages of one step see the same.
        """


class Perturbation(ABC):
    """Changes what a module of the network returns, for the rows of one branch only."""

    @abstractmethod
    def modules(self, denoiser: Denoiser) -> list[nn.Module]:
        """The modules it acts on.

        Raises:
            ValueError: The network has none of them; lists what exists.
        """

    @abstractmethod
    def __call__(
        self, inputs: Mapping[str, Any], output: Any, rows: Sequence[int], ctx: "Context"
    ) -> Any:
        """The output for the rows of its branch, from their arguments by name and plain output.

        `rows` are the samples of the batch that these rows belong to.
        """

    def on(
        self,
        module: nn.Module,
        inputs: Mapping[str, Any],
        output: Any,
        rows: Sequence[int],
        ctx: "Context",
    ) -> Any:
        """The same, for perturbations that look at the module; by default they do not."""
        return self(inputs, output, rows, ctx)


class Output(ABC):
    """Changes what a branch predicts, before anything is combined; a hashable value."""

    @abstractmethod
    def __call__(self, prediction: Tensor, ctx: "Context") -> Tensor:
        """The changed clean estimate, `(b, ...)` as it came."""


class AttentionPerturbation(ABC):
    """Changes attention in some layers, for the rows of one branch only."""

    @abstractmethod
    def layers(self, denoiser: Denoiser) -> list[AttentionLayer]:
        """The layers it acts on.

        Raises:
            ValueError: The network has none of them; lists what exists.
        """

    @abstractmethod
    def __call__(self, call: Attended, rows: Sequence[int], ctx: "Context") -> Tensor:
        """What the attention call returns for the rows of its branch.

        `rows` are the samples of the batch that these rows belong to.
        """


class Capture(ABC):
    """What is kept of the attention of a branch, layer by layer; a hashable value."""

    @abstractmethod
    def layers(self, denoiser: Denoiser) -> list[AttentionLayer]:
        """The layers it reads.

        Raises:
            ValueError: The network has none of them; lists what exists.
        """

    @abstractmethod
    def __call__(self, call: Attended) -> Tensor | None:
        """What is kept of a call, `(M, ...)`; `None` keeps nothing."""


class Point(ABC):
    """Moves the input of a branch away from `x`, given the predictions it needs.

    `keeps_noise` says what the branch predicts: the clean estimate there or, where it is true,
    the estimate that the noise predicted there means for `x`. `past` says that what moves is the
    keys and values of the tokens before, where tokens follow one another.
    """

    keeps_noise: ClassVar[bool] = False
    past: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, x: Tensor, predictions: "Predictions", ctx: "Context") -> Tensor:
        """Where the branch is evaluated, shaped like `x`."""


@dataclass(frozen=True)
class Branch:
    """One prediction: a model under a condition state, at a point, with perturbations.

    Two branches that differ in nothing but their name are one evaluation.

    Args:
        name: How reports and `fl.combine` call it.
        state: Condition state: `cond`, `null`, or a name given to `fl.sample(states=...)`.
        nulled: Names of the conditions that are null in it, for states in between.
        taken: Names of conditions whose value is that of another state, each with the state.
        model: Name of the model; empty is the sampled one.
        transforms: Changes of the condition, in order.
        perturbations: Changes inside the network.
        needs: Branches that must be predicted before.
        point: Where it is evaluated, if not at `x`.
        outputs: Changes of its prediction, in order.
    """

    name: str = field(compare=False)
    state: str = "cond"
    nulled: tuple[str, ...] = ()
    taken: tuple[tuple[str, str], ...] = ()
    model: str = ""
    transforms: tuple[Transform, ...] = ()
    perturbations: tuple[Perturbation | AttentionPerturbation | Replacement, ...] = ()
    needs: tuple["Branch", ...] = ()
    point: Point | None = None
    outputs: tuple[Output, ...] = ()

    @cached_property
    def _hash(self) -> int:
        said = (self.state, self.nulled, self.taken, self.model)
        changed = (self.transforms, self.perturbations, self.needs, self.point, self.outputs)
        return hash((said, changed))

    def __hash__(self) -> int:
        return self._hash

    @property
    def whole(self) -> bool:
        """Whether it sees all that was asked for, and not a null or another state."""
        return self.state == "cond" and not self.nulled and not self.taken

    def among(self, conditions: frozenset[str]) -> "Branch":
        """This branch by its shortest name, where `conditions` are all that there are."""
        if conditions and conditions == frozenset(self.nulled):
            return replace(self, state="null", nulled=(), taken=())
        if conditions and conditions == frozenset(name for name, _ in self.taken):
            states = {state for _, state in self.taken}
            if len(states) == 1:
                return replace(self, state=states.pop(), taken=())
        return self

    def followed(self, output: Output) -> "Branch":
        """This branch with one more change of its prediction."""
        return replace(self, outputs=(*self.outputs, output))

    def transformed(self, transform: Transform) -> "Branch":
        """This branch with one more change of its condition."""
        return replace(self, transforms=(*self.transforms, transform))


Maps = dict[tuple[Branch, Capture], dict[str, list[Tensor]]]
"""What was kept of the attention of branches, by layer."""


COND = Branch("cond")
NULL = Branch("null", state="null")


class Predictions(Mapping[Branch | str, Tensor]):
    """The clean estimates of one evaluation, by branch or by branch name.

    Attributes:
        base: The prediction that terms are added to, usually `cond`.
    """

    def __init__(
        self, base: Branch, values: dict[Branch, Tensor], maps: Maps | None = None
    ) -> None:
        self.values_by_branch = values
        self.base_branch = base
        self._maps = maps or {}

    @property
    def base(self) -> Tensor:
        return self.values_by_branch[self.base_branch]

    def __getitem__(self, key: Branch | str) -> Tensor:
        if isinstance(key, Branch):
            return self.values_by_branch[key]
        for branch, value in self.values_by_branch.items():
            if branch.name == key:
                return value
        raise KeyError(f"predictions: no branch {key!r}; {nearest(key, self.names)}")

    def maps(self, branch: Branch, capture: Capture) -> dict[str, list[Tensor]] | None:
        """What was kept of a branch's attention by layer, one tensor `(M, ...)` a call.

        `M` is the batch, or a multiple of it where a layer folds another axis into it. `None` for
        a branch that was not evaluated with this capture.
        """
        return self._maps.get((branch, capture))

    @property
    def names(self) -> list[str]:
        """Names of the branches at hand."""
        return [b.name for b in self.values_by_branch]

    def __iter__(self) -> Iterator[Branch]:
        return iter(self.values_by_branch)

    def __len__(self) -> int:
        return len(self.values_by_branch)
