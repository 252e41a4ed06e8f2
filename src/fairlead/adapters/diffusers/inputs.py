"""The arguments of a network call: which hold rows of the batch, and how to take and join rows."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

SAMPLE = ("sample", "hidden_states", "x")
"""Names of the noisy sample."""

TIME = ("timestep", "timesteps", "t", "time")
"""Names of the time."""

SHARED = frozenset(
    {
        "attention_kwargs",
        "cross_attention_kwargs",
        "freqs_cis",
        "image_rotary_emb",
        "img_ids",
        "joint_attention_kwargs",
        "return_dict",
        "rope_interpolation_scale",
        "rotary_embedding",
        "rotary_emb",
        "skip_layers",
        "txt_ids",
    }
)
"""Arguments that hold no rows, though a length may equal the batch by accident."""

LISTED = frozenset({*SAMPLE, "cap_feats"})
"""Arguments that are one entry a row where they are lists, whatever lengths the entries have."""

STEPWISE = frozenset(
    {
        "block_controlnet_hidden_states",
        "controlnet_block_samples",
        "controlnet_single_block_samples",
        "down_block_additional_residuals",
        "down_intrablock_additional_residuals",
        "mid_block_additional_residual",
    }
)
"""Arguments that other networks make anew each step: those of the condition serve all states."""

Arguments = dict[str, Any]
Index = slice | Tensor


@cache
def _parameters(network_class: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(network_class.forward).parameters)[1:]


def original(network: nn.Module) -> nn.Module:
    """The module that `torch.compile` wrapped, or the module itself."""
    inner = getattr(network, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else network


def parameters(network: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of a network's forward, in order."""
    kind: Any = type(original(network))
    return _parameters(kind)


def bind(network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
    """The arguments of a call by name."""
    if not args:
        return dict(kwargs)
    return {**dict(zip(parameters(network), args, strict=False)), **kwargs}


def name_of(arguments: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of some names that a call gives."""
    return next((n for n in names if arguments.get(n) is not None), None)


def sample(arguments: Mapping[str, Any]) -> Any:
    """The noisy sample of a call: a tensor, or a list of rows.

    Raises:
        ValueError: No argument is known as the sample.
    """
    name = name_of(arguments, SAMPLE)
    if name is None:
        raise ValueError(
            f"steer: the network was called with {', '.join(sorted(arguments))}, and none of them "
            f"is known as its noisy sample ({', '.join(SAMPLE)})"
        )
    return arguments[name]


def count(arguments: Mapping[str, Any]) -> int:
    """Number of rows of a call: those of its noisy sample."""
    return len(sample(arguments))


def grid(arguments: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The grid of a sample that is a sequence of patches, where a call says it."""
    if stacked(sample(arguments)).ndim != 3:
        return None
    ids, shapes = arguments.get("img_ids"), arguments.get("img_shapes")
    if isinstance(ids, Tensor):
        sizes = (ids.reshape(-1, ids.shape[-1]).amax(0) + 1).int().tolist()
        return tuple(sizes[1:3])
    if isinstance(shapes, list):
        while isinstance(shapes[0], (list, tuple)):
            shapes = shapes[0]
        return tuple(int(s) for s in shapes[-2:])
    named = [arguments.get(n) for n in ("num_frames", "height", "width")]
    return tuple(int(n) for n in named if n is not None) or None


def take(arguments: Mapping[str, Any], total: int, index: Index) -> Arguments:
    """The arguments for some of `total` rows."""
    return {
        n: v if n in SHARED else _take(v, total, index, n in LISTED) for n, v in arguments.items()
    }


def _take(value: Any, total: int, index: Index, listed: bool = False) -> Any:
    if isinstance(value, Tensor):
        return value[index] if value.ndim and len(value) == total else value
    if isinstance(value, dict):
        return {k: _take(v, total, index) for k, v in value.items()}
    if _rowwise(value, total, listed):
        if isinstance(index, slice):
            return value[index]
        return [value[i] for i in index.tolist()]
    if type(value) in (list, tuple):
        return type(value)(_take(v, total, index) for v in value)
    return value


def _rowwise(value: Any, total: int, listed: bool) -> bool:
    """Whether a list holds one entry a row, and not tensors that each hold all rows."""
    if not isinstance(value, list) or len(value) != total:
        return False
    return listed or not all(isinstance(v, Tensor) and v.ndim and len(v) == total for v in value)


class Apart(Exception):
    """Arguments that do not fit into one call."""


def join(parts: Sequence[Arguments], totals: Sequence[int]) -> Arguments:
    """One call for all rows of several.

    Raises:
        Apart: Shapes or further arguments differ.
    """
    first = parts[0]
    if any(part.keys() != first.keys() for part in parts):
        raise Apart
    return {
        n: first[n] if n in SHARED else _join([part[n] for part in parts], totals, n in LISTED)
        for n in first
    }


def _join(values: Sequence[Any], totals: Sequence[int], listed: bool = False) -> Any:
    first = values[0]
    if any(type(v) is not type(first) for v in values):
        raise Apart
    if isinstance(first, Tensor):
        if all(v.ndim and len(v) == n for v, n in zip(values, totals, strict=True)):
            if any(v.shape[1:] != first.shape[1:] or v.dtype != first.dtype for v in values):
                raise Apart
            return torch.cat(list(values))
        if all(v is first or torch.equal(v, first) for v in values):
            return first
        raise Apart
    if isinstance(first, dict):
        if any(v.keys() != first.keys() for v in values):
            raise Apart
        return {k: _join([v[k] for v in values], totals) for k in first}
    if all(_rowwise(v, n, listed) for v, n in zip(values, totals, strict=True)):
        return [entry for v in values for entry in v]
    if type(first) in (list, tuple):
        if any(len(v) != len(first) for v in values):
            raise Apart
        return type(first)(_join(entries, totals) for entries in zip(*values, strict=True))
    if all(v is first or v == first for v in values):
        return first
    raise Apart


def leaves(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument by name, entries of dictionaries as `name.key`."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, dict) and name not in SHARED:
            found |= {f"{name}.{k}": v for k, v in value.items()}
        else:
            found[name] = value
    return found


def put(arguments: Mapping[str, Any], values: Mapping[str, Any]) -> Arguments:
    """The arguments in which the given leaves stand."""
    made = dict(arguments)
    for path, value in values.items():
        name, _, key = path.partition(".")
        made[name] = {**made[name], key: value} if key else value
    return made


def lengthened(
    arguments: Arguments, before: Mapping[str, Any], behind: Mapping[str, Any]
) -> Arguments:
    """The arguments with places and masks for a text that another one was put behind.

    Args:
        arguments: The arguments, with the longer text.
        before: Their leaves without it.
        behind: Leaves of the branch whose text it is.
    """
    text, old = arguments.get("encoder_hidden_states"), before.get("encoder_hidden_states")
    if not isinstance(text, Tensor) or not isinstance(old, Tensor):
        return arguments
    length = old.shape[1]
    if text.shape[1] != 2 * length:
        return arguments
    grown = {}
    for path, value in leaves(arguments).items():
        if path == "txt_ids" and isinstance(value, Tensor):
            grown[path] = torch.cat([value, value], -2)
        elif "mask" in path and isinstance(value, Tensor) and value.shape[1:] == (length,):
            grown[path] = torch.cat([value, behind[path].to(value)], 1)
    return put(arguments, grown)


def same(a: Any, b: Any, *, exact: bool = False) -> bool:
    """Whether two arguments hold the same values, up to the rounding of another batch size."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape:
            return False
        if not exact and a.is_floating_point() and b.is_floating_point():
            return bool(torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-4))
        return bool(torch.equal(a, b))
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, exact=exact) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k], exact=exact) for k in a)
    return type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b)


def differing(a: Mapping[str, Any], b: Mapping[str, Any], *, exact: bool = False) -> list[str]:
    """Leaves of two calls for the same rows that differ; the time is none of them.

    Args:
        a: Arguments of one call.
        b: Arguments of the other.
        exact: Whether rounding counts, and arguments without rows do too.
    """
    ours, theirs = leaves(a), leaves(b)
    return [
        path
        for path in ours
        if (exact or path.partition(".")[0] not in SHARED)
        and path not in TIME
        and not same(ours[path], theirs.get(path), exact=exact)
    ]


def stacked(rows: Tensor | Sequence[Tensor]) -> Tensor:
    """Rows as one tensor, where a network takes or returns a list of them."""
    return rows if isinstance(rows, Tensor) else torch.stack(list(rows))


def like(rows: Tensor, given: Any) -> Any:
    """A tensor as a list of rows, if that is what was given."""
    return rows if isinstance(given, Tensor) else list(rows.unbind(0))


def prediction(output: Any) -> Any:
    """The prediction in what a network returned: a tensor, or a list of rows."""
    if isinstance(output, (Tensor, list)):
        return output
    return output[0]


def replaced(output: Any, value: Any) -> Any:
    """What a network returned, with another prediction in it."""
    if isinstance(output, (Tensor, list)):
        return value
    if type(output) is tuple:
        return (value, *output[1:])
    made = type(output)(**{**output})
    made[next(iter(output))] = value
    return made


Inner = Callable[..., Any]
"""A network as it would be called without guidance."""
