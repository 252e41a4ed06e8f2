"""The training loop of the reference networks: EDM loss, EMA, resumable checkpoints."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fairlead.training.data import Images

SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        minutes: Wall-clock budget; the learning rate follows the share of it that is spent.
        batch: Images a step.
        lr: Learning rate after warm-up, constant until `decay_from` and then linear to 0.
        decay_from: Share of the budget after which the rate falls.
        warmup: Steps of linear warm-up.
        ema: Largest decay of the running mean of the weights, `(1 + n) / (10 + n)` before.
        condition_dropout: Probability with which a sample's label becomes null.
        dropout_from: Share of the budget before which labels are never dropped, so that a
            snapshot taken there is a model trained without dropout.
        flip: Mirror images at random.
        p_mean: Mean of `log sigma` while training.
        p_std: Standard deviation of `log sigma` while training.
        seed: Seed of everything random.
        bf16: Forward pass under bfloat16 autocast.
        compile: Compile the network.
        snapshots: Shares of the budget at which the mean weights are kept.
    """

    minutes: float = 10.0
    batch: int = 64
    lr: float = 5e-4
    decay_from: float = 0.6
    warmup: int = 200
    ema: float = 0.9995
    condition_dropout: float = 0.15
    dropout_from: float = 0.0
    flip: bool = False
    p_mean: float = -1.2
    p_std: float = 1.2
    seed: int = 0
    bf16: bool = True
    compile: bool = False
    snapshots: tuple[float, ...] = ()

    def lr_at(self, step: int, progress: float) -> float:
        """Learning rate at a step, with `progress` the share of the budget spent."""
        fall = min(1.0, max(0.0, (1 - progress) / (1 - self.decay_from)))
        return self.lr * min(1.0, (step + 1) / self.warmup) * fall


def edm_loss(network: nn.Module, x0: Tensor, label: Tensor, sigma: Tensor, n: Tensor) -> Tensor:
    """EDM's weighted denoising loss: unit-variance input, target and weight.

    Shapes: x0 and n `(B, C, H, W)`, label and sigma `(B,)`; returns a scalar.
    Source: Karras et al. (2022), arXiv:2206.00364, table 1.
    """
    s = sigma[:, None, None, None]
    total = s**2 + SIGMA_DATA**2
    x = x0 + s * n
    raw = network(x * total.rsqrt(), sigma.log() / 4, label).float()
    target = (x0 - SIGMA_DATA**2 / total * x) * total.sqrt() / (s * SIGMA_DATA)
    return (raw - target).square().mean()


def train(
    network: nn.Module,
    data: Images,
    recipe: Recipe,
    folder: Path,
    progress: Callable[[dict[str, Any]], None] = lambda info: None,
    save_every: float = 45.0,
) -> dict[str, Any]:
    """Trains `network` in place, or goes on where `folder` stopped; ends with the mean weights.

    Random numbers are a function of `(seed, step)`, so an interrupted run goes on with the draws
    it would have seen. At most `save_every` seconds are lost when the process is killed.

    Args:
        network: Takes `(x, c_noise, label)`; label `len(data.classes)` is null.
        data: Images and labels.
        recipe: Settings; they must equal those of the run that is resumed.
        folder: Holds `state.safetensors`, `state.json` and the snapshots.
        progress: Called now and then with step, loss, share of the budget and images seen.
        save_every: Seconds between checkpoints.

    Returns:
        Steps, images seen, seconds and the running loss.

    Raises:
        ValueError: `folder` holds a run with another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network.train()
    weights = network.state_dict().items()
    ema = {k: v.detach().clone(memory_format=torch.contiguous_format).float() for k, v in weights}
    optimizer = torch.optim.AdamW(network.parameters(), recipe.lr, weight_decay=0.01, fused=True)
    info: dict[str, Any] = {"step": 0, "seconds": 0.0, "loss": None}
    if (folder / "state.json").exists():
        info = _restore(folder, network, ema, optimizer, recipe)
    forward = torch.compile(network) if recipe.compile else network
    batches = max(1, len(data) // recipe.batch)
    began, saved = time.monotonic() - info["seconds"], time.monotonic()
    epoch, order = -1, torch.empty(0)
    try:
        while (share := (time.monotonic() - began) / (60 * recipe.minutes)) < 1:
            step = info["step"]
            if step // batches != epoch:
                epoch = step // batches
                order = torch.randperm(len(data), generator=generator(recipe.seed, 1, epoch))
            g = generator(recipe.seed, 0, step)
            rows = order[step % batches * recipe.batch :][: recipe.batch]
            flip = torch.rand(len(rows), generator=g) < 0.5 if recipe.flip else None
            x0, label = data.batch(rows, flip)
            dropped = torch.rand(len(rows), generator=g) < recipe.condition_dropout
            if share >= recipe.dropout_from:
                label = torch.where(dropped, len(data.classes), label)
            sigma = (recipe.p_mean + recipe.p_std * torch.randn(len(rows), generator=g)).exp()
            noise = torch.randn(x0.shape, generator=g)
            optimizer.param_groups[0]["lr"] = recipe.lr_at(step, share)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
                loss = edm_loss(forward, x0, label, sigma, noise)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            decay = min(recipe.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                current = network.state_dict()
                torch._foreach_lerp_(
                    [v for v in ema.values()], [current[k].float() for k in ema], 1 - decay
                )
            value = loss.item()
            info["loss"] = value if info["loss"] is None else 0.99 * info["loss"] + 0.01 * value
            info["step"] = step + 1
            info["seconds"] = time.monotonic() - began
            for mark in recipe.snapshots:
                if share < mark <= info["seconds"] / (60 * recipe.minutes):
                    save_file(ema, folder / f"snapshot-{mark:g}.safetensors", _metadata(info))
            if time.monotonic() - saved > save_every:
                _save(folder, network, ema, optimizer, recipe, info)
                saved = time.monotonic()
            if step % 20 == 0:
                progress({**info, "share": share, "images": info["step"] * recipe.batch})
    finally:
        _save(folder, network, ema, optimizer, recipe, info)
    network.load_state_dict(ema)
    network.eval()
    return {**info, "images": info["step"] * recipe.batch}


def generator(*key: int) -> torch.Generator:
    seed = 0
    for k in key:
        seed = (seed * 1_000_003 + k + 1) % 2**63
    return torch.Generator().manual_seed(seed)


def _metadata(info: dict[str, Any]) -> dict[str, str]:
    return {k: str(v) for k, v in info.items()}


def _save(
    folder: Path,
    network: nn.Module,
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    info: dict[str, Any],
) -> None:
    tensors = {f"network.{k}": v.contiguous() for k, v in network.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v.contiguous() for k, v in state.items()}
    save_file(tensors, folder / "state.tmp", {"step": str(info["step"])})
    (folder / "state.tmp").replace(folder / "state.safetensors")
    text = json.dumps({"info": info, "recipe": asdict(recipe)}, indent=1)
    (folder / "state.json.tmp").write_text(text)
    (folder / "state.json.tmp").replace(folder / "state.json")


def _restore(
    folder: Path,
    network: nn.Module,
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
) -> dict[str, Any]:
    kept = json.loads((folder / "state.json").read_text())
    ours = json.loads(json.dumps(asdict(recipe)))
    differing = [k for k in ours if kept["recipe"].get(k) != ours[k]]
    if differing:
        raise ValueError(
            f"train: {folder} holds a run with another recipe "
            f"({', '.join(differing)} differ); "
            "name another folder or the same settings"
        )
    groups: dict[str, dict[str, Tensor]] = {"network": {}, "ema": {}, "optimizer": {}}
    with safe_open(folder / "state.safetensors", "pt") as f:
        for key in f.keys():
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
    return kept["info"]
