"""Claims of chains of condition states."""

import torch
from torch import Tensor

import fairlead as fl
from fairlead import recipes
from fairlead.exact import GaussianSequence, LabelledMixture
from fairlead.metrics import Estimate, mean_interval
from fairlead.studies.claims import _labelled as labelled
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, agrees, equals

AT = labelled.levels(-4, 4, 60)
BOTH = {"row": 1, "column": 1}


def confidence(p: LabelledMixture, x: Tensor, name: str) -> Estimate:
    """Mean probability of the value 1 of a condition."""
    return mean_interval(p.log_posterior(x, name=name)[:, 1].exp())


@claim(
    "nested",
    ids=("XM1", "S023", "S066"),
    claim="In the nested chain the second weight raises how well the second condition is followed, "
    "and leaves the first as it is.",
    setting="2 x 2 grid of Gaussians at +-1, std 1, independent conditions, exact denoiser; 60 "
    "DDIM steps on lam -4..4, 4000 samples, first weight 1.5, second 1, 3, 7.5",
    expected="mean p(column | x) rises from weight to weight by more than 0.02, mean p(row | x) "
    "moves by less than 0.01; at weights 1 conditional to the bit; equal weights are joint CFG",
)
def nested() -> Finding:
    """Rises in the one, stays in the other."""
    p = labelled.grid(0.25, 1.0)
    d, kept = p.denoiser(fl.schedules.VP()), {}
    for w in (1.0, 3.0, 7.5):
        guide = recipes.nested(["row", "column"], [1.5, w])
        x = labelled.sample(d, guide, BOTH, AT, n=4000).x
        kept[w] = (confidence(p, x, "row"), confidence(p, x, "column"))
    rows, columns = ([pair[i].value for pair in kept.values()] for i in range(2))
    ones = recipes.nested(["row", "column"], [1, 1])
    plain, chain = (labelled.sample(d, g, BOTH, AT, n=500).x for g in ("none", ones))
    equal = recipes.nested(["row", "column"], [3, 3])
    joint, same = (labelled.sample(d, g, BOTH, AT, n=500).x for g in ("cfg(3)", equal))
    checks: dict[str, Check] = {
        "column rises": columns[0] + 0.02 < columns[1] and columns[1] + 0.02 < columns[2],
        "row stays": max(rows) - min(rows) < 0.01,
        "weights 1 are conditional": torch.equal(plain, chain),
        "equal weights are joint": bool((joint - same).abs().max() < 1e-9),
    }
    measured = {
        f"text weight {w:g}": {"p(row | x)": row, "p(column | x)": column}
        for w, (row, column) in kept.items()
    }
    return Finding(measured, checks, nfe=180)


@claim(
    "split",
    ids=("S108",),
    claim="Each weight of split-CFG controls its own group of conditions.",
    setting="2 x 2 x 2 grid of Gaussians at +-1, std 1, neighbouring conditions equal with "
    "probability 0.6, exact denoiser; 60 DDIM steps, 4000 samples; one of three weights raised "
    "from 1 to 3",
    expected="the mean posterior of its own condition rises most, for each weight",
)
def split() -> Finding:
    """The response matrix has its largest entry of each row on the diagonal."""
    cells = [(i, j, k) for i in range(2) for j in range(2) for k in range(2)]
    weights = [(0.6 if i == j else 0.4) * (0.6 if j == k else 0.4) for i, j, k in cells]
    names = ["garment", "person", "pose"]
    labels = {n: [cell[i] for cell in cells] for i, n in enumerate(names)}
    p = LabelledMixture([[2.0 * v - 1 for v in cell] for cell in cells], 1.0, labels, weights)
    d, asked = p.denoiser(fl.schedules.VP()), dict.fromkeys(names, 1)

    def followed(scales: list[float]) -> list[float]:
        guide = recipes.split(names, [1.0, *scales])
        x = labelled.sample(d, guide, asked, AT, n=4000).x
        return [confidence(p, x, name).value for name in names]

    start = followed([1.0, 1.0, 1.0])
    measured: dict[str, list[float]] = {"weights 1": start}
    checks: dict[str, Check] = {}
    for i, name in enumerate(names):
        raised = followed([3.0 if j == i else 1.0 for j in range(3)])
        response = [a - b for a, b in zip(raised, start, strict=True)]
        measured[f"response to {name}"] = response
        checks[name] = max(range(3), key=lambda j, r=response: r[j]) == i  # type: ignore[misc]
    return Finding(measured, checks, nfe=240)


@claim(
    "graph",
    ids=("S062",),
    claim="The weight of each graph of neighbours acts for itself; two equal graphs add theirs.",
    setting="Gaussians of std 0.7 in three dimensions: text moves the first by +-1, graph one the "
    "second by 2, graph two the third by 2; exact denoiser, 60 DDIM steps, 4000 samples, text "
    "weight 2; graph weights from (1, 1) to (2, 1) and (1, 2)",
    expected="raising a weight by 1 moves its own coordinate by more than 0.1 and by more than "
    "three times the other's; equal graphs with 1 and 2 are one with 3 to 1e-9",
)
def graph() -> Finding:
    """Own coordinate against the other's."""
    cells = [(t, g) for t in range(2) for g in range(3)]
    means = [[2.0 * t - 1, 2.0 * (g == 1), 2.0 * (g == 2)] for t, g in cells]
    labels = {"text": [t for t, _ in cells], "graph": [g for _, g in cells]}
    d = LabelledMixture(means, 0.49, labels).denoiser(fl.schedules.VP())

    def mean(weights: list[float], graphs: tuple[int, int] = (1, 2), n: int = 4000) -> Tensor:
        names = ["one", "two"][: len(weights)]
        states = {k: {"graph": torch.tensor(g)} for k, g in zip(names, graphs, strict=False)}
        guide = recipes.graph("text", "graph", 2.0, weights, names)
        condition = {"text": 1, "graph": 0}
        return labelled.sample(d, guide, condition, AT, n=n, states=states).x

    start = mean([1.0, 1.0]).mean(0)
    measured: dict[str, list[float]] = {"weights 1, 1": start.tolist()}
    checks: dict[str, Check] = {}
    for i, weights in enumerate(([2.0, 1.0], [1.0, 2.0])):
        moved = mean(weights).mean(0) - start
        own, other = moved[1 + i].item(), moved[2 - i].item()
        measured[f"moved by graph {i + 1}"] = moved.tolist()
        checks[f"graph {i + 1}"] = own > 0.1 and own > 3 * abs(other)
    twins, single = mean([1.0, 2.0], (1, 1), 500), mean([3.0], (1, 1), 500)
    checks["equal graphs"] = bool((twins - single).abs().max() < 1e-9)
    return Finding(measured, checks, nfe=240)


@claim(
    "control",
    ids=("XM4",),
    claim="With the control in both branches CFG amplifies the text alone; hidden in the null one, "
    "the control too.",
    setting="2 x 2 grid of Gaussians at +-1, std 0.5, joint [[0.3, 0.2], [0.2, 0.3]], text moves "
    "the first coordinate, control the second; exact denoiser, 60 DDIM steps, 4000 samples, "
    "w = 1, 2, 4",
    expected="mean of the text coordinate 0.99, 1.26, 1.57 normal, 0.99, 1.30, 1.64 guess; of the "
    "control 0.99 unchanged normal, 0.99, 1.30, 1.64 guess",
)
def control() -> Finding:
    """Each mean agrees."""
    d = labelled.grid(0.3).denoiser(fl.schedules.VP())
    published = {
        "normal": ((0.99, 1.26, 1.57), (0.99, 0.99, 0.99)),
        "guess": ((0.99, 1.30, 1.64), (0.99, 1.30, 1.64)),
    }
    measured: dict[str, Estimate] = {}
    checks: dict[str, Check] = {}
    for mode, (texts, controls) in published.items():
        for w, text, side in zip((1.0, 2.0, 4.0), texts, controls, strict=True):
            guide = recipes.control("row", "column", w, mode)  # type: ignore[arg-type]
            x = labelled.sample(d, guide, BOTH, AT, n=4000).x
            for i, (name, number) in enumerate((("text", text), ("control", side))):
                key = f"{mode}, w = {w:g}, {name}"
                measured[key] = labelled.mean(x, i)
                checks[key] = agrees(measured[key], number, 0.005)
    return Finding(measured, checks, nfe=120)


@claim(
    "joint",
    ids=("S040",),
    claim="CFG on the two end frames moves the frames between them from the unconditional mean to "
    "the bridge and beyond it, and narrows them.",
    setting="autoregressive process of 9 frames, rho 0.9, ends 2 and -1, exact denoiser, null is "
    "noise at the highest level; 400 DDIM steps on lam -5..5, mean and covariance of the affine "
    "chain without sampling",
    expected="middle frame at w = 0, 1, 2, 4: mean 0, 0.455, 0.639, 0.731; variance 0.987, 0.393, "
    "0.239, 0.191",
)
def joint() -> Finding:
    """Each number to half a unit of its last digit."""
    s = GaussianSequence.autoregressive([0.9], 9, [0, 8])
    d, at = s.denoiser(fl.schedules.VP()), labelled.levels(-5, 5, 400)
    measured: dict[str, list[float]] = {}
    checks: dict[str, Check] = {}
    numbers = {0.0: (0.0, 0.987), 1.0: (0.455, 0.393), 2.0: (0.639, 0.239), 4.0: (0.731, 0.191)}
    for w, (mean, variance) in numbers.items():
        guide = recipes.joint(["history"], w)
        at_ends = labelled.affine(d, guide, torch.tensor([2.0, -1.0]), at)
        found = [at_ends[0][3].item(), at_ends[1][3, 3].item()]
        measured[f"w = {w:g}: mean, variance"] = found
        checks[f"mean, w = {w:g}"] = equals(found[0], mean, 0.0005)
        checks[f"variance, w = {w:g}"] = equals(found[1], variance, 0.0005)
    return Finding(measured, checks, nfe=800)
