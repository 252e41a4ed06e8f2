"""`fl.as_guider`: any guide in a modular pipeline of diffusers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from fairlead.adapters.diffusers.energies import energies_of
from fairlead.adapters.diffusers.evaluator import Batching
from fairlead.guidance.algebra import Guide
from fairlead.guidance.spec import guide as parse
from fairlead.parameters import choose, whole

if TYPE_CHECKING:
    from fairlead.adapters.diffusers.guider import FairleadGuider


def as_guider(
    guide: Guide | str,
    scheduler: Any = None,
    *,
    models: Mapping[str, nn.Module] | None = None,
    energies: Mapping[str, Any] | None = None,
    batching: Batching = "auto",
    max_batch: int | None = None,
    seed: int = 0,
    check: bool = True,
    record: bool = True,
) -> "FairleadGuider":
    """A guide as the guider component of a modular diffusers pipeline.

    ``null`` is the pipeline's negative prompt, or the empty one. What depends on the noise level
    (rules, schedules, policies) reads it from the scheduler.

    Args:
        guide: A guide or its text.
        scheduler: The pipeline's scheduler, or the pipeline; not saved with the configuration, so
            that a guider which was loaded wants ``guider.scheduler = pipe`` again.
        models: Further networks by name, called with the arguments of the pipeline's own; not
            saved either.
        energies: Energies by name, which judge latents; not saved either.
        batching: ``auto`` and ``sequential`` make one call a branch, as guiders of diffusers do;
            ``batched`` makes one call of all branches.
        max_batch: Most rows in one call of the network: longer calls are split.
        seed: Seed of what the guide draws.
        check: Whether a NaN or infinity raises.
        record: Whether the norm of each term is kept.

    Returns:
        The guider; ``.report`` is the log of the last run.

    Raises:
        ValueError: An argument is unknown; in the pipeline's call: the guide needs a noise level
            and there is no scheduler, asks for a prompt that is neither the positive nor the
            negative one, or acts in the scheduler's step.

    Example:
        With a modular pipeline ``pipe``::

            pipe.update_components(guider=fl.as_guider("cfg(4) + pag(3, layers='blocks.1')", pipe))
            image = pipe(prompt="a lighthouse in a storm", output="images")[0]
            print(pipe.guider.report)
    """
    from fairlead.adapters.diffusers.guider import FairleadGuider

    parsed = parse(guide)
    parsed.require("continuous")
    choose("as_guider", "batching", batching, ("auto", "batched", "sequential"))
    made: FairleadGuider = FairleadGuider(
        str(parsed),
        batching,
        seed,
        check,
        record,
        whole("as_guider", "max_batch", max_batch),
    )
    made.scheduler = scheduler
    made.models = dict(models or {})
    made.energies = energies_of(parsed, energies or {})
    return made
