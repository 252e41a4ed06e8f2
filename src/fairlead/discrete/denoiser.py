"""The denoiser of tokens: a network and its process, as log-probabilities."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser, Null
from fairlead.discrete.process import FORMS, Form, Process, Transition
from fairlead.guidance.domains import floored
from fairlead.parameters import choose
from fairlead.schedules import Level

Space = Literal["clean", "posterior", "rates", "simplex"]
SPACES = ("clean", "posterior", "rates", "simplex")


class TokenDenoiser(Denoiser):
    """Predicts tokens: `denoiser(z, t, condition)`, log-probabilities in float64.

    The network is called as `network(z, time, **condition)` and returns logits of the clean
    tokens, `(B, L, K)`. `z` holds tokens `(B, L)`; for flows on the simplex, points of it
    `(B, L, K)`. What it predicts is what guides combine:

    * `clean`: log-probabilities of the clean tokens, `(B, L, K)`;
    * `posterior`: log-probabilities of the tokens one step later, `(B, L, size)`, at a
      `Transition`, which knows the step;
    * `rates`: log rates of jumping to a token, `(B, L, size)`, up to the factor that the time
      gives to all of them: `log p(x | z)`, and 0 for the mask where a token shows;
    * `simplex`: probabilities of the clean tokens.

    Args:
        network: Module or callable.
        process: How tokens were corrupted.
        null: As for `Denoiser`.
        space: What is predicted; default: the process's own.
        form: How a posterior is made of a clean prediction; default: the process's own.
        length: Length of a sequence, where `fl.discrete.sample(n=...)` should know it.
        vocabulary: The text of each clean token, for decoding.
        trained: As for `Denoiser`.
        choices: As for `Denoiser`.
        models: Further token denoisers by name.
        time_embedding: As for `Denoiser`.
        embeddings: As for `Denoiser`.

    Raises:
        ValueError: Unknown space or form, or a vocabulary of another size.

    Example:
        >>> import torch, fairlead as fl
        >>> net = lambda z, t: torch.zeros(*z.shape, 4)
        >>> d = fl.discrete.TokenDenoiser(net, fl.discrete.Masked(4))
        >>> d(torch.tensor([[4, 2]]), 0.5).exp()
        tensor([[[0.2500, 0.2500, 0.2500, 0.2500],
                 [0.2500, 0.2500, 0.2500, 0.2500]]], dtype=torch.float64)
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        process: Process,
        null: Mapping[str, Null] | None = None,
        *,
        space: Space | None = None,
        form: Form | None = None,
        length: int | None = None,
        vocabulary: Sequence[str] | None = None,
        trained: Iterable[str] | None = None,
        choices: Mapping[str, int] | None = None,
        models: Mapping[str, "TokenDenoiser"] | None = None,
        time_embedding: str | None = None,
        embeddings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            network,
            process,
            "sample",
            null,
            shape=None if length is None else (length,),
            trained=trained,
            choices=choices,
            models=models,
            time_embedding=time_embedding,
            embeddings=embeddings,
        )
        self.process = process
        self.space: Space = space or process.space  # type: ignore[assignment]
        self.form: Form = form or process.form
        choose("TokenDenoiser", "space", self.space, SPACES)
        choose("TokenDenoiser", "form", self.form, FORMS)
        self.vocabulary = None if vocabulary is None else tuple(vocabulary)
        if self.vocabulary is not None and len(self.vocabulary) != process.tokens:
            raise ValueError(
                f"TokenDenoiser: vocabulary has {len(self.vocabulary)} tokens, the process "
                f"{process.tokens}"
            )

    def within(self, space: Space) -> "TokenDenoiser":
        """A view of this denoiser that predicts in another space; its models with it."""
        choose("TokenDenoiser", "space", space, SPACES)
        if space == self.space:
            return self
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.space = space
        models: dict[str, Any] = dict(self.models)
        twin.models = {
            k: m.within(space) if isinstance(m, TokenDenoiser) else m for k, m in models.items()
        }
        return twin

    def level(self, t: float | Tensor, x: Tensor) -> Level:
        """The level at `t`.

        Raises:
            ValueError: Times differ between samples.
        """
        if isinstance(t, Tensor) and t.ndim:
            raise ValueError("TokenDenoiser: t must be one number for all samples")
        return self.process.level(float(t))

    def logits(self, z: Tensor, level: Level, condition: Condition) -> Tensor:
        """What the network puts out, `(B, L, K)` in float64."""
        dtype = self.dtype or torch.float32
        known = level.network_time if level.network_time is not None else level.t
        time = torch.full((len(z),), float(known), dtype=dtype, device=z.device)
        inputs = z.to(dtype) if z.is_floating_point() else z
        return self.network(inputs, time, **condition.tensors).double()

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        log_x = floored(torch.log_softmax(self.logits(x, level, condition), -1))
        if log_x.shape[-1] != self.process.tokens:
            raise ValueError(
                f"TokenDenoiser: the network must return logits of {self.process.tokens} tokens, "
                f"got {log_x.shape[-1]}"
            )
        if self.space == "clean":
            return log_x
        if self.space == "simplex":
            return log_x.exp()
        if self.space == "rates":
            return self.process.log_rates(log_x, x, level)
        if not isinstance(level, Transition) or level.to is None:
            raise ValueError(
                "TokenDenoiser: a posterior needs to know the step: give a "
                "fl.discrete.Transition as the level"
            )
        return self.process.log_posterior(log_x, x, level, level.to, self.form)

    def decode(self, z: Tensor, end: int | None = None) -> list[str]:
        """Sequences as text; what follows `end`, and masks, are left out.

        Raises:
            ValueError: It has no vocabulary.
        """
        if self.vocabulary is None:
            raise ValueError("decode: this denoiser has no vocabulary")
        texts = []
        for row in z.tolist():
            stop = row.index(end) if end in row else len(row)
            known = (self.vocabulary[i] for i in row[:stop] if i < len(self.vocabulary))
            texts.append("".join(known))
        return texts
