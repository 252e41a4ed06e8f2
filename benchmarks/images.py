"""Guides that follow a judge on the shipped CIFAR-10 model: classes and inverse problems.

`python -m benchmarks.images OUT` guides sampling by the shipped classifier, and solves inverse
problems on test images; it writes `energy_classes.csv`, `energy_inverse.csv` and `inverse.png` to
the folder. Success and Fréchet distance are those of the independent judge and its features, since
the judge that guided flatters its samples. A row is written when its guide is done, and rows that
are there for the same number of samples and steps are not made again. Seconds are those of the
processor, which other work on the machine changes least; of the wall clock on a GPU.
"""

import argparse
import csv
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import fairlead as fl
from fairlead.energy import Classifier, Ensemble, Linear, blur, downsampling, inpainting
from fairlead.metrics import frechet_distance, judge_report, moments
from fairlead.models import classifier as networks
from fairlead.models import zoo
from fairlead.training.classifier import train_classifier
from fairlead.training.data import cifar10

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOISE = 0.02
MEMBERS = {2: (48, 96, 160)}
"""Widths of further judges that guide together with the shipped one, by seed; 1 is the
independent judge's."""
TRAINING = 300
"""Steps of their training."""

COST = ["NFE", "backwards", "gradients", "seconds"]
MEASURED = "the measurement itself"

Try = tuple[str, Any, str]


def model(half: bool) -> fl.Denoiser:
    """The shipped model, in bfloat16 if that is asked for."""
    d = fl.load("cifar10", device=DEVICE)
    d.autocast = torch.bfloat16 if half else None
    return d


def members(folder: Path) -> list[networks.Classifier]:
    """The further judges that guide, trained once and kept in a folder."""
    found = []
    for seed, widths in MEMBERS.items():
        name = f"cifar10-member-{seed}"
        path = folder / f"{name}.safetensors"
        if not path.exists():
            torch.manual_seed(seed)
            network = networks.Classifier(widths=widths).to(DEVICE)
            train_classifier(
                network, cifar10("train"), max_steps=TRAINING, flip=True, pad=4, seed=seed
            )
            zoo.save(network, {"name": name, "network": "classifier"}, folder)
        found.append(zoo.classifier(path, device=DEVICE))
    return found


def classes(out: Path, n: int, steps: int, cache: Path, half: bool, few: bool) -> None:
    """Class guidance of the unconditional model by the shipped classifier."""
    d, labels = model(half), torch.arange(n) % 10
    own, judge = (zoo.classifier(k, device=DEVICE) for k in ("cifar10", "cifar10-judge"))
    given = Classifier(own, labels)
    guiding, other = Classifier(own, labels), Classifier(judge, labels)
    both = Ensemble([given, *(Classifier(m, labels) for m in members(cache))], labels)
    known = zoo.reference("cifar10-judge")
    eta = "ddim(eta=1.0)"
    tries: list[Try] = [
        ("held-out images", None, ""),
        ("unconditional model", "none", eta),
        ("conditional model", "none", eta),
        *((f"conditional, cfg({k:g})", f"cfg({k})", eta) for k in (2.0, 4.0)),
        *((f"conditional, gfcg({k:g})", fl.GFCG(given, k), eta) for k in (2.0, 4.0)),
        *(
            (f"classifier_guidance({k:g})", fl.ClassifierGuidance(given, k), eta)
            for k in (6.0, 2.0)
        ),
        *(
            (
                f"classifier_guidance({k:g}, point='estimate')",
                fl.ClassifierGuidance(given, k, point="estimate"),
                eta,
            )
            for k in (1.0, 0.3)
        ),
        *((f"dps({k:g})", fl.DPS(given, k), eta) for k in (4.0, 1.0)),
        *((f"lgd({k:g}, gamma=0.1)", fl.LGD(given, k, gamma=0.1), eta) for k in (4.0, 1.0)),
        *((f"freedom({k:g})", fl.FreeDoM(given, k), eta) for k in (4.0, 1.0)),
        *((f"mpgd({k:g})", fl.MPGD(given, k), eta) for k in (1.0, 0.25)),
        ("tfg(rho=2, mu=0.5, gamma=0.001)", fl.TFG(given, 2.0, 0.5, 0.001), eta),
        ("tfg(rho=1, mu=0.25, gamma=0.001)", fl.TFG(given, 1.0, 0.25, 0.001), eta),
        (
            "tfg(rho=1, mu=0.25, gamma=0.001), each step twice",
            fl.TFG(given, 1.0, 0.25, 0.001),
            f"recurrence({eta!r}, times=2)",
        ),
        ("ugd(2, m=2, mu=0.25)", fl.UGD(given, 2.0, m=2, mu=0.25), eta),
        *((f"flowchef({k:g})", fl.FlowChef(given, k), "euler") for k in (1.0, 0.25)),
        ("dreamguider", fl.Dreamguider(given), "ddpm"),
        *((f"elucd({k:g})", fl.EluCD(given, k), "ddpm") for k in (16.0, 4.0)),
        *((f"norm_guidance({k:g})", fl.NormGuidance(given, k), eta) for k in (0.15, 0.05)),
        ("two judges, classifier_guidance(6)", fl.ClassifierGuidance(both, 6.0), eta),
        ("two judges, freedom(4)", fl.FreeDoM(both, 4.0), eta),
        ("two judges, flowchef(1)", fl.FlowChef(both, 1.0), "euler"),
        ("two judges, elucd(16)", fl.EluCD(both, 16.0), "ddpm"),
        (
            "two judges, tfg(rho=2, mu=0.5, gamma=0.001)",
            fl.TFG(both, 2.0, 0.5, 0.001),
            eta,
        ),
    ]
    head = ["guide", "success by the guiding judge", "by the independent judge", "gap", "FD"]
    table = Table(out / "energy_classes.csv", [*head, *COST], [(t[0],) for t in tries], (n, steps))
    for name, guide, sampler in in_turn(tries, few):
        if (name,) in table.rows:
            continue
        cost: list[Any] = [0, 0, 0, "0"]
        if guide is None:
            images = cifar10("test")
            rows = torch.cat([(images.labels == c).nonzero()[: -(-n // 10), 0] for c in range(10)])
            x, asked = images.batch(rows)
            x = x.to(DEVICE)
        else:
            own_label = labels if name.startswith("conditional") else torch.full((n,), 10)
            x, cost = draw(d, own_label, guide, sampler, steps)
            asked = labels
        scored = {"independent": other.towards(asked)}
        report = judge_report(x, asked, guiding.towards(asked), scored)
        with torch.no_grad():
            found = torch.cat([judge.features(p).cpu() for p in x.split(500)])
        fd = frechet_distance(*moments(found), known["mean"], known["cov"])
        shares = (report.guiding.value, report.success, report.gap)
        table.add([name, *(f"{v:.3f}" for v in shares), f"{fd:.2f}", *cost])


def draw(
    d: fl.Denoiser, label: Tensor, guide: Any, sampler: str, steps: int
) -> tuple[Tensor, list[Any]]:
    """Samples in [-1, 1], and what they cost."""
    clock = time.perf_counter if DEVICE == "cuda" else time.process_time
    began = clock()
    result = fl.sample(
        d, {"label": label}, guide=guide, sampler=sampler, steps=steps, check=False, record=False
    )
    seconds = clock() - began
    report = result.report
    cost = [int(result.nfe[0]), report.backwards, report.gradients, f"{seconds:.1f}"]
    return result.x.clamp(-1, 1).nan_to_num(), cost


class Table:
    """Rows of a file, in a fixed order whatever the order in which they are made.

    Args:
        path: The CSV file; its rows are read again.
        head: Names of the columns; two are added, samples and steps.
        order: The first cells of all rows, which name them.
        size: Samples and steps; rows of others are made anew.
    """

    def __init__(
        self, path: Path, head: list[str], order: list[tuple[str, ...]], size: tuple[int, int]
    ) -> None:
        self.path, self.head, self.order = path, [*head, "samples", "steps"], order
        self.size = [str(s) for s in size]
        self.rows: dict[tuple[str, ...], list[str]] = {}
        if path.exists():
            with path.open(newline="") as file:
                there, *rows = csv.reader(file)
            if there == self.head:
                self.rows = {self.key(r): r for r in rows if r[-2:] == self.size}

    def key(self, row: list[Any]) -> tuple[str, ...]:
        return tuple(row[: len(self.order[0])])

    def add(self, row: list[Any]) -> None:
        self.rows[self.key(row)] = [*map(str, row), *self.size]
        print(*self.rows[self.key(row)], sep="  ", flush=True)
        with self.path.open("w", newline="") as file:
            kept = [self.rows[k] for k in self.order if k in self.rows]
            csv.writer(file).writerows([self.head, *kept])


def in_turn(tries: list[Try], few: bool) -> list[Try]:
    """Each method once, and then, unless few are asked for, those at other scales."""
    seen: set[str] = set()
    first = []
    for one in tries:
        method = one[0].partition("(")[0]
        if method not in seen:
            first.append(one)
        seen.add(method)
    return first if few else first + [t for t in tries if t not in first]


def inverse(out: Path, n: int, steps: int, cache: Path, half: bool, few: bool) -> None:
    """Inpainting, 4x super-resolution and deblurring of test images."""
    judge = zoo.classifier("cifar10-judge", device=DEVICE)
    d = model(half)
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
    eta = "ddim(eta=1.0)"
    seen: dict[str, Tensor] = {}
    work: dict[str, list[Try]] = {}
    for problem, (operator, shown) in problems.items():
        generator = torch.Generator().manual_seed(0)
        clean = operator(truth)
        y = clean + NOISE * torch.randn(clean.shape, generator=generator).to(DEVICE)
        square = Linear(operator, y, 2**-0.5)  # the squared residual
        length = Linear(operator, y, form="norm")
        seen[problem] = shown(y).clamp(-1, 1)
        rho, mu = {"inpainting": (1, 1), "deblurring": (1, 8)}.get(problem, (4, 2))
        work[problem] = [
            (MEASURED, None, ""),
            *((f"dps({k:g})", fl.DPS(square, k), eta) for k in (1.0, 0.3)),
            ("lgd(0.1, gamma=0.1)", fl.LGD(square, 0.1, gamma=0.1), eta),
            ("freedom(0.1)", fl.FreeDoM(square, 0.1), eta),
            *((f"mpgd({k:g})", fl.MPGD(square, k), eta) for k in (0.5, 0.2)),
            *(
                (
                    f"tfg(rho={rho / k:g}, mu={mu / k:g}, gamma=0.01)",
                    fl.TFG(length, rho / k, mu / k, 0.01),
                    eta,
                )
                for k in (4, 1)
            ),
            ("ugd(20)", fl.UGD(square, 20.0), eta),
            *((f"flowchef({k:g})", fl.FlowChef(square, k), "euler") for k in (0.5, 0.2)),
            ("dreamguider", fl.Dreamguider(length), "ddpm"),
        ]
    order = [(problem, t[0]) for problem, tries in work.items() for t in tries]
    head = ["problem", "guide", "PSNR", "feature distance", *COST]
    table = Table(out / "energy_inverse.csv", head, order, (n, steps))
    for problem, tries in work.items():
        for name, guide, sampler in in_turn(tries, few):
            if (problem, name) in table.rows:
                continue
            if guide is None:
                x, cost = seen[problem], [0, 0, 0, "0"]
            else:
                x, cost = draw(d, torch.full((n,), 10), guide, sampler, steps)
            save_file({"x": x[:8].cpu().contiguous()}, kept(cache, problem, name))
            table.add([problem, name, *quality(x, truth, judge), *cost])
    pictures = []
    for problem, tries in work.items():
        shown_rows = [seen[problem]]
        for method in ("dps", "mpgd", "tfg", "flowchef"):
            names = [t[0] for t in in_turn(tries, few) if t[0].startswith(method)]
            best = max(names, key=lambda k: float(table.rows[problem, k][2]))
            shown_rows.append(load_file(kept(cache, problem, best))["x"])
        pictures.append(torch.cat([s[:8].cpu() for s in (*shown_rows, truth)]))
    save_grid(out / "_static" / "inverse.png", pictures)


def kept(cache: Path, problem: str, name: str) -> Path:
    """Where the first solutions of a problem lie, for the picture."""
    plain = re.sub(r"[^a-z0-9.]+", "-", f"{problem} {name}".lower())
    return cache / f"{plain}.safetensors"


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
    path.parent.mkdir(exist_ok=True)
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?", default=Path("docs"))
    parser.add_argument("--only", choices=["inverse", "classes"])
    parser.add_argument("--images", type=int, default=24, help="test images of inverse problems")
    parser.add_argument("--samples", type=int, default=60, help="samples of each class guide")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cache", type=Path, default=Path("runs/images"), help="what rows share")
    parser.add_argument("--half", action="store_true", help="the network in bfloat16")
    parser.add_argument("--few", action="store_true", help="each method at one scale")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    shared = (options.steps, options.cache, options.half, options.few)
    if options.only != "classes":
        inverse(options.out, options.images, *shared)
    if options.only != "inverse":
        classes(options.out, options.samples, *shared)


if __name__ == "__main__":
    main()
