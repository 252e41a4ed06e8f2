"""`fairlead generate`: text under a guide."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from fairlead.cli.common import Device, Json, arguments, command, print_json


@command
def generate(
    model: Annotated[
        str, typer.Argument(help="A local folder of transformers, or shakespeare-ar.")
    ],
    prompt: Annotated[
        list[str], typer.Option("--prompt", help="Where the text begins; repeat for several.")
    ],
    guide: Annotated[str, typer.Option("--guide", help="Guide over log-probabilities.")] = "none",
    negative: Annotated[
        str | None, typer.Option("--negative", help="What the text is pushed away from.")
    ] = None,
    amateur: Annotated[
        str | None, typer.Option("--amateur", help="Weaker model of the same vocabulary.")
    ] = None,
    grammar: Annotated[
        str | None, typer.Option("--grammar", help="Regular expression that the text must match.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", help="Number of new tokens, at most.")] = 64,
    beams: Annotated[int, typer.Option("--beams", help="Number of beams.")] = 1,
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of the best.")] = False,
    temperature: Annotated[float, typer.Option("--temperature", help="Of sampling.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Nucleus of sampling.")] = 1.0,
    n: Annotated[int, typer.Option("-n", help="Texts a prompt; needs --sample or --beams.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Seed of sampling.")] = 0,
    device: Device = None,
    json: Json = False,
) -> None:
    """Generate text with a language model under a guide."""
    from fairlead.autoregressive import generate as run
    from fairlead.autoregressive.local import load_language

    if tokens < 1:
        raise ValueError(f"generate: --tokens must be at least 1, got {tokens}")
    if beams < 1 or n < 1:
        raise ValueError(f"generate: --beams and -n must be at least 1, got {beams} and {n}")
    if not 0 < top_p <= 1:
        raise ValueError(f"generate: --top-p must be in (0, 1], got {top_p}")
    if n > 1 and not sample and beams < n:
        raise ValueError(f"generate: -n {n} needs --sample, or --beams {n} or more, got {beams}")
    network, tokenizer = load_language(model, device=device)
    models = {} if amateur is None else {"amateur": load_language(amateur, device=device)[0]}
    options: dict[str, Any] = {"num_beams": beams, "num_return_sequences": n, "do_sample": sample}
    if sample:
        options |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
    with arguments():
        out = run(
            network,
            tokenizer,
            prompt,
            guide=guide,
            negative=negative,
            models=models,
            grammar=grammar,
            max_new_tokens=tokens,
            seed=seed,
            **options,
        )
    evaluations = int(out.nfe[0])
    if json:
        found = {"texts": out.texts, "guide": str(out.guide), "nfe": evaluations, "seed": seed}
        print_json(found | ({"stopped": out.stopped} if grammar is not None else {}))
        return
    for text in out.texts:
        Console().print(Text(text))
    for i, where in enumerate(out.stopped):
        if where:
            Console(stderr=True).print(Text(f"text {i} stopped at {where}"))
    Console(stderr=True).print(f"{evaluations} evaluations a sequence")
