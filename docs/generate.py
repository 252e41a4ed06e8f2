"""Writes what the documentation takes from the code: method pages, claims, model cards.

Everything lands in one folder that git ignores; files whose text is unchanged keep their time, so
that a second build is short.
"""

import dataclasses
import typing
from pathlib import Path
from typing import Any

from fairlead.discrete.sampler import TOKEN_SAMPLERS
from fairlead.guidance.algebra import REGISTRY
from fairlead.guidance.recipes import RECIPES, TOOLS
from fairlead.methods import methods
from fairlead.models import zoo
from fairlead.parameters import ranges
from fairlead.samplers import SAMPLERS

TITLES = {
    "term": ("Terms", "A weight times the difference of two branches."),
    "rule": ("Rules", "Maps on the sum of the terms before it."),
    "schedule": ("Schedules", "Weights and conditions over the course of a run."),
    "policy": ("Policies", "Which branches are evaluated at a step."),
    "sampler": ("Samplers", "From one noise level to the next."),
    "token sampler": ("Token samplers", "From noisy tokens to less noisy ones."),
    "recipe": ("Recipes", "Functions that build a guide, or the stages of a run."),
    "loss": ("Losses", "What networks are trained with."),
    "metric": ("Metrics", "Numbers of samples or prompts."),
    "constraint": ("Constraints", "What stands behind the guide and forbids."),
}


def write(folder: Path) -> None:
    """Writes all pages and removes those of methods that are gone."""
    folder.mkdir(exist_ok=True)
    claims = recorded()
    rows = methods()
    pages = {"index.rst": index(rows), "claims.inc": claims_table(claims), "models.inc": models()}
    for row in rows:
        pages[f"{row['name']}.rst"] = page(row, claims)
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for path in folder.iterdir():
        if path.name not in pages:
            path.unlink()


def recorded() -> list[dict[str, Any]]:
    from fairlead.studies import claims

    return claims.recorded()


def heading(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}\n\n"


def table(rows: list[list[str]], widths: str = "auto") -> str:
    """A list-table; the first row is the head, empty cells show a dash."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in rows:
        for i, cell in enumerate(row):
            lines.append(f"   {'* -' if i == 0 else '  -'} {' '.join(cell.split()) or '–'}")
    return "\n".join(lines) + "\n\n"


def code(text: str) -> str:
    return f"``{text}``"


def plain(text: str) -> str:
    """Text without markup: bars, stars and the like stand for themselves."""
    for mark in "\\*`|_":
        text = text.replace(mark, f"\\{mark}")
    return text


def index(rows: list[dict[str, Any]]) -> str:
    text = heading("Methods")
    text += (
        "What ``fairlead methods`` prints, one page each. NFE is what a method adds to the one\n"
        "conditional evaluation of a step; for a sampler, the evaluations of the guided model a\n"
        "step. *Neutral* are the arguments at which a method changes nothing.\n\n"
    )
    for kind, (title, says) in TITLES.items():
        chosen = [r for r in rows if r["kind"] == kind]
        if not chosen:
            continue
        text += heading(title, "-") + f"{says}\n\n"
        cells = [["name", "what it does", "ids", "NFE", "neutral"]]
        for r in chosen:
            neutral = code(r["neutral"]) if r["neutral"] else ""
            name = f":doc:`{r['name']} <{r['name']}>`"
            nfe = "" if r["nfe"] is None else str(r["nfe"])
            cells.append([name, r["summary"], ", ".join(r["ids"]), nfe, neutral])
        text += table(cells, "18 50 12 6 14")
        text += ".. toctree::\n   :hidden:\n\n"
        text += "".join(f"   {r['name']}\n" for r in chosen) + "\n"
    return text


def page(row: dict[str, Any], claims: list[dict[str, Any]]) -> str:
    name, kind = row["name"], row["kind"]
    if kind == "recipe" or name in TOOLS:
        return recipe(row, claims)
    registries: dict[str, Any] = {"sampler": SAMPLERS, "token sampler": TOKEN_SAMPLERS}
    cls: Any = registries.get(kind, REGISTRY)[name]
    samples = kind in registries
    text = heading(name)
    facts = [
        ("Kind", kind),
        ("Text form", code(name if kind == "sampler" else signature(cls))),
        ("Papers", ", ".join(row["ids"])),
        ("Domains", ", ".join(row["domains"])),
        ("NFE a step", f"{'' if samples else '+'}{row['nfe']}"),
        ("Neutral at", code(f"{name}({row['neutral']})") if row["neutral"] else ""),
    ]
    text += "".join(f":{key}: {value or '–'}\n" for key, value in facts) + "\n"
    modules = {"sampler": "fairlead.samplers", "token sampler": "fairlead.discrete"}
    module = modules.get(kind, "fairlead")
    text += f".. autoclass:: {module}.{cls.__name__}\n\n"
    if dataclasses.fields(cls):
        text += heading("Parameters", "-") + parameters(cls)
    return text + own_claims(row, claims)


def recipe(row: dict[str, Any], claims: list[dict[str, Any]]) -> str:
    name, kind = row["name"], row["kind"]
    text = heading(name) + f":Kind: {kind}\n:Papers: {', '.join(row['ids'])}\n\n"
    made = TOOLS[name].made if name in TOOLS else RECIPES[name]
    directive = "autoclass" if isinstance(made, type) else "autofunction"
    text += f".. {directive}:: {made.__module__}.{made.__name__}\n\n"
    return text + own_claims(row, claims)


def own_claims(row: dict[str, Any], claims: list[dict[str, Any]]) -> str:
    text = heading("Claims", "-")
    own = [c for c in claims if belongs(c, row)]
    if own:
        cells = [["claim", "what is said", "verdict"]]
        cells += [
            [f":ref:`{c['name']} <claim-{c['name']}>`", plain(c["claim"]), c["verdict"]]
            for c in own
        ]
        text += table(cells, "20 62 18")
    else:
        text += "None recorded.\n"
    return text


def signature(cls: Any) -> str:
    """The text form with every parameter, defaults where there are some."""
    parts = []
    for f in dataclasses.fields(cls):
        default = f.default is not dataclasses.MISSING
        parts.append(f"{f.name}={f.default!r}" if default else f.name)
    return f"{cls.name}({', '.join(parts)})"


def parameters(cls: Any) -> str:
    """Each parameter, what is allowed, and its default, from the annotations that check it."""
    allowed = ranges(cls)
    hints = typing.get_type_hints(cls)
    cells = [["name", "allowed", "default"]]
    for f in dataclasses.fields(cls):
        given = f.default is not dataclasses.MISSING
        if f.name in allowed:
            may = str(allowed[f.name])
        elif typing.get_origin(hints[f.name]) is typing.Literal:
            may = ", ".join(map(repr, typing.get_args(hints[f.name])))
        else:
            may = "see above"
        default = code(repr(f.default)) if given else "required"
        cells.append([code(f.name), may if may == "see above" else code(may), default])
    return table(cells, "20 50 30")


def belongs(claim: dict[str, Any], row: dict[str, Any]) -> bool:
    """By name, `<method>` or `<method>-<what>`; a claim named otherwise by its papers' ids."""
    method = claim["name"].partition("-")[0]
    if any(method in known for known in (REGISTRY, SAMPLERS, TOKEN_SAMPLERS, RECIPES)):
        return bool(method == row["name"])
    return bool(set(claim["ids"]) & set(row["ids"]))


def claims_table(claims: list[dict[str, Any]]) -> str:
    if not claims:
        return "No results are recorded.\n"
    count = sum(c["verdict"] == "reproduced" for c in claims)
    text = f"{count} of {len(claims)} claims reproduced.\n\n"
    cells = [["claim", "papers", "verdict", "NFE", "seconds"]]
    for c in claims:
        name = f":ref:`{c['name']} <claim-{c['name']}>`"
        nfe = "" if c["nfe"] is None else f"{c['nfe']:g}"
        cells.append([name, ", ".join(c["ids"]), c["verdict"], nfe, f"{c['seconds']:.1f}"])
    text += table(cells, "30 25 20 10 15")
    return text + "".join(claim(c) for c in claims)


def claim(c: dict[str, Any]) -> str:
    text = f".. _claim-{c['name']}:\n\n" + heading(c["name"], "-")
    text += f"{plain(c['claim'])}\n\n"
    text += f":Setting: {plain(c['setting'])}\n:Expected: {plain(c['expected'])}\n"
    text += f":Verdict: **{c['verdict']}**\n"
    missed = [k for k, v in c["checks"].items() if v is False]
    unclear = [k for k, v in c["checks"].items() if v is None]
    if missed:
        text += f":Not met: {plain('; '.join(missed))}\n"
    if unclear:
        text += f":Undecided: {plain('; '.join(unclear))}\n"
    if c.get("error"):
        text += f":Error: {plain(c['error'])}\n"
    text += f":Seed: {shown(c['seed'])}\n\n"
    if c["measured"]:
        cells = [["quantity", "measured"]]
        cells += [[plain(k), plain(shown(v))] for k, v in c["measured"].items()]
        text += table(cells, "40 60")
    return text


def shown(value: Any) -> str:
    """A measured value: an estimate with its interval, lists and mappings in one line."""
    if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
        return f"{value['value']:g} [{value['low']:g}, {value['high']:g}]"
    if isinstance(value, dict):
        return "; ".join(f"{k}: {shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def models() -> str:
    text = ""
    for card in zoo.models():
        text += heading(card["name"], "-")
        licence = card.get("licence", {})
        size = " x ".join(map(str, card["shape"]))
        schedule = card.get("schedule", {})
        facts = {
            "Network": f"{card['network']}, {card['parameters'] / 1e6:.2f} M parameters",
            "Samples": size,
            "Data": f"{card['data']}; {licence.get('data', '')}",
            "Schedule": schedule.get("name", ""),
            "Prediction": card.get("prediction", ""),
            "Condition states": ", ".join(card.get("states", ())),
            "Training": f"{card.get('steps', '?')} steps, {card.get('minutes', '?')} minutes, "
            f"seed {card.get('seed', '?')}",
            "Measured": "; ".join(f"{k} {v:.4g}" for k, v in card.get("metrics", {}).items()),
            "Licence of the weights": licence.get("weights", ""),
            "Weak companion": card.get("weak") or "",
            "Note": card.get("note", ""),
        }
        text += "".join(f":{k}: {plain(v)}\n" for k, v in facts.items() if v) + "\n"
    return text
