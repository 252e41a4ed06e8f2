"""`fairlead train`: the recipes of the shipped models."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from fairlead.cli.common import INTERRUPTED, Device, Json, bar, command, fail, print_json


@command
def train(
    recipe: Annotated[
        str, typer.Argument(help="Name of a shipped model; an unknown one lists them.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run and of its models.")],
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Budget in place of the recipe's.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the data sets; or $FAIRLEAD_DATA.")
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Train a model by a recipe and export it as weights with a card.

    A run that was stopped goes on when the same command is given again; a classifier of images, a
    matter of minutes, begins anew. Molecules need RDKit once, for a table of their properties.
    """
    from fairlead.parameters import choose
    from fairlead.studies.files import require_writable
    from fairlead.training import (
        RECIPES,
        TOKEN_RECIPES,
        export,
        run,
        run_classifier,
        run_tokens,
    )
    from fairlead.training.classifier import CONFIGS

    choose("train", "recipe", recipe, [*RECIPES, *CONFIGS, *TOKEN_RECIPES])
    if minutes is not None and not 0 < minutes < float("inf"):
        raise ValueError(f"train: minutes must be positive and finite, got {minutes}")
    require_writable(out, folder=True)
    models = out / "models"
    try:
        with bar() as update:

            def progress(info: dict[str, Any]) -> None:
                loss = info["loss"]
                update(f"step {info['step']}  loss {loss:.4f}", 100 * info["share"], 100)

            if recipe in TOKEN_RECIPES:
                info = run_tokens(recipe, out, models, data, progress, minutes, device)
                files = [Path(f) for f in info.pop("models")]
            elif recipe in CONFIGS:
                info = run_classifier(recipe, models, data, progress, minutes)
                files = [models / f"{recipe}.safetensors"]
            else:
                info = run(recipe, out, data, progress, minutes, device)
                files = export(out, recipe, models)
    except KeyboardInterrupt:
        kept = recipe not in CONFIGS
        again = "give the same command again to continue" if kept else "nothing is kept"
        raise fail(f"stopped; {again}", INTERRUPTED) from None
    if json:
        print_json({"recipe": recipe, **info, "models": [str(f) for f in files]})
        return
    console = Console()
    line = f"{info['step']} steps in {info['seconds']:.0f} s, loss {info['loss']:.4f}"
    for key, value in info.items():
        if key.startswith(("accuracy", "test_")):
            said = key.removeprefix("test_").replace("_", " ")
            line += f", test {said} {value:.4f}"
    console.print(Text(line), soft_wrap=True)
    for file in files:
        console.print(Text(f"wrote {file}"), soft_wrap=True)
