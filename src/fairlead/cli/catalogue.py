"""`fairlead methods` and `fairlead models`: what there is."""

import re

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from fairlead.cli.common import Json, command, print_json


@command
def methods(json: Json = False) -> None:
    """List every method: name, papers, kind, domains, cost, neutral value, source.

    NFE is what a method adds to the one conditional evaluation of a step; for a sampler, the
    evaluations of the guided model a step.
    """
    from fairlead.methods import methods as rows_of

    rows = rows_of()
    if json:
        print_json(rows)
        return
    names = ("name", "ids", "kind", "domains", "NFE", "neutral", "source")
    table = Table(*(Column(name, no_wrap=name in ("name", "source")) for name in names))
    for row in rows:
        cells = [
            row["name"],
            ", ".join(row["ids"]),
            row["kind"],
            ", ".join(row["domains"]),
            str(row["nfe"]),
            row["neutral"] or "-",
            " ".join(re.findall(r"arXiv:[\w.]*\w", row["source"])) or row["source"],
        ]
        table.add_row(*(Text(c) for c in cells))
    Console().print(table)


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
