"""`fairlead methods` and `fairlead models`: what there is."""

import re
from itertools import groupby

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from fairlead.cli.common import Json, command, print_json

WIDE = 110
"""Columns of a console from which on all that there is to say fits."""


@command
def methods(json: Json = False) -> None:
    """List every method by kind: name, what it does, papers, cost, neutral value, domains.

    NFE is what a method adds to the one conditional evaluation of a step; for a sampler, the
    evaluations of the guided model a step. `--json` gives the sources whole.
    """
    from fairlead.methods import methods as rows_of

    rows = rows_of()
    if json:
        print_json(rows)
        return
    console = Console()
    wide = console.width >= WIDE
    for kind, chosen in groupby(rows, key=lambda row: row["kind"]):
        columns = [
            Column("name", no_wrap=True),
            Column("what it does", ratio=1),
            Column("ids", no_wrap=True),
            Column("NFE", no_wrap=True, justify="right"),
            Column("arXiv", no_wrap=True),
        ]
        if wide:
            columns[4:4] = [Column("neutral", max_width=20), Column("domains", max_width=12)]
        table = Table(*columns, title=f"{kind}s", box=SIMPLE, expand=True)
        for row in chosen:
            cells = [
                row["name"],
                row["summary"],
                "\n".join(row["ids"]),
                "" if row["nfe"] is None else str(row["nfe"]),
                "\n".join(re.findall(r"arXiv:([\w.]*\w)", row["source"])),
            ]
            if wide:
                cells[4:4] = [row["neutral"] or "-", "\n".join(row["domains"])]
            table.add_row(*(Text(c) for c in cells))
        console.print(table)
    if not wide:
        said = f"neutral values and domains: a console of {WIDE} columns, or --json"
        console.print(Text(said), soft_wrap=True)


@command
def models(json: Json = False) -> None:
    """List the shipped models; `--json` prints their cards whole."""
    from fairlead.models import zoo

    cards = zoo.models()
    if json:
        print_json(cards)
        return
    names = ("network", "parameters", "shape", "data", "measured")
    table = Table(Column("name", no_wrap=True), *names)
    for card in cards:
        measured = ", ".join(f"{k} {v:.4g}" for k, v in card.get("metrics", {}).items())
        cells = [
            card["name"],
            card["network"],
            f"{card['parameters'] / 1e6:.2f} M",
            "x".join(map(str, card["shape"])),
            card["data"],
            measured,
        ]
        table.add_row(*(Text(c) for c in cells))
    Console().print(table)
