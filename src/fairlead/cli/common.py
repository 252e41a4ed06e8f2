"""What the commands share: errors in one line, progress on stderr, JSON on stdout."""

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.text import Text

USER_ERROR = 2
FAILED = 1
INTERRUPTED = 130

traceback_wanted: ContextVar[bool] = ContextVar("traceback_wanted", default=False)
"""What `fairlead --traceback` asks for."""

F = TypeVar("F", bound=Callable[..., Any])

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
Steps = Annotated[int, typer.Option("--steps", help="Steps of the sampler.")]
Sampler = Annotated[
    str, typer.Option("--sampler", help="A sampler's name or text, see `fairlead methods`.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of all random draws.")]
Precision = Annotated[
    str, typer.Option("--precision", help="float32, or bfloat16 inside the network.")
]
Device = Annotated[
    str | None, typer.Option("--device", help="Where the network runs, such as cuda; default cpu.")
]


def stderr() -> Console:
    """A console on the present stderr."""
    return Console(stderr=True)


def fail(message: str, code: int = USER_ERROR) -> typer.Exit:
    """Prints an error in red; raise what it returns."""
    stderr().print(Text(f"error: {message}", style="bold red"), soft_wrap=True)
    return typer.Exit(code)


def command(run: F) -> F:
    """Turns what a user can put right into one line and exit code 2, without a traceback.

    A NaN out of a network exits with 1, Ctrl-C with 130. Anything else is a bug of ours and
    keeps its traceback; so does everything under `fairlead --traceback`.
    """

    @functools.wraps(run)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if traceback_wanted.get():
            return run(*args, **kwargs)
        try:
            with shown_warnings():
                return run(*args, **kwargs)
        except (ValueError, OSError, ImportError) as error:
            raise fail(str(error) or type(error).__name__) from None
        except FloatingPointError as error:
            raise fail(str(error), FAILED) from None
        except KeyboardInterrupt as interrupt:
            raise fail(str(interrupt) or "interrupted", INTERRUPTED) from None

    return guarded  # type: ignore[return-value]


@contextmanager
def shown_warnings() -> Iterator[None]:
    """Shows warnings as one line each, without the place in our code that they come from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        stderr().print(Text(f"warning: {message}", style="yellow"), soft_wrap=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def arguments() -> Iterator[None]:
    """Where a guide or a sampler is read: an argument of the wrong type is the user's error."""
    try:
        yield
    except TypeError as error:
        raise ValueError(str(error)) from None


def print_json(value: Any) -> None:
    """JSON on stdout."""
    from fairlead.studies.files import to_json

    sys.stdout.write(to_json(value) + "\n")


@contextmanager
def bar() -> Iterator[Callable[[str, float, float], None]]:
    """A progress bar with ETA on stderr, as `update(what, done, total)`.

    What was done before the first call does not count for the speed.
    """
    from rich.progress import (
        BarColumn,
        Progress,
        TaskID,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr(), transient=True) as progress:
        task: list[TaskID] = []

        def update(what: str, done: float, total: float) -> None:
            if not task:
                task.append(progress.add_task(what, total=total, completed=int(done)))
            progress.update(task[0], description=what, completed=done, total=total)

        yield update
