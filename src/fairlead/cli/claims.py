"""`fairlead claims`: the claims of papers, run anew or as recorded."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fairlead.cli.common import Json, command, print_json, stderr

STYLES = {"reproduced": "green", "not reproduced": "red", "inconclusive": "yellow"}


@command
def claims(
    names: Annotated[
        list[str] | None, typer.Argument(help="Claims to run or list; default all.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Show the recorded results; run nothing.")
    ] = False,
    json: Json = False,
    record: Annotated[
        bool, typer.Option("--record", help="Write the results to the recorded file.")
    ] = False,
) -> None:
    """Run the smallest honest experiment for each method's claim, and print the verdicts."""
    from fairlead.parameters import choose
    from fairlead.studies import claims as study

    if show and record:
        raise ValueError("claims: --list runs nothing, so there is nothing to --record")
    for name in names or ():
        choose("claims", "names", name, study.names())
    if show:
        results = [r for r in study.recorded() if not names or r["name"] in names]
    else:
        say = stderr()
        results = study.run(names or None, lambda line: say.print(Text(line), soft_wrap=True))
        if record:
            study.record(results)
    if json:
        print_json(results)
        return
    table = Table("name", "ids", "claim", "measured", "expected", "verdict", "s", "NFE")
    for r in results:
        cells = [_text(r[k]) for k in ("name", "ids", "claim", "measured", "expected")]
        verdict = Text(r["verdict"], style=STYLES.get(r["verdict"], ""))
        table.add_row(
            *(Text(c) for c in cells), verdict, Text(f"{r['seconds']:.1f}"), Text(_text(r["nfe"]))
        )
    Console().print(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
