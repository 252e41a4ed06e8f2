"""Models around another model, which act on its attention by a condition of their own."""

from collections.abc import Iterable, Mapping

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser


class Wrapped(Denoiser):
    """A denoiser with the network and the facts of another.

    Args:
        inner: The other, which predicts.
        trained: Condition states seen in training, as for `Denoiser`.
        models: Further models by name.

    Attributes:
        inner: The other.
    """

    def __init__(
        self,
        inner: Denoiser,
        *,
        trained: Iterable[str] | None = None,
        models: Mapping[str, Denoiser] | None = None,
    ) -> None:
        super().__init__(
            inner.network,
            inner.schedule,
            inner.prediction,
            inner.null,
            shape=inner.shape,
            sigma_data=inner.sigma_data,
            trained=trained,
            time_embedding=inner.time_embedding,
            embeddings=inner.embeddings,
            choices=inner.choices,
            models=models,
            autocast=inner.autocast,
            grid=inner.grid,
        )
        self.inner = inner
        self.device, self.dtype = inner.device, inner.dtype


def without(condition: Condition, name: str) -> Condition:
    """The condition without one of its parts."""
    return condition.only(*(other for other in condition if other != name))
