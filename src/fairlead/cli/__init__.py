"""The command `fairlead`; each subcommand is a file, and heavy imports wait until one runs."""

from typing import Annotated

import typer

from fairlead.cli.catalogue import methods, models
from fairlead.cli.claims import claims
from fairlead.cli.common import traceback_wanted
from fairlead.cli.compare import compare
from fairlead.cli.generate import generate
from fairlead.cli.molecules import molecules
from fairlead.cli.sample import sample
from fairlead.cli.steer import steer
from fairlead.cli.train import train

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Guidance for generative models: sample, compare, and look things up.",
)


def _version(show: bool) -> None:
    if show:
        from fairlead import __version__

        typer.echo(f"fairlead {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the traceback of errors, for bug reports.")
    ] = False,
) -> None:
    """Options of all commands."""
    traceback_wanted.set(traceback)


def _example(text: str) -> str:
    return f"Example: {text}"


app.command(epilog=_example('fairlead sample cifar10 --guide "cfg(2)" --out grid.png'))(sample)
app.command(
    epilog=_example(
        'fairlead compare --model cifar10 --guide none --guide "cfg(2)" -n 500 --out study'
    )
)(compare)
app.command(
    epilog=_example(
        'fairlead steer stable-diffusion --prompt "a lighthouse" --guide "cfg(5)" --out a.png'
    )
)(steer)
app.command(epilog=_example("fairlead methods --json"))(methods)
app.command(epilog=_example("fairlead models"))(models)
app.command(epilog=_example("fairlead train digits --out runs/digits --minutes 4"))(train)
app.command(
    epilog=_example(
        'fairlead generate shakespeare-ar --prompt "ROMEO:" --guide "cfg(1.5)" --sample'
    )
)(generate)
app.command(epilog=_example('fairlead molecules qm9-masked --guide "cfg(2)" --qed 9 -n 64 --json'))(
    molecules
)
app.command(epilog=_example("fairlead claims cfg apg"))(claims)
