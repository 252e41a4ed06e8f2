"""Guides side by side: the same model, seeds and classes, with quality and cost of each."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import fairlead
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Guide
from fairlead.guidance.spec import guide as parse
from fairlead.metrics.report import report
from fairlead.models import zoo
from fairlead.parameters import choose
from fairlead.samplers.base import get as get_sampler
from fairlead.sampling import Step, refuse_tokens, sample
from fairlead.studies.comparison import Comparison, Row
from fairlead.studies.files import Samples, fingerprint, require_writable, to_json, write_text
from fairlead.studies.plots import plot_grid, plot_pareto
from fairlead.studies.tables import markdown, write_parquet

FEWEST = 6
"""Density and coverage compare each sample with its fifth neighbour."""

BATCH = 500
"""Images that the feature network sees at once."""

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}

Progress = Callable[[str, float, float], None]
"""Called with what is being done, and the network evaluations done so far and in all."""


def compare(
    model: str,
    guides: Sequence[Guide | str],
    out: Path | str,
    *,
    n: int = 500,
    steps: int = 18,
    sampler: str = "heun",
    seed: int = 0,
    chunk: int = 50,
    precision: str = "float32",
    device: str | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Comparison:
    """Samples under each guide, measures, and writes tables and plots.

    Sample `i` has class `i % K` and the same noise under every guide. Samples are kept in chunks
    as they come: called again with the same settings, the function goes on where it was stopped,
    and more samples or guides can be added. Written to `out`: `compare.md`, `compare.json`,
    `compare.parquet`, `pareto.png`, `grid.png`, and the samples.

    Args:
        model: A shipped model, or a file as in `fl.load`.
        guides: Guides or their texts, all different.
        out: Folder.
        n: Samples a guide, >= 6.
        steps: Steps of the sampler.
        sampler: A sampler's name or text.
        seed: Seed of the samples and of the intervals.
        chunk: Samples between two files; at most these are lost by a kill.
        precision: `float32`, or `bfloat16` for the inside of the network.
        device: Where to sample; default the CPU.
        progress: Called after each step.

    Returns:
        The results.

    Raises:
        ValueError: An argument is out of range, the folder holds samples of other settings or
            cannot be written, or the model's data have no shipped feature network.
        KeyboardInterrupt: Ctrl-C; the chunks that were finished stay.

    Example:
        >>> from fairlead.studies.compare import compare
        >>> found = compare("digits", ["none", "cfg(2)"], "out", n=100)  # doctest: +SKIP
        >>> found.rows[1].metrics["fd"]  # doctest: +SKIP
    """
    parsed = [parse(g) for g in guides]
    rule = get_sampler(sampler)
    texts = [str(g) for g in parsed]
    if not texts:
        raise ValueError("compare: guides must name at least one guide")
    if len(set(texts)) < len(texts):
        twice = next(t for t in texts if texts.count(t) > 1)
        raise ValueError(f"compare: guides must differ, {twice!r} is given twice")
    for name, value, least in (("n", n, FEWEST), ("steps", steps, 1), ("chunk", chunk, 1)):
        if value < least:
            raise ValueError(f"compare: {name} must be at least {least}, got {value}")
    choose("compare", "precision", precision, PRECISIONS)
    out = Path(out)
    require_writable(out, folder=True)
    denoiser = zoo.load(model, device=device)
    refuse_tokens("compare", denoiser)
    denoiser.autocast = PRECISIONS[precision]
    card = zoo.card(model)
    measure = _measure(card["data"], device)
    classes = tuple(card["classes"])
    assert denoiser.shape is not None
    networks = [d.network for d in (denoiser, *denoiser.models.values())]
    settings = {
        "model": str(model),
        "weights": fingerprint(*(m for m in networks if isinstance(m, torch.nn.Module))),
        "sampler": str(rule),
        "steps": steps,
        "seed": seed,
        "precision": precision,
        "fairlead": fairlead.__version__,
    }
    samples = Samples(out, settings, denoiser.shape)
    labels = torch.arange(n) % len(classes)
    _draw(denoiser, parsed, samples, labels, sampler, steps, seed, chunk, progress)

    rows = [measure(text, samples.load(text, n), labels, seed) for text in texts]
    found = Comparison(
        {**settings, "n": n, "data": card["data"], "features": f"{card['data']} feature network"},
        classes,
        rows,
        out,
    )
    write_text(out / "compare.json", to_json(found.to_dict()) + "\n")
    write_parquet(found, out / "compare.parquet")
    plot_pareto(found, out / "pareto.png")
    shown = min(n, 4 * len(classes))
    plot_grid(found, [samples.load(t, shown)["x"] for t in texts], out / "grid.png")
    write_text(out / "compare.md", markdown(found))
    return found


def _draw(
    denoiser: Denoiser,
    guides: list[Guide],
    samples: Samples,
    labels: Tensor,
    sampler: str,
    steps: int,
    seed: int,
    chunk: int,
    progress: Progress,
) -> None:
    """Draws what is missing, chunk by chunk."""
    missing = {str(g): samples.missing(str(g), len(labels), chunk) for g in guides}
    # evaluations of a sample: what the bar counts, so that dear guides weigh more
    cost = {str(g): g.describe().nfe for g in guides}
    total = float(len(labels) * sum(cost.values()))
    done = total - sum(cost[g] * len(rows) for g, runs in missing.items() for rows in runs)
    for guide in guides:
        text = str(guide)
        progress(text, done, total)
        for rows in missing[text]:
            work = cost[text] * len(rows)

            def after(step: Step, text: str = text, done: float = done, work: int = work) -> None:
                progress(text, done + work * (step.index + 1) / step.steps, total)

            began = time.perf_counter()
            result = sample(
                denoiser,
                {"label": labels[rows.start : rows.stop]},
                guide=guide,
                sampler=sampler,
                steps=steps,
                n=len(rows),
                seed=seed,
                first=rows.start,
                callback=after,
                record=False,
            )
            seconds = time.perf_counter() - began
            samples.save(text, rows, result.x, result.nfe, seconds)
            done += work
    progress("measuring", total, total)


def _measure(data: str, device: str | None) -> Callable[[str, dict[str, Tensor], Tensor, int], Row]:
    """A function from samples to their row, in the features of a data set's network."""
    classifier = zoo.classifier(data, device=device)
    reference = zoo.reference(data)

    def measure(guide: str, drawn: dict[str, Tensor], labels: Tensor, seed: int) -> Row:
        images = drawn["x"]
        features, logits = [], []
        with torch.no_grad():
            for part in torch.split(images.clamp(-1, 1), BATCH):
                found = classifier.features(part.to(device))
                features.append(found.cpu())
                logits.append(classifier.outputs(found).cpu())
        return Row(
            guide,
            len(images),
            drawn["nfe"].double().mean().item(),
            drawn["seconds"].mean().item(),
            report(torch.cat(features), torch.cat(logits), labels, images, reference, seed=seed),
        )

    return measure
