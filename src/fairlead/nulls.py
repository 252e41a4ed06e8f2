"""What null means for a condition, by kind.

`Denoiser(null={"text": nulls.empty_prompt(tokens), "camera": nulls.static(pose)})` says it for each
condition; a plain value, or a callable from the batch size to a batch, is a null of kind `value`.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fairlead.condition import Condition

Draw = Callable[[Tensor, str], Tensor]
"""Standard normal noise shaped like a tensor, from a key: fixed by seed, sample and key."""


@dataclass(frozen=True)
class Null:
    """The null of one condition.

    Args:
        kind: What sort of null it is, for people: `learned`, `empty prompt`, ...
        value: Value for one sample, or a callable from the batch size to a batch; `None`: said by
            the kind.
        noise: Whether it is standard normal noise, drawn once a sample and run.
        keep: Whether the condition stays as it is.
        sets: Values for one sample of further conditions that go with it, such as the noise
            level at which frames are labelled.
    """

    kind: str
    value: Any = None
    noise: bool = False
    keep: bool = False
    sets: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, name: str, condition: Condition, draw: Draw) -> dict[str, Tensor]:
        """The conditions that it replaces, each shaped like what stands in `condition`."""
        made = {k: _filled(v, condition, k) for k, v in self.sets.items()}
        if self.noise:
            made[name] = draw(condition[name], f"noise of {name}")
        elif not self.keep:
            made[name] = _filled(self.value, condition, name)
        return made


def _filled(value: Any, condition: Condition, name: str) -> Tensor:
    like = condition[name]
    made = value(condition.batch or 1) if callable(value) else value
    tensor = torch.as_tensor(made, device=like.device).to(like.dtype)
    try:
        return tensor.expand(like.shape).clone()
    except RuntimeError:
        raise ValueError(
            f"null: the null of {name!r} has shape {tuple(tensor.shape)}, which does not fit "
            f"{tuple(like.shape)}"
        ) from None


def by_place(like: Tensor, key: str) -> Tensor:
    """Standard normal noise that is fixed by key and place in the batch."""
    made = torch.empty(like.shape, dtype=torch.float32)
    generator, tag = torch.Generator(), zlib.crc32(key.encode())
    for i, row in enumerate(made):
        row.normal_(generator=generator.manual_seed(tag + i))
    return made.to(like)


def of(value: Any) -> Null:
    """A null as it is, or a plain value as one."""
    return value if isinstance(value, Null) else Null("value", value)


def zeros() -> Null:
    """Zeros: of a latent in concatenated channels, or of tokens behind an encoder."""
    return Null("zeros", 0)


def learned(value: Any) -> Null:
    """A learned embedding, or the index that stands for it."""
    return Null("learned", value)


def empty_prompt(value: Any) -> Null:
    """The encoded empty prompt."""
    return Null("empty prompt", value)


def mask_token(value: Any) -> Null:
    """The mask token."""
    return Null("mask token", value)


def mapped(adapter: Callable[[Tensor], Tensor], zeros: Tensor) -> Null:
    """What an adapter makes of zeros, for models whose condition comes out of one.

    The adapter is asked each time, so that the null follows it while it is trained. It is not the
    null of the model behind it.

    Args:
        adapter: From a batch of features to the condition.
        zeros: Features of one sample that stand for none.

    >>> import torch
    >>> from fairlead import nulls
    >>> adapter = torch.nn.Linear(2, 3)
    >>> null = nulls.mapped(adapter, torch.zeros(2))
    >>> torch.equal(null.value(4), adapter.bias.expand(4, 3))
    True
    """
    return Null("mapped", lambda batch: adapter(zeros.expand(batch, *zeros.shape)))


def static(value: Any) -> Null:
    """A value that means nothing happens, such as the pose of a camera at rest."""
    return Null("static", value)


def removed(mask: str, value: Any = 0) -> Null:
    """Tokens that attention cannot see: `value`, and 0 in the condition `mask`."""
    return Null("removed", value, sets={mask: 0})


def noise(**levels: Any) -> Null:
    """Noise at the highest level; `levels` are the conditions that say so, and how.

    >>> from fairlead import nulls
    >>> nulls.noise(history_level=1.0).sets
    {'history_level': 1.0}
    """
    return Null("noise at the highest level", noise=True, sets=levels)


def kept() -> Null:
    """The condition stays: null does not touch it."""
    return Null("kept", keep=True)


def hidden(switch: str) -> Null:
    """What a side network sees stays, and the condition `switch` is 0: it does not run.

    >>> from fairlead import nulls
    >>> nulls.hidden("pose_on").sets
    {'pose_on': 0}
    """
    return Null("hidden", keep=True, sets={switch: 0})
