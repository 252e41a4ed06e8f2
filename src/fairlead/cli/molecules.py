"""`fairlead molecules`: guided molecules, and what they are worth."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fairlead.cli.common import Device, Json, arguments, command, print_json

SHOWN = 8


@command
def molecules(
    model: Annotated[str, typer.Argument(help="qm9-masked, qm9-uniform, or a file or folder.")],
    guide: Annotated[
        str, typer.Option("--guide", help="Guide; dcbg('qed') and dcbg('rings') find classifiers.")
    ] = "none",
    sampler: Annotated[
        str, typer.Option("--sampler", help="Sampler of tokens, such as ancestral or rates.")
    ] = "ancestral",
    qed: Annotated[
        int | None, typer.Option("--qed", help="Tenth of QED that is asked for, 0 to 9.")
    ] = None,
    rings: Annotated[
        int | None, typer.Option("--rings", help="Rings that are asked for, 0 to 6 (6: or more).")
    ] = None,
    unconditional: Annotated[
        bool, typer.Option("--unconditional", help="Tell the classifiers alone what is asked for.")
    ] = False,
    space: Annotated[
        str | None,
        typer.Option("--space", help="Where guides combine: clean, or posterior (D-CBG)."),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Number of molecules.")] = 64,
    steps: Annotated[int, typer.Option("--steps", help="Number of steps.")] = 32,
    seed: Annotated[int, typer.Option("--seed", help="Seed of all random draws.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="File of the SMILES, one a line.")
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Draw molecules as SMILES and count what is valid, unique and new."""
    from fairlead.discrete import TokenDenoiser, sample
    from fairlead.metrics.molecules import describe, evaluate, known
    from fairlead.models import zoo
    from fairlead.studies.files import require_writable

    if out is not None:
        require_writable(out, folder=False)
    describe("C")  # without RDKit nothing below makes sense
    denoiser: Any = zoo.load(model, device=device)
    if not isinstance(denoiser, TokenDenoiser) or "qed" not in denoiser.choices:
        raise ValueError(f"molecules: {model} is no model of molecules; try qm9-masked")
    asked = {"qed": qed, "rings": rings}
    for name, value in asked.items():
        top = denoiser.choices[name] - 1
        if value is not None and not 0 <= value <= top:
            raise ValueError(f"molecules: {name} must be in [0, {top}], got {value}")
    null = {name: denoiser.null[name] for name in asked}
    told = {k: v for k, v in asked.items() if v is not None}
    condition = null if unconditional else {**null, **told}
    energies = {}
    for name, value in told.items():
        if f"'{name}'" in guide or f'"{name}"' in guide:
            energies[name] = zoo.judge(model, value, name, device=device)
    with arguments():
        drawn = sample(
            denoiser,
            condition,
            guide=guide,
            sampler=sampler,
            space=space,  # type: ignore[arg-type]  # sample says what is allowed
            steps=steps,
            n=n,
            seed=seed,
            energies=energies,
        )
    assert denoiser.vocabulary is not None
    smiles = denoiser.decode(drawn.x, denoiser.vocabulary.index("<end>"))
    report = evaluate(smiles, known("qm9"))
    if out is not None:
        out.write_text("\n".join(smiles) + "\n")
    if json:
        print_json(
            {
                "model": model,
                "guide": str(drawn.guide),
                "sampler": sampler,
                "space": space,
                "asked": told,
                "steps": steps,
                "seed": seed,
                "nfe": drawn.nfe.tolist(),
                "report": asdict(report),
                "smiles": smiles,
            }
        )
        return
    console = Console()
    table = Table(title=f"{n} molecules of {model} under {drawn.guide}")
    for name in ("valid", "unique", "novel", "qed", "rings"):
        table.add_column(name, justify="right")
    found = asdict(report)
    table.add_row(*(_cell(found[c.header]) for c in table.columns))  # type: ignore[index]
    console.print(table)
    for line in smiles[:SHOWN]:
        console.print(Text(line), soft_wrap=True)


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
