"""Guides that follow a judge on the shipped CIFAR-10 model: classes and inverse problems.

`python -m benchmarks.images OUT` trains an independent judge, guides unconditional sampling by the
shipped classifier, and solves inverse problems on test images; it writes `energy_classes.csv`,
`energy_inverse.csv` and `inverse.png` to the folder. Success and Fréchet distance are those of the
independent judge and its features, since features of the judge that guided would flatter it.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import fairlead as fl
from fairlead.energy import Classifier, Linear, blur, downsampling, inpainting
from fairlead.metrics import frechet_distance, judge_report, moments
from fairlead.models import classifier as networks
from fairlead.models import zoo
from fairlead.training.data import cifar10

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOISE = 0.02


def independent(seconds: float) -> networks.Classifier:
    """Another architecture with another seed on the training images, for some seconds."""
    torch.manual_seed(1)
    images = cifar10("train")
    x, y = images.batch(torch.arange(len(images)))
    x, y = x.to(DEVICE), y.to(DEVICE)
    network = networks.Classifier(widths=(48, 96, 192, 256), patch=1).to(DEVICE).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    began, step = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, step / 100) * max(0.02, 1 - passed / seconds)
        index = torch.randint(len(x), (256,), device=DEVICE)
        batch = x[index]
        dx, dy = torch.randint(0, 9, (2,)).tolist()
        batch = F.pad(batch, (4, 4, 4, 4), mode="reflect")[..., dy : dy + 32, dx : dx + 32]
        flip = torch.rand(len(batch), 1, 1, 1, device=DEVICE) < 0.5
        batch = torch.where(flip, batch.flip(3), batch)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):  # slow on most CPUs
            loss = F.cross_entropy(network(batch).float(), y[index], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    network.eval().requires_grad_(False)
    test = cifar10("test")
    tx, ty = test.batch(torch.arange(len(test)))
    parts = [network(p.to(DEVICE)).argmax(1).cpu() for p in tx.split(500)]
    print(
        f"independent judge: {step} steps, accuracy {(torch.cat(parts) == ty).float().mean():.3f}"
    )
    return network


def classes(judge: networks.Classifier, out: Path, n: int, steps: int) -> None:
    """Class guidance of the unconditional model by the shipped classifier."""
    d = fl.load("cifar10", device=DEVICE)
    own = zoo.classifier("cifar10").to(DEVICE)
    labels = torch.arange(n) % 10
    given = Classifier(own, labels)
    guiding, other = Classifier(own, labels), Classifier(judge, labels)
    images = cifar10("train")
    x, _ = images.batch(torch.arange(min(len(images), 10_000)))
    features = torch.cat([judge.features(p.to(DEVICE)).cpu() for p in x.split(500)])
    mean, cov = moments(features)
    eta = "ddim(eta=1.0)"
    tries: list[tuple[str, Any, str]] = [
        ("no guidance", "none", eta),
        ("cfg(2), conditional model", "cfg(2)", eta),
        *(
            (f"classifier_guidance({k:g})", fl.ClassifierGuidance(given, k), eta)
            for k in (2.0, 6.0)
        ),
        *(
            (
                f"classifier_guidance({k:g}, point='estimate')",
                fl.ClassifierGuidance(given, k, point="estimate"),
                eta,
            )
            for k in (0.3, 1.0)
        ),
        *((f"dps({k:g})", fl.DPS(given, k), eta) for k in (1.0, 4.0)),
        *((f"lgd({k:g}, gamma=0.1)", fl.LGD(given, k, gamma=0.1), eta) for k in (1.0, 4.0)),
        *((f"freedom({k:g})", fl.FreeDoM(given, k), eta) for k in (1.0, 4.0)),
        *((f"mpgd({k:g})", fl.MPGD(given, k), eta) for k in (0.25, 1.0)),
        ("tfg(rho=1, mu=0.25, gamma=0.001)", fl.TFG(given, 1.0, 0.25, 0.001), eta),
        ("tfg(rho=2, mu=0.5, gamma=0.001)", fl.TFG(given, 2.0, 0.5, 0.001), eta),
        ("ugd(2, m=2, mu=0.25)", fl.UGD(given, 2.0, m=2, mu=0.25), eta),
        *((f"flowchef({k:g})", fl.FlowChef(given, k), "euler") for k in (0.25, 1.0)),
        ("dreamguider", fl.Dreamguider(given), "ddpm"),
        *((f"elucd({k:g})", fl.EluCD(given, k), "ddpm") for k in (4.0, 16.0)),
        *((f"norm_guidance({k:g})", fl.NormGuidance(given, k), eta) for k in (0.05, 0.15)),
        (
            "tfg(rho=1, mu=0.25), each step twice",
            fl.TFG(given, 1.0, 0.25, 0.001),
            f"recurrence({eta!r}, times=2)",
        ),
    ]
    head = ["guide", "success by the guiding judge", "success by another judge", "gap", "FD"]
    rows: list[list[Any]] = [[*head, "NFE", "backwards", "gradients", "seconds"]]
    for name, guide, sampler in tries:
        label = labels if "cfg" in name else torch.full((n,), 10)
        result = fl.sample(
            d, {"label": label}, guide=guide, sampler=sampler, steps=steps, check=False,
            record=False,
        )  # fmt: skip
        x = result.x.clamp(-1, 1).nan_to_num()
        report = judge_report(x, labels, guiding, {"other": other})
        with torch.no_grad():
            found = torch.cat([judge.features(p).cpu() for p in x.split(500)])
        fd = frechet_distance(*moments(found), mean, cov)
        cost = [int(result.nfe[0]), result.report.backwards, result.report.gradients]
        rows.append(
            [
                name,
                f"{report.guiding.value:.3f}",
                f"{report.success:.3f}",
                f"{report.gap:.3f}",
                f"{fd:.2f}",
                *cost,
                f"{result.report.seconds:.1f}",
            ]
        )
        print(*rows[-1], sep="  ", flush=True)
        save(out / "energy_classes.csv", rows)


def inverse(out: Path, n: int, steps: int, few: bool) -> None:
    """Inpainting, 4x super-resolution and deblurring of test images."""
    judge = zoo.classifier("cifar10").to(DEVICE)
    d = fl.load("cifar10", device=DEVICE)
    truth = cifar10("test").batch(torch.arange(n))[0].to(DEVICE)
    hole = torch.ones(32, 32, dtype=torch.bool)
    hole[8:24, 8:24] = False
    problems: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
        "inpainting": (inpainting(hole), lambda y: known(y, hole)),
        "4x super-resolution": (
            downsampling(4),
            lambda y: F.interpolate(y, scale_factor=4, mode="bicubic"),
        ),
        "deblurring": (blur(1.5), lambda y: y),
    }
    head = ["problem", "guide", "PSNR", "feature distance", "NFE", "backwards", "gradients"]
    rows: list[list[Any]] = [[*head, "seconds"]]
    pictures = []
    eta = "ddim(eta=1.0)"
    for problem, (operator, shown) in problems.items():
        generator = torch.Generator().manual_seed(0)
        clean = operator(truth)
        y = clean + NOISE * torch.randn(clean.shape, generator=generator).to(DEVICE)
        square = Linear(operator, y, 2**-0.5)  # the squared residual
        length = Linear(operator, y, form="norm")
        seen = shown(y).clamp(-1, 1)
        rho, mu = {"inpainting": (1, 1), "deblurring": (1, 8)}.get(problem, (4, 2))
        tries: list[tuple[str, Any, str]] = [
            *((f"dps({k:g})", fl.DPS(square, k), eta) for k in (0.3, 1.0)),
            *((f"mpgd({k:g})", fl.MPGD(square, k), eta) for k in (0.2, 0.5)),
            (f"tfg(rho={rho}, mu={mu}, gamma=0.01)", fl.TFG(length, rho, mu, 0.01), eta),
            (
                f"tfg(rho={rho / 4:g}, mu={mu / 4:g}, gamma=0.01)",
                fl.TFG(length, rho / 4, mu / 4, 0.01),
                eta,
            ),
            *((f"flowchef({k:g})", fl.FlowChef(square, k), "euler") for k in (0.2, 0.5)),
            ("dreamguider", fl.Dreamguider(length), "ddpm"),
            ("ugd(20)", fl.UGD(square, 20.0), eta),
        ]
        if few:
            tries = [tries[i] for i in (1, 3, 5, 7)]
        rows.append([problem, "the measurement itself", *quality(seen, truth, judge), 0, 0, 0, "0"])
        best: dict[str, tuple[float, Tensor]] = {}
        for name, guide, sampler in tries:
            result = fl.sample(
                d, {"label": torch.full((n,), 10)}, guide=guide, sampler=sampler,
                steps=steps, check=False, record=False,
            )  # fmt: skip
            x = result.x.clamp(-1, 1).nan_to_num()
            found = quality(x, truth, judge)
            cost = [int(result.nfe[0]), result.report.backwards, result.report.gradients]
            rows.append([problem, name, *found, *cost, f"{result.report.seconds:.1f}"])
            print(*rows[-1], sep="  ", flush=True)
            method = name.partition("(")[0]
            if method not in best or float(found[0]) > best[method][0]:
                best[method] = (float(found[0]), x)
            save(out / "energy_inverse.csv", rows)
        strips = [seen, *(best[m][1] for m in ("dps", "mpgd", "tfg", "flowchef")), truth]
        pictures.append(torch.cat([s[:8].cpu() for s in strips]))
        save_grid(out / "inverse.png", pictures)


def known(y: Tensor, hole: Tensor) -> Tensor:
    """An image with what was measured, grey elsewhere."""
    image = torch.zeros(len(y), 3 * 32 * 32, device=y.device)
    image[:, hole.expand(3, 32, 32).flatten()] = y
    return image.reshape(-1, 3, 32, 32)


def quality(x: Tensor, truth: Tensor, judge: networks.Classifier) -> list[str]:
    """Mean PSNR in dB, and mean distance of a classifier's features."""
    error = (x - truth).square().mean((1, 2, 3))
    with torch.no_grad():
        far = (judge.features(x) - judge.features(truth)).norm(dim=1).mean().item()
    return [f"{(10 * (4 / error).log10()).mean().item():.2f}", f"{far:.3f}"]


def save(path: Path, rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def save_grid(path: Path, pictures: list[Tensor]) -> None:
    """Problems side by side; in each a column an image, rows measurement to truth."""
    blocks = []
    for images in pictures:
        rows = images.reshape(6, -1, 3, 32, 32)
        block = rows.permute(0, 3, 1, 4, 2).reshape(6 * 32, -1, 3)
        blocks += [block, torch.ones(6 * 32, 6, 3)]
    whole = torch.cat(blocks[:-1], 1)
    pixels = ((whole + 1) / 2 * 255).round().clamp(0, 255).byte().numpy()
    picture = Image.fromarray(pixels)
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=Path("docs"))
    parser.add_argument("--only", choices=["inverse", "classes"])
    parser.add_argument("--images", type=int, default=64, help="test images of inverse problems")
    parser.add_argument("--samples", type=int, default=500, help="samples of each class guide")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--train", type=float, default=120, help="seconds for another judge")
    parser.add_argument("--few", action="store_true", help="four guides for inverse problems")
    options = parser.parse_args()
    if options.only != "classes":
        inverse(options.out, options.images, options.steps, options.few)
    if options.only != "inverse":
        classes(independent(options.train), options.out, options.samples, options.steps)


if __name__ == "__main__":
    main()
