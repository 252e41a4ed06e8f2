"""Signal and noise of a pipeline's latents, read from its scheduler."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fairlead.prediction import PredictionType, direction_scale, from_x0, to_x0
from fairlead.schedules import EDM, DiscreteVP, Level, NoiseSchedule, RectifiedFlow

Kind = str


@dataclass(frozen=True)
class Scale:
    """The noise level of a network call.

    Attributes:
        level: Signal and noise of `x = factor * input`.
        factor: From what the network is given to `x`.
        latents: From `x` to the latents of the pipeline.
    """

    level: Level
    factor: float = 1.0
    latents: float = 1.0


class Levels:
    """Reads noise levels from a scheduler, and converts what its network predicts.

    Args:
        scheduler: A scheduler of diffusers.

    Raises:
        ValueError: It keeps neither `sigmas` nor `alphas_cumprod`, or predicts something unknown.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        config = scheduler.config
        kind = config.get("prediction_type")
        self.has_sigmas = isinstance(getattr(scheduler, "sigmas", None), Tensor)
        cumulative = getattr(scheduler, "alphas_cumprod", None)
        self.sign = 1.0
        self.sigma_data = 1.0
        if hasattr(scheduler, "precondition_inputs"):
            self.kind: Kind = "edm"
            self.sigma_data = float(config.sigma_data)
            # their v-parametrised output is the negative of F
            self.sign = -1.0 if kind == "v_prediction" else 1.0
            kind = "edm"
        elif self.has_sigmas and (cumulative is None or config.get("use_flow_sigmas")):
            self.kind = "flow"
            kind = kind or "flow_prediction"
        elif self.has_sigmas:
            self.kind = "sigmas"
        elif isinstance(cumulative, Tensor):
            self.kind = "cumulative"
        else:
            raise ValueError(
                f"steer: no noise level can be read from {type(scheduler).__name__}: it keeps "
                "neither sigmas nor alphas_cumprod; use a guide without rules that measure in x0"
            )
        kind = {"original_sample": "sample"}.get(kind, kind)
        known = ("epsilon", "sample", "v_prediction", "flow_prediction", "edm")
        if kind not in known:
            raise ValueError(
                f"steer: {type(scheduler).__name__} says that the network predicts {kind!r}; "
                f"known: {', '.join(known[:-1])}"
            )
        self.prediction: PredictionType = kind
        self._sigmas: tuple[Any, list[float]] | None = None
        self._cumulative: list[float] | None = None
        self._begin: int | None = None

    def freeze(self) -> None:
        """Keeps the levels of a call that has ended, whatever the scheduler does next."""
        if self.has_sigmas:
            self.sigma(0)
        begin = getattr(self.scheduler, "begin_index", None)
        self._begin = 0 if begin is None else int(begin)

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule that the network was trained under, as far as a scheduler says."""
        if self.kind == "edm":
            return EDM()
        if self.kind == "flow":
            return RectifiedFlow()
        return DiscreteVP(self.scheduler.betas.clamp(max=1.0))

    def index(self) -> int:
        """The scheduler's place in its list of levels; once frozen, that of the first step."""
        if self._begin is not None:
            return self._begin
        at = getattr(self.scheduler, "step_index", None)
        if at is None:
            at = getattr(self.scheduler, "begin_index", None)
        return 0 if at is None else int(at)

    def sigma(self, index: int) -> float:
        """`sigma` at a place, 0 past the end."""
        if self._begin is not None and self._sigmas is not None:
            return self._sigmas[1][index]
        table = self.scheduler.sigmas
        between = getattr(self.scheduler, "sigmas_interpol", None)
        if between is not None and not self.scheduler.state_in_first_order:
            table = between
            index -= hasattr(self.scheduler, "sigmas_down")  # the ancestral one counts otherwise
        if self._sigmas is None or self._sigmas[0] is not table:
            self._sigmas = (table, table.tolist())
        values = self._sigmas[1]
        return float(values[index]) if index < len(values) else 0.0

    def at(self, time: Any, index: int | None = None) -> Scale:
        """The level of a network call, from its time or the scheduler's place."""
        if self.kind == "cumulative":
            t = number(time)
            return self._of_alpha(self._alpha(round(t)), t + 1)
        return self.of_sigma(self.sigma(self.index() if index is None else index))

    def ahead(self, time: Any) -> list[Level]:
        """The levels of the network calls that lie ahead, and the one at which the last step ends.

        Empty for schedulers whose calls lie between the levels of their list.
        """
        if hasattr(self.scheduler, "sigmas_interpol"):
            return []
        times = self.scheduler.timesteps.tolist()
        if self.kind != "cumulative":
            return [self.of_sigma(self.sigma(i)).level for i in range(self.index(), len(times) + 1)]
        now = number(time)
        left = times[times.index(now) :] if now in times else times
        return [*(self.at(t).level for t in left), self.following(left[-1]).level]

    def following(self, time: Any) -> Scale:
        """The level after the step that begins at a network call."""
        if self.kind != "cumulative":
            return self.of_sigma(self.sigma(self.index() + 1))
        scheduler = self.scheduler
        t = round(number(time))
        if getattr(scheduler, "counter", None) == 1:  # PNDM makes its first step once more
            later = t
        elif hasattr(scheduler, "previous_timestep"):
            later = int(scheduler.previous_timestep(t))
        elif getattr(scheduler, "step_index", None) is not None:  # steps that it lists
            later = next((int(s) for s in scheduler.timesteps.tolist() if s < t), -1)
        else:
            later = t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        if later >= 0:
            return self._of_alpha(self._alpha(later), later + 1)
        final = getattr(scheduler, "final_alpha_cumprod", 1.0)
        return self._of_alpha(math.sqrt(float(final)), 0.0)

    def of_sigma(self, sigma: float) -> Scale:
        """The level of a `sigma` in the scheduler's own list."""
        if self.kind == "flow":
            return Scale(Level(sigma, 1.0 - sigma, sigma))
        if self.kind == "edm":
            return Scale(Level(sigma, 1.0, sigma), math.hypot(sigma, self.sigma_data))
        size = math.hypot(1.0, sigma)  # the network is given latents of unit variance
        scaled = _is_scaled(self.scheduler)
        return Scale(Level(sigma, 1.0 / size, sigma / size), 1.0, size if scaled else 1.0)

    def _alpha(self, index: int) -> float:
        if self._cumulative is None:
            self._cumulative = self.scheduler.alphas_cumprod.double().tolist()
        return math.sqrt(self._cumulative[min(max(index, 0), len(self._cumulative) - 1)])

    def _of_alpha(self, alpha: float, t: float) -> Scale:
        return Scale(Level(t, alpha, math.sqrt(max(0.0, 1.0 - alpha**2))))

    def to_x0(self, output: Tensor, x: Tensor, level: Level, sign: float) -> Tensor:
        """The clean estimate in a network's output."""
        sign *= self.sign
        output = output if sign == 1 else -output
        return to_x0(output, x, level.alpha, level.sigma, self.prediction, self.sigma_data)

    def from_x0(self, x0: Tensor, x: Tensor, level: Level, sign: float) -> Tensor:
        """The network output that stands for a clean estimate."""
        made = from_x0(x0, x, level.alpha, level.sigma, self.prediction, self.sigma_data)
        return made if sign * self.sign == 1 else -made

    def length(self, level: Level) -> float:
        """What a length in the network's own output is multiplied by to be one in x0."""
        if self.prediction == "edm":
            return level.sigma * self.sigma_data / math.hypot(level.sigma, self.sigma_data)
        factor = direction_scale(level.alpha, level.sigma, self.prediction)
        return abs(1.0 / float(factor)) if factor else math.inf


def number(time: Any) -> float:
    """The time of a call, of which all samples share one."""
    if isinstance(time, Tensor) and time.numel() > 1:
        time = time.flatten()[0]
    return float(time)


def _is_scaled(scheduler: Any) -> bool:
    """Whether latents are divided before the network sees them."""
    return hasattr(scheduler, "is_scale_input_called") or float(scheduler.init_noise_sigma) != 1.0
