"""References through self-attention: a model that also attends to the features of an image."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairlead import nulls
from fairlead.attention import Attended, Edit, attending
from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.guidance.recipes import recipe
from fairlead.layers import with_parameters
from fairlead.parameters import choose
from fairlead.schedules import Level
from fairlead.wrapped import Wrapped, without

Missing = Literal["absent", "zeros", "clean zeros"]
"""What self-attention sees where there is no reference."""


class ReferenceDenoiser(Wrapped):
    """A model with one more condition: the features of a reference; made by `with_reference`.

    The condition is what `read` returns, `(B, F)`: one number that says whether it is there, and
    behind it keys and values, layer by layer. It is taken and left out by guides like any other.

    Attributes:
        key: Name of the condition.
        size: `F`.
    """

    def __init__(
        self,
        inner: Denoiser,
        encoder: Denoiser,
        given: Condition,
        key: str,
        layers: str | tuple[str, ...],
        null: Missing,
        t: float,
        shape: tuple[int, ...],
        trained: Iterable[str] | None,
    ) -> None:
        super().__init__(inner, trained=trained, models=inner.models)
        self.encoder, self.key = encoder, key
        self._given, self._t, self._reference = given, t, shape
        writing = inner.match_attention("with_reference", layers, ("self",))
        known = encoder.attention_layers
        lacking = [layer.name for layer in writing if layer.name not in known]
        if lacking:
            raise ValueError(
                f"with_reference: the encoder has no attention layer {lacking[0]!r}, which the "
                "model has: it must have the same layers by name"
            )
        self._layers = [(layer, known[layer.name]) for layer in writing]
        blank = torch.zeros(1, *shape, device=encoder.device)
        zeros = self._keys_and_values(blank, given.expand(1), blank=null == "zeros")
        self._shapes = [(k.shape[1:], v.shape[1:]) for k, v in zeros]
        missing = _flat(zeros)
        self.size = missing.shape[1]
        value = 0 if null == "absent" else missing[0]
        self.null[key] = nulls.Null(f"{null} in self-attention", value)

    def read(self, reference: Tensor, condition: Mapping[str, Any] | None = None) -> Tensor:
        """The features of clean references, `(B, ...)` to `(B, F)`: one pass of the encoder.

        Args:
            reference: Clean samples of the shape that the model was made for.
            condition: What the encoder is given with them; default: that of `with_reference`.

        Raises:
            ValueError: The references have another shape.
        """
        if tuple(reference.shape[1:]) != self._reference:
            raise ValueError(
                f"read: references must have shape {self._reference} behind the batch, got "
                f"{tuple(reference.shape[1:])}"
            )
        given = self._given if condition is None else Condition(condition)
        x = reference.to(self.encoder.device or reference.device)
        return _flat(self._keys_and_values(x, given.expand(len(x)).to(x.device)))

    def check(self, condition: Condition) -> None:
        """As of the model itself, and that the condition holds features of a reference."""
        if self.key in condition:
            size = condition[self.key].shape[-1:]
            if size != (self.size,):
                raise ValueError(
                    f"condition: {self.key} must hold {self.size} features, got {tuple(size)}: "
                    "give what read(...) returns"
                )
        self.inner.check(without(condition, self.key))

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The clean estimate; rows with a reference attend to it, too."""
        if self.key not in condition:
            return self.inner.predict(x, level, condition)
        features = condition[self.key]
        there = features[:, 0] != 0
        edits = list(self._edits(features, there)) if bool(there.any()) else []
        with attending(edits, len(x), self.grid or tuple(x.shape[2:])):
            return self.inner.predict(x, level, without(condition, self.key))

    def _edits(self, features: Tensor, there: Tensor) -> Iterator[Edit]:
        first = 1
        for (layer, _), (ks, vs) in zip(self._layers, self._shapes, strict=True):
            middle, last = first + ks.numel(), first + ks.numel() + vs.numel()
            k = features[:, first:middle].reshape(-1, *ks)
            v = features[:, middle:last].reshape(-1, *vs)
            yield Edit(layer, 0, len(features), partial(_beside, k, v, there))
            first = last

    @torch.no_grad()
    def _keys_and_values(
        self, x: Tensor, given: Condition, *, blank: bool = False
    ) -> list[tuple[Tensor, Tensor]]:
        """What the model's own projections make of the inputs of the encoder's layers.

        Keys and values of each layer, `(B, fold, heads, N, d)`; `blank` sets the inputs to 0.
        """
        inputs: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        level = self.encoder.level(self._t, x)
        with ExitStack() as stack:
            for layer, reading in self._layers:

                def see(
                    _: nn.Module, args: tuple[Any, ...], named: dict[str, Any], to: str = layer.name
                ) -> None:
                    inputs[to] = args, named

                module = with_parameters(self.encoder.network, reading.module)
                handle = module.register_forward_pre_hook(see, with_kwargs=True)
                stack.callback(handle.remove)
            self.encoder.predict(level.alpha * x, level, given)
        found = []
        for layer, _ in self._layers:
            args, named = inputs[layer.name]
            if blank:
                args = tuple(_blank(a) for a in args[:1]) + args[1:]
                named = {k: _blank(v) if k == "hidden_states" else v for k, v in named.items()}
            kept: list[tuple[Tensor, Tensor]] = []

            def keep(call: Attended, into: list[tuple[Tensor, Tensor]] = kept) -> Tensor:
                into.append((call.k, call.v))
                return call.attend()

            with attending([Edit(layer, 0, len(x), keep)], len(x)):
                with_parameters(self.network, layer.module)(*args, **named)
            k, v = (t.reshape(len(x), -1, *t.shape[1:]) for t in kept[0])
            found.append((k, v))
        return found


def _beside(k: Tensor, v: Tensor, there: Tensor, call: Attended) -> Tensor:
    """Attention to the tokens of the layer and, where there is one, to those of the reference."""
    fold = k.shape[1]
    rows = slice(call.rows.start, call.rows.stop)
    seen = there[rows].repeat_interleave(fold)
    if not bool(seen.any()):
        return call.attend()
    k, v = (t[rows].flatten(0, 1).to(call.k) for t in (k, v))
    mask = call.mask
    if mask is not None:
        mask = F.pad(mask, (0, k.shape[-2]), value=1.0 if mask.dtype == torch.bool else 0.0)
    both = call.attend(k=torch.cat([call.k, k], -2), v=torch.cat([call.v, v], -2), mask=mask)
    # not by slices: what attends below counts on all of these rows
    return both if bool(seen.all()) else torch.where(seen[:, None, None, None], both, call.attend())


def _flat(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    there = torch.ones_like(parts[0][0].flatten(1)[:, :1])
    return torch.cat([there, *(t.flatten(1) for pair in parts for t in pair)], 1)


def _blank(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, Tensor) else value


@recipe(ids=("S066", "S122"))
def with_reference(
    denoiser: Denoiser,
    condition: Mapping[str, Any] | None = None,
    *,
    encoder: Denoiser | None = None,
    name: str = "reference",
    layers: str | tuple[str, ...] = "**",
    null: Missing = "absent",
    t: float | None = None,
    shape: tuple[int, ...] | None = None,
    trained: Iterable[str] | None = None,
) -> ReferenceDenoiser:
    r"""A model whose self-attention also sees the tokens of a reference, such as a garment.

    An encoder reads the clean reference once, and in each layer its input ``r`` stands behind the
    layer's own tokens ``h``, of which alone the output is kept:

    .. math:: \mathrm{softmax}\Bigl(\tfrac{1}{\sqrt d} \, Q(h) \, [K(h); K(r)]^T\Bigr)
              \, [V(h); V(r)]

    with the model's own projections; they are applied once, since ``r`` stays for the whole run.
    The features are a condition with the name ``name``, so ``nested`` (Magic Clothing:
    ``w_G = 2.5``, ``w_T = 7.5``) and ``joint`` (OOTDiffusion: 1.5) guide with them, and every
    other guide does. What guides do to attention acts on the layer's own tokens.

    Zero tokens are not absence: in a softmax each still has weight. A model must be given the null
    that it was trained with: no tokens (``absent``), tokens that are zero (``zeros``, Magic
    Clothing), or those of a clean sample that is zero (``clean zeros``, OOTDiffusion).

    * Cost: no NFE; one pass of the encoder a reference, and attention to more tokens.
    * Neutral: without the condition, or with the null ``absent``, the model to the bit.

    Args:
        denoiser: The model.
        condition: What the encoder is conditioned on, for one sample, such as the empty text.
        encoder: Reads references; it has the same self-attention layers by name. Default: the
            model itself.
        name: Name of the condition.
        layers: Self-attention layers by name, as for ``pag``.
        null: What self-attention sees where there is no reference.
        t: Time that the encoder is told; default: the smallest of its schedule. Nothing is noised.
        shape: Shape of one reference; default: that of a sample.
        trained: Condition states seen in training, as for ``fl.Denoiser``; default: not known.

    Raises:
        ValueError: A pattern names no layer (lists them), the encoder lacks one of them, the null
            is unknown, the name is taken, or the shape of a sample is not known.

    Example:
        >>> import fairlead as fl
        >>> from fairlead.testing import tiny_denoiser
        >>> d = fl.with_reference(tiny_denoiser(), {"label": 10}, name="garment")
        >>> garment = d.read(torch.randn(1, 2, 8, 8))
        >>> guide = fl.recipes.nested(["garment", "label"], [2.5, 7.5])
        >>> fl.sample(d, {"label": 3, "garment": garment}, guide=guide, steps=2).x.shape
        torch.Size([1, 2, 8, 8])

    Source:
        Chen, Gu, Xu, Chen (2024), arXiv:2404.09512; Xu, Gu, Chen, Chen (2024), arXiv:2403.01779.
    """
    choose("with_reference", "null", null, ("absent", "zeros", "clean zeros"))
    reading = encoder or denoiser
    shape = shape or reading.shape
    if shape is None:
        raise ValueError("with_reference: this model knows no shape of a sample: give shape")
    given = Condition(condition)
    reading.check(given.expand(1))
    if name in denoiser.null:
        raise ValueError(f"with_reference: the model has a condition {name!r} already: give name")
    t = reading.schedule.t_min if t is None else t
    return ReferenceDenoiser(denoiser, reading, given, name, layers, null, t, tuple(shape), trained)
