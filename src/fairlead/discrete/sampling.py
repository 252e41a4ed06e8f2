"""`fl.discrete.sample`: from a denoiser of tokens and a guide to sequences."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.discrete.denoiser import Space, TokenDenoiser
from fairlead.discrete.process import Process
from fairlead.discrete.sampler import Numbers, TokenSampler
from fairlead.discrete.sampler import get as get_sampler
from fairlead.guidance.algebra import Guide
from fairlead.guidance.context import Run
from fairlead.guidance.evaluator import Batching, Evaluator
from fairlead.guidance.guided import GuidedModel, Reward
from fairlead.guidance.masks import fitted
from fairlead.guidance.report import Report
from fairlead.guidance.spec import guide as parse
from fairlead.parameters import choose


@dataclass(frozen=True)
class TokenResult:
    """Sequences and what they cost.

    Attributes:
        x: Tokens, `(n, L)`.
        nfe: Network evaluations of each sample, `(n,)`.
        report: Branches, provenance and norms of the terms for each evaluation.
        guide: The guide.
    """

    x: Tensor
    nfe: Tensor
    report: Report
    guide: Guide

    def describe(self) -> Any:
        """The guide's branches and cost, and the norm of each term at each step."""
        return self.guide.describe(self.report)


def sample(
    denoiser: TokenDenoiser,
    condition: Mapping[str, Any] | None = None,
    *,
    guide: Guide | str | None = None,
    sampler: TokenSampler | str = "ancestral",
    steps: int = 32,
    n: int | None = None,
    length: int | None = None,
    space: Space | None = None,
    seed: int = 0,
    first: int = 0,
    z: Tensor | None = None,
    negative: Mapping[str, Any] | None = None,
    states: Mapping[str, Mapping[str, Any]] | None = None,
    models: Mapping[str, TokenDenoiser] | None = None,
    energies: Mapping[str, Any] | None = None,
    rewards: Mapping[str, Reward] | None = None,
    masks: Mapping[str, Any] | None = None,
    batching: Batching = "batched",
    max_batch: int | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
    check: bool = True,
    record: bool = True,
) -> TokenResult:
    """Samples sequences of tokens under a guide.

    Sample `i` depends on `(seed, first + i)` alone, not on the batch it is drawn in.

    Args:
        denoiser: The model.
        condition: Values by name, each of batch `n`, or one value for all.
        guide: A guide or its text; `None` samples the conditional model.
        sampler: A sampler of tokens, its name or its text, such as `rates(eta=1.0)`.
        steps: Number of steps.
        n: Number of samples; default: the condition's batch, else that of `z`, else 1.
        length: Length of a sequence, where the denoiser does not know it.
        space: Where guides combine, in place of the denoiser's own: `clean` or `posterior`.
        seed: Seed of all random draws.
        first: Index of the first sample.
        z: Where to start, `(n, L)` or `(L,)`; tokens of a prompt stay where there are masks
            for the rest. On the simplex points of it, `(n, L, K)` or `(L, K)`.
        negative: Negative condition: short for `states={"negative": ...}`.
        states: Further conditions by name, for branches that ask for them.
        models: Further token denoisers by name, such as `weak`.
        energies: Energies by name, for guides that ask for one, such as `dcbg`.
        rewards: Functions from clean tokens `(n, L)` to scores `(n,)`, for `best_of`.
        masks: Masks by name, `(L,)` or `(n, L)`, for guides that act on a region.
        batching: `batched`, or `sequential` for one call a branch.
        max_batch: Most rows in one network call.
        callback: Called after each step with its index and the tokens.
        check: Whether a NaN or infinity raises, naming branch and step.
        record: Whether the report keeps the norm of each term at each step.

    Returns:
        A `TokenResult` with `.x`, `.nfe` and `.report`.

    Raises:
        ValueError: An argument is out of range, or does not fit the model or the guide; a row of
            probabilities adds up to 0.

    Example:
        >>> import fairlead as fl
        >>> d = fl.exact.golden_tokens().denoiser(fl.discrete.Uniform(2))
        >>> fl.discrete.sample(d, {"label": [0, 0]}, guide="cfg(3)", steps=4).x.shape
        torch.Size([2, 2])
    """
    guide = parse(guide)
    rule = get_sampler(sampler)
    choose("sample", "batching", batching, ("batched", "sequential"))
    for name, value in (("steps", steps), ("max_batch", max_batch), ("n", n), ("length", length)):
        absent = value is None and name != "steps"
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not (whole or absent):
            raise ValueError(f"sample: {name} must be a whole number of at least 1, got {value}")
    if not isinstance(denoiser, TokenDenoiser):
        raise TypeError(
            f"sample: denoiser must be a fl.discrete.TokenDenoiser, got {type(denoiser).__name__}; "
            "fl.sample takes the others"
        )
    given = {"cond": condition or {}, **(states or {})}
    if negative is not None:
        given["negative"] = negative
    conditions = {k: Condition({**given["cond"], **v} if v else v) for k, v in given.items()}
    shape = _shape(denoiser, conditions, n, length, z)
    device = denoiser.device or torch.device("cpu")
    levels = rule.grid(denoiser.process, steps)
    conditions = {k: c.expand(shape[0]).to(device) for k, c in conditions.items()}
    model = prepare(
        denoiser,
        conditions,
        guide,
        rule,
        Run(
            seed,
            range(first, first + shape[0]),
            len(levels) - 1,
            check=check,
            record=record,
            levels=levels,
            energies=energies,
            masks=fitted(masks or {}, torch.empty(shape, device=device)),
        ),
        space=space,
        models=models,
        rewards=rewards,
        batching=batching,
        max_batch=max_batch,
    )
    draws = Numbers(model.run)
    if z is None:
        z = rule.start(denoiser.process, shape, draws)
    else:
        z = _started(denoiser.process, z, shape)
    z = z.to(device)
    with torch.no_grad():
        for s, t in pairwise(levels):
            model.begin(s)
            draws = Numbers(model.run)
            z = rule.step(model, z, s, t, draws)
            if callback is not None:
                callback(model.step, z)
        z = rule.finish(model, z, levels[-1], draws)
    report = model.run.report
    return TokenResult(z, torch.as_tensor(report.nfe).expand(len(z)).cpu(), report, guide)


def prepare(
    denoiser: TokenDenoiser,
    conditions: Mapping[str, Condition],
    guide: Guide,
    rule: TokenSampler,
    run: Run,
    *,
    space: Space | None = None,
    models: Mapping[str, TokenDenoiser] | None = None,
    rewards: Mapping[str, Reward] | None = None,
    batching: Batching = "batched",
    max_batch: int | None = None,
) -> GuidedModel:
    """A guided model of tokens, in a space that the sampler can work with.

    Raises:
        ValueError: The sampler cannot work in the space; the guide does not serve its domain;
            something that the guide asks for is missing.
    """
    if space is not None:
        choose(f"sample: {rule.name}", "space", space, rule.spaces)
    chosen: Any = space or (denoiser.space if denoiser.space in rule.spaces else rule.spaces[0])
    guide.require(rule.domain(chosen))
    for condition in conditions.values():
        denoiser.check(condition)
    within = {k: m.within(chosen) for k, m in (models or {}).items()}
    evaluator = Evaluator(
        denoiser.within(chosen), conditions, within, batching=batching, max_batch=max_batch
    )
    run.rewards |= rewards or {}
    model = GuidedModel(guide, evaluator, run)
    model.check()
    rule.check(model)
    return model


def _started(process: Process, z: Tensor, shape: tuple[int, int]) -> Tensor:
    """A given start, one sequence a sample.

    Raises:
        ValueError: It holds no tokens of the process, or no points of the simplex.
    """
    if process.points:
        k = process.tokens
        fits = z.is_floating_point() and z.ndim > 1 and z.shape[-1] == k
        if not (fits and bool((z >= 0).all()) and bool(((z.sum(-1) - 1).abs() < 1e-4).all())):
            raise ValueError(
                f"sample: z must hold points of the simplex, (..., L, {k}), that add up to 1, "
                f"got {tuple(z.shape)} in {z.dtype}"
            )
        return z.double().expand(*shape, k).clone()
    top = process.size
    if z.is_floating_point() or bool(((z < 0) | (z >= top)).any()):
        raise ValueError(f"sample: z must hold tokens in [0, {top - 1}]")
    return z.expand(shape).clone()


def _shape(
    denoiser: TokenDenoiser,
    conditions: Mapping[str, Condition],
    n: int | None,
    length: int | None,
    z: Tensor | None,
) -> tuple[int, int]:
    known = denoiser.shape[0] if denoiser.shape is not None else None
    if z is not None and denoiser.process.points and z.ndim > 1:
        z = z[..., 0]
    long = z.shape[-1] if z is not None else length or known
    if long is None:
        raise ValueError("sample: this denoiser does not know the length of a sequence; give it")
    if length is not None and length != long:
        raise ValueError(f"sample: length = {length} contradicts the length {long} of z")
    batches = [c.batch for c in conditions.values() if c.batch not in (None, 1)]
    rows = n or (batches[0] if batches else None)
    if z is not None and z.ndim == 2 and len(z) > 1:
        if rows is not None and rows != len(z):
            raise ValueError(f"sample: n = {rows} contradicts the {len(z)} sequences of z")
        rows = len(z)
    return rows or 1, long
