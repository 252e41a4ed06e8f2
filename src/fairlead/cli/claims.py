"""`fairlead claims`: the claims of papers, run anew or as recorded."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fairlead.cli.common import FAILED, Json, command, print_json, stderr

STYLES = {"reproduced": "green", "not reproduced": "red", "inconclusive": "yellow"}


@command
def claims(
    names: Annotated[
        list[str] | None, typer.Argument(help="Claims, or patterns such as 'icg*'; default all.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Show the recorded results; run nothing.")
    ] = False,
    json: Json = False,
    record: Annotated[
        bool, typer.Option("--record", help="Write each result to the recorded file as it comes.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Skip claims recorded with the same code and weights."),
    ] = False,
) -> None:
    """Run the smallest honest experiment for each method's claim, and print the verdicts."""
    from fairlead.studies import claims as study

    if show and (record or resume):
        raise ValueError("claims: --list runs nothing, so there is nothing to --record or --resume")
    chosen = {c.name for c in study.select(names or None)}
    if show:
        results = [r for r in study.recorded() if r["name"] in chosen]
    else:
        say = stderr()
        results = study.run(
            names or None,
            lambda line: say.print(Text(line), soft_wrap=True),
            save=record,
            resume=resume,
        )
    if json:
        print_json(results)
    else:
        _table(results)
    if any(r["error"] for r in results):
        raise typer.Exit(FAILED)


def _table(results: list[dict[str, Any]]) -> None:
    from fairlead.studies.claims import show

    table = Table("name", "ids", "claim", "measured", "expected", "verdict", "s", "NFE")
    for r in results:
        cells = [r["name"], ", ".join(r["ids"]), r["claim"], show(r["measured"]), r["expected"]]
        verdict = Text(r["verdict"], style=STYLES.get(r["verdict"], ""))
        table.add_row(
            *(Text(c) for c in cells), verdict, Text(f"{r['seconds']:.1f}"), Text(show(r["nfe"]))
        )
    Console().print(table)
