"""Branches on several processes: each predicts its own, and all see every prediction."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from typing import Annotated, Any

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser, working_dtype
from fairlead.guidance.branch import Branch
from fairlead.guidance.context import Context
from fairlead.guidance.evaluator import Evaluator, _Stack
from fairlead.parameters import Range, check_fields


@dataclass(frozen=True)
class Parallel:
    """Spreads branches over the processes of `torch.distributed`.

    Every process calls `fl.sample` with the same model and arguments, and gets the same samples:
    random draws depend on seed and index alone, and every process combines the predictions that
    all have gathered, bit for bit. Numbers equal those of one process with
    `batching="sequential"`.

    Args:
        timeout: Seconds that a process waits for the others at an evaluation.
        group: A process group; default: all processes.

    Raises:
        ValueError: The timeout is not above 0.

    Example:
        >>> import fairlead as fl
        >>> fl.Parallel(timeout=60.0)
        Parallel(timeout=60.0, group=None)
    """

    timeout: Annotated[float, Range(0, inf, closed="neither")] = 300.0
    group: Any = None

    def __post_init__(self) -> None:
        check_fields(self)


class ParallelEvaluator(Evaluator):
    """Predicts each branch on one process, one call a branch, and gathers them on all.

    A branch stays with the process that had it first. One collective tells whether all want the
    same, and one gathers the predictions; branches whose attention is read, or whose gradient is
    taken, are predicted everywhere.

    Args:
        denoiser: The sampled model.
        states: Conditions by state name.
        models: Further models by name.
        parallel: The processes.
        max_batch: Most rows in one network call.
        checkpoint: As of `Evaluator`.

    Raises:
        ValueError: No process group was made.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        states: Mapping[str, Condition],
        models: Mapping[str, Denoiser] | None = None,
        *,
        parallel: Parallel,
        max_batch: int | None = None,
        checkpoint: bool = False,
    ) -> None:
        super().__init__(
            denoiser,
            states,
            models,
            batching="sequential",
            max_batch=max_batch,
            checkpoint=checkpoint,
        )
        dist = torch.distributed
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "parallel: no process group; start with `torchrun --nproc-per-node=2 script.py` "
                "and call torch.distributed.init_process_group() before fl.sample"
            )
        self.parallel = parallel
        self.rank, self.size = dist.get_rank(parallel.group), dist.get_world_size(parallel.group)
        self._owners: dict[str, int] = {}
        backend = str(dist.get_backend(parallel.group))
        self._device = None if "nccl" in backend else torch.device("cpu")

    def _plain_stack(self, wanted: dict[Branch, Tensor | None], ctx: Context) -> _Stack | None:
        return None

    def _predict_all(
        self,
        branches: dict[Branch, Tensor | None],
        done: dict[Branch, Tensor],
        ctx: Context,
    ) -> None:
        looked_into = ctx.plan.captures.keys() | ctx.plan.through
        shared = {b: rows for b, rows in branches.items() if b not in looked_into}
        everywhere = {b: rows for b, rows in branches.items() if b in looked_into}
        mine = {b: rows for b, rows in shared.items() if self._owner(b) == self.rank}
        before = ctx.run.report.nfe
        predicted = dict(done)
        failure: BaseException | None = None
        try:
            super()._predict_all({**everywhere, **mine}, predicted, ctx)
        except BaseException as error:
            failure = error
        self._agree(branches, failure, ctx)
        ctx.run.report.nfe = before
        for rows in branches.values():
            ctx.run.report.count(ctx.batch, rows)
        done.update({b: predicted[b] for b in everywhere})
        if shared:
            gathered = self._gather(shared, predicted, ctx)
            done.update({b: gathered[b] for b in shared})

    def _owner(self, branch: Branch) -> int:
        """The process of a branch: the one that has fewest when it is first asked for."""
        if branch.name not in self._owners:
            held = list(self._owners.values())
            self._owners[branch.name] = min(range(self.size), key=held.count)
        return self._owners[branch.name]

    def _agree(
        self, branches: dict[Branch, Tensor | None], failure: BaseException | None, ctx: Context
    ) -> None:
        """Raises if a process failed, or wants something else than this one."""
        run, names = ctx.run, ", ".join(b.name for b in branches)
        rows = [None if r is None else r.tolist() for r in branches.values()]
        wanted = repr((run.seed, run.step, run.stage, ctx.batch, names, rows)).encode()
        status = [zlib.crc32(wanted), int(failure is not None)]
        try:
            found = self._all_gather(torch.tensor(status), ctx)
        except RuntimeError:
            if failure is not None:
                raise failure from None
            raise
        if failure is not None:
            raise failure
        at = f"at step {run.step} (stage {run.stage})"
        failed = [rank for rank, other in enumerate(found) if other[1]]
        if failed:
            raise RuntimeError(
                f"parallel: process {failed[0]} of {self.size} failed {at} while it predicted; "
                "its own error says why"
            )
        others = [rank for rank, other in enumerate(found) if other[0] != status[0]]
        if others:
            raise RuntimeError(
                f"parallel: process {others[0]} does not want what process {self.rank} wants {at}, "
                f"{names}: every process must call fl.sample with the same arguments"
            )

    def _gather(
        self, branches: dict[Branch, Tensor | None], own: dict[Branch, Tensor], ctx: Context
    ) -> dict[Branch, Tensor]:
        """Every branch, from the process that predicted it: one collective, padded to one size."""
        x = ctx.x
        assert x is not None
        held: list[list[Branch]] = [[] for _ in range(self.size)]
        for branch in branches:
            held[self._owner(branch)].append(branch)
        most = max(len(h) for h in held)
        packed = torch.zeros((most, *x.shape), dtype=working_dtype(x), device=x.device)
        for place, branch in enumerate(held[self.rank]):
            packed[place] = own[branch]
        parts = self._all_gather(packed, ctx)
        found = {}
        for rank, part in zip(held, parts, strict=True):
            for place, branch in enumerate(rank):
                found[branch] = part[place].to(x.device)
        base = {**own, **found}.get(ctx.plan.base)
        for branch, rows in branches.items():
            if rows is not None and base is not None:  # the base may lie with another process
                found[branch] = base.index_copy(0, rows, found[branch][rows])
        return found

    def _all_gather(self, value: Tensor, ctx: Context) -> list[Tensor]:
        assert ctx.x is not None
        value = value.to(self._device or ctx.x.device).contiguous()
        parts = [torch.empty_like(value) for _ in range(self.size)]
        self._wait(
            lambda: torch.distributed.all_gather(
                parts, value, group=self.parallel.group, async_op=True
            ),
            ctx,
        )
        return parts

    def _wait(self, start: Callable[[], Any], ctx: Context) -> None:
        try:
            start().wait(timedelta(seconds=self.parallel.timeout))
        except RuntimeError as error:
            raise RuntimeError(
                f"parallel: process {self.rank} of {self.size} has lost another one at step "
                f"{ctx.run.step} (stage {ctx.run.stage}); it died, or did not answer within "
                f"timeout = {self.parallel.timeout:g} s ({str(error).splitlines()[0]})"
            ) from error
