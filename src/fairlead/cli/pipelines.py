"""What the commands that take a pipeline share: options, loading, quiet libraries."""

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

Prompts = Annotated[
    list[str] | None, typer.Option("--prompt", help="What is to be made; repeat for more.")
]
Negative = Annotated[
    str | None, typer.Option("--negative", help="Negative prompt, the guide's null.")
]
States = Annotated[
    list[str] | None,
    typer.Option("--state", help="A further prompt for the guide, as NAME=TEXT; repeat for more."),
]
Image = Annotated[
    Path | None, typer.Option("--image", help="Picture that the pipeline starts from.")
]
Mask = Annotated[Path | None, typer.Option("--mask", help="What is painted anew, in white.")]
MaxBatch = Annotated[
    int | None,
    typer.Option("--max-batch", help="Most rows in one call of the network; saves memory."),
]
Height = Annotated[int | None, typer.Option("--height", help="Height in pixels.")]
Width = Annotated[int | None, typer.Option("--width", help="Width in pixels.")]
PipelineSteps = Annotated[
    int | None, typer.Option("--steps", help="Steps; default: the pipeline's own.")
]


def load(folder: Path, device: str | None, precision: str) -> Any:
    """A pipeline from a local folder, with its libraries' bars and notices off.

    Raises:
        ValueError: The folder or the precision is refused.
    """
    import torch

    from fairlead.parameters import choose

    dtypes = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    choose("pipeline", "precision", precision, dtypes)
    _hush()
    from fairlead.adapters.diffusers.local import load_pipeline

    pipe = load_pipeline(folder, device=device, dtype=dtypes[precision])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _hush() -> None:
    # of the libraries' own business, which no user of a command can change
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", "Should have t", UserWarning, "torchsde")
    try:
        import diffusers
        import transformers
    except ImportError:
        raise ImportError(
            'pipelines need diffusers and transformers: pip install "fairlead[diffusers]"'
        ) from None
    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def inputs(
    image: Path | None, mask: Path | None, negative: str | None, **rest: Any
) -> dict[str, Any]:
    """The arguments of a pipeline's call that the options say.

    Raises:
        ValueError: A picture cannot be read.
    """
    made = {"negative_prompt": negative, **rest}
    for name, path in (("image", image), ("mask_image", mask)):
        if path is not None:
            made[name] = _picture(path)
    return made


def _picture(path: Path) -> Any:
    from PIL import Image as Pictures
    from PIL import UnidentifiedImageError

    try:
        return Pictures.open(path).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"pipeline: cannot read the picture {path}: {error}") from None


def states_of(words: list[str] | None) -> dict[str, str]:
    """Prompts by state from `NAME=TEXT`.

    Raises:
        ValueError: A word has no name, or names one twice.
    """
    made: dict[str, str] = {}
    for word in words or ():
        name, equals, text = word.partition("=")
        if not equals or not name.strip() or name.strip() in made:
            raise ValueError(
                f"pipeline: --state must be NAME=TEXT with different names, got {word!r}"
            )
        made[name.strip()] = text
    return made
