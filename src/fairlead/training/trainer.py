"""The training loop of the reference networks: EDM loss, EMA, resumable checkpoints."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fairlead.parameters import FINITE, Range, check_fields
from fairlead.training.data import Images

SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Budget:
    """How long and how fast any network is trained.

    Args:
        minutes: Wall-clock budget; the learning rate follows the share of it that is spent.
        batch: Samples a step.
        lr: Learning rate after warm-up, constant until `decay_from` and then linear to 0.
        decay_from: Share of the budget after which the rate falls.
        warmup: Steps of linear warm-up.
        ema: Largest decay of the running mean of the weights, `(1 + n) / (10 + n)` before.
        condition_dropout: Probability with which a sample's condition becomes null.
        seed: Seed of everything random.
        bf16: Forward pass under bfloat16 autocast.
        compile: Compile the network.
        snapshots: Shares of the budget at which the mean weights are kept.
        max_steps: Budget in steps, or `None`; the share spent is the larger of the two. With
            `minutes=inf` a run is a function of its recipe alone.

    Raises:
        ValueError: A number is outside its range, or there is no finite budget.
    """

    minutes: Annotated[float, Range(0, math.inf, closed="right")] = 10.0
    batch: Annotated[int, Range(1, math.inf, closed="left")] = 64
    lr: Annotated[float, Range(0, math.inf, closed="neither")] = 5e-4
    decay_from: Annotated[float, Range(0, 1, closed="left")] = 0.6
    warmup: Annotated[int, Range(1, math.inf, closed="left")] = 200
    ema: Annotated[float, Range(0, 1, closed="left")] = 0.9995
    condition_dropout: Annotated[float, Range(0, 1)] = 0.15
    seed: int = 0
    bf16: bool = True
    compile: bool = False
    snapshots: Annotated[tuple[float, ...], Range(0, 1, closed="right")] = ()
    max_steps: Annotated[int | None, Range(1, math.inf, closed="left")] = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_steps is None and math.isinf(self.minutes):
            name = type(self).__name__
            raise ValueError(f"{name}: minutes must be finite where max_steps is None")

    def share(self, step: int, seconds: float) -> float:
        """Share of the budget that is spent; training ends at 1."""
        steps = step / self.max_steps if self.max_steps else 0.0
        return max(steps, seconds / 60 / self.minutes)

    def lr_at(self, step: int, share: float) -> float:
        """Learning rate at a step, with `share` of the budget spent."""
        fall = min(1.0, max(0.0, (1 - share) / (1 - self.decay_from)))
        return self.lr * min(1.0, (step + 1) / self.warmup) * fall


@dataclass(frozen=True)
class Recipe(Budget):
    """How a denoiser of images is trained.

    Args:
        dropout_from: Share of the budget before which labels are never dropped, so that a
            snapshot taken there is a model trained without dropout.
        flip: Mirror images at random.
        p_mean: Mean of `log sigma` while training.
        p_std: Standard deviation of `log sigma` while training.

    The others are those of `Budget`.
    """

    dropout_from: Annotated[float, Range(0, 1)] = 0.0
    flip: bool = False
    p_mean: Annotated[float, FINITE] = -1.2
    p_std: Annotated[float, Range(0, math.inf, closed="left")] = 1.2


def edm_loss(
    network: Callable[..., Tensor], x0: Tensor, label: Tensor, sigma: Tensor, n: Tensor
) -> Tensor:
    """EDM's weighted denoising loss: unit-variance input, target and weight.

    Shapes: x0 and n `(B, ...)`, label and sigma `(B,)`; returns a scalar.
    Source: Karras et al. (2022), arXiv:2206.00364, table 1.
    """
    s = sigma.reshape(-1, *[1] * (x0.ndim - 1))
    total = s**2 + SIGMA_DATA**2
    x = x0 + s * n
    raw = network(x * total.rsqrt(), sigma.log() / 4, label).float()
    target = (x0 - SIGMA_DATA**2 / total * x) * total.sqrt() / (s * SIGMA_DATA)
    return (raw - target).square().mean()


Loss = Callable[[Callable[..., Any], Tensor, torch.Generator, float], Tensor]
"""Loss of a batch: the network, the rows, a generator of the step, the share of the budget."""


def train(
    network: nn.Module,
    data: Images,
    recipe: Recipe,
    folder: Path,
    progress: Callable[[dict[str, Any]], None] = lambda info: None,
    save_every: float = 45.0,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Trains a denoiser of images in place, or goes on where `folder` stopped; see `fit`.

    Args:
        network: Takes `(x, c_noise, label)`; label `len(data.classes)` is null.
        data: Images and labels.
        recipe: Settings; they must equal those of the run that is resumed.
        folder: Holds `state.safetensors`, `state.json` and the snapshots.
        progress: Called now and then with step, loss, share of the budget and images seen.
        save_every: Seconds between checkpoints.
        device: Where to train; default where the network is.

    Returns:
        Steps, images seen, seconds and the running loss.

    Raises:
        ValueError: `folder` holds a run with another recipe or network; or a batch is larger
            than the data.
        FloatingPointError: The loss is no longer finite; the last checkpoint is.
    """

    def loss(forward: Callable[..., Any], rows: Tensor, g: torch.Generator, share: float) -> Tensor:
        flip = torch.rand(len(rows), generator=g) < 0.5 if recipe.flip else None
        x0, label = data.batch(rows, flip)
        dropped = torch.rand(len(rows), generator=g) < recipe.condition_dropout
        if share >= recipe.dropout_from:
            label = torch.where(dropped, len(data.classes), label)
        sigma = (recipe.p_mean + recipe.p_std * torch.randn(len(rows), generator=g)).exp()
        noise = torch.randn(x0.shape, generator=g)
        where = next(network.parameters()).device
        x0, label, sigma, noise = (t.to(where) for t in (x0, label, sigma, noise))
        return edm_loss(forward, x0, label, sigma, noise)

    return fit(network, loss, len(data), recipe, folder, progress, save_every, device)


def fit(
    network: nn.Module,
    loss_of: Loss,
    count: int,
    budget: Budget,
    folder: Path,
    progress: Callable[[dict[str, Any]], None] = lambda info: None,
    save_every: float = 45.0,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Trains `network` in place, or goes on where `folder` stopped; ends with the mean weights.

    Random numbers are a function of `(seed, step)`, so an interrupted run goes on with the draws
    it would have seen. At most `save_every` seconds are lost when the process is killed; on an
    exception or interrupt the last whole step is kept, unless it comes amid an update.

    Args:
        network: The network.
        loss_of: Its loss on a batch.
        count: Number of samples in the data.
        budget: Settings; they must equal those of the run that is resumed.
        folder: Holds `state.safetensors`, `state.json` and the snapshots.
        progress: Called now and then with step, loss, share of the budget and samples seen.
        save_every: Seconds between checkpoints.
        device: Where to train; default where the network is.

    Returns:
        Steps, samples seen (as `images`), seconds and the running loss.

    Raises:
        ValueError: `folder` holds a run with other settings or another network; or a batch is
            larger than the data.
        FloatingPointError: The loss is no longer finite; the last checkpoint is.
    """
    if budget.batch > count:
        raise ValueError(f"train: batch must be at most {count}, got {budget.batch}")
    folder.mkdir(parents=True, exist_ok=True)
    network.to(device).train()
    device = next(network.parameters()).device
    weights = network.state_dict().items()
    ema = {k: v.detach().clone(memory_format=torch.contiguous_format).float() for k, v in weights}
    optimizer = torch.optim.AdamW(network.parameters(), budget.lr, weight_decay=0.01, fused=True)
    info: dict[str, Any] = {"step": 0, "seconds": 0.0, "loss": None}
    if (folder / "state.json").exists():
        info = _restore(folder, network, ema, optimizer, budget)
    forward = torch.compile(network) if budget.compile else network
    batches = count // budget.batch
    began, saved = time.monotonic() - info["seconds"], time.monotonic()
    epoch, order = -1, torch.empty(0)
    reached = budget.share(info["step"], info["seconds"])
    whole = True  # weights, mean and step count belong together: what is saved must
    try:
        while (share := budget.share(info["step"], time.monotonic() - began)) < 1:
            step = info["step"]
            if step // batches != epoch:
                epoch = step // batches
                order = torch.randperm(count, generator=generator(budget.seed, 1, epoch))
            g = generator(budget.seed, 0, step)
            rows = order[step % batches * budget.batch :][: budget.batch]
            optimizer.param_groups[0]["lr"] = budget.lr_at(step, share)
            with torch.autocast(device.type, torch.bfloat16, enabled=budget.bf16):
                loss = loss_of(forward, rows, g, share)
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(f"train: the loss is {value} at step {step}")
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            whole = False
            optimizer.step()
            optimizer.zero_grad()
            decay = min(budget.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                current = network.state_dict()
                torch._foreach_lerp_(
                    list(ema.values()), [current[k].float() for k in ema], 1 - decay
                )
            value = value if info["loss"] is None else 0.99 * info["loss"] + 0.01 * value
            info = {"step": step + 1, "seconds": time.monotonic() - began, "loss": value}
            whole = True
            before, reached = reached, budget.share(info["step"], info["seconds"])
            for mark in budget.snapshots:
                if before < mark <= reached:
                    save_file(ema, folder / f"snapshot-{mark:g}.safetensors", _metadata(info))
            if time.monotonic() - saved > save_every:
                _save(folder, network, ema, optimizer, budget, info)
                saved = time.monotonic()
            if step % 20 == 0:
                progress({**info, "share": reached, "images": info["step"] * budget.batch})
    finally:
        if whole:
            _save(folder, network, ema, optimizer, budget, info)
    network.load_state_dict(ema)
    network.eval()
    return {**info, "images": info["step"] * budget.batch}


def generator(*key: int) -> torch.Generator:
    """A generator on the CPU whose seed is a function of the key alone."""
    seed = 0
    for k in key:
        seed = (seed * 1_000_003 + k + 1) % 2**63
    return torch.Generator().manual_seed(seed)


def differences(kept: Mapping[str, Any], recipe: Budget) -> list[str]:
    """The settings of a recipe that differ from those that a run noted as JSON."""
    ours = json.loads(json.dumps(asdict(recipe)))
    return [k for k in ours if kept.get(k) != ours[k]]


def _metadata(info: dict[str, Any]) -> dict[str, str]:
    return {k: str(v) for k, v in info.items()}


def _save(
    folder: Path,
    network: nn.Module,
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    recipe: Budget,
    info: dict[str, Any],
) -> None:
    tensors = {f"network.{k}": v.contiguous() for k, v in network.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v.contiguous() for k, v in state.items()}
    # the step counts of the two files must agree even if we are killed between them
    save_file(tensors, folder / "state.tmp", {"info": json.dumps(info)})
    (folder / "state.tmp").replace(folder / "state.safetensors")
    about = {"info": info, "recipe": asdict(recipe), "config": getattr(network, "config", None)}
    text = json.dumps(about, indent=1)
    (folder / "state.json.tmp").write_text(text)
    (folder / "state.json.tmp").replace(folder / "state.json")


def _restore(
    folder: Path,
    network: nn.Module,
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    recipe: Budget,
) -> dict[str, Any]:
    kept = json.loads((folder / "state.json").read_text())
    differing = differences(kept["recipe"], recipe)
    if differing:
        raise ValueError(
            f"train: {folder} holds a run with another recipe "
            f"({', '.join(differing)} differ); "
            "name another folder or the same settings"
        )
    config = getattr(network, "config", None)
    if kept.get("config", config) != config:
        raise ValueError(f"train: {folder} holds a run of another network, {kept['config']}")
    groups: dict[str, dict[str, Tensor]] = {"network": {}, "ema": {}, "optimizer": {}}
    with safe_open(folder / "state.safetensors", "pt") as f:
        about = f.metadata() or {}
        for key in f.keys():  # noqa: SIM118 (no mapping)
            group, name = key.split(".", 1)
            groups[group][name] = f.get_tensor(key)
    network.load_state_dict(groups["network"])
    for k, v in groups["ema"].items():
        ema[k].copy_(v)
    state: dict[int, dict[str, Tensor]] = {}
    for key, v in groups["optimizer"].items():
        i, name = key.split(".", 1)
        state.setdefault(int(i), {})[name] = v
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    info: dict[str, Any] = json.loads(about["info"]) if "info" in about else kept["info"]
    return info
