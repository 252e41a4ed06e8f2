"""Claim of moving keys and values towards an attribute."""

from typing import Any

import torch
from torch import Tensor

import fairlead as fl
from fairlead.metrics import mean_interval
from fairlead.models import zoo
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, below, difference

WANTED, OTHER = "<ROMEO>", "<MENENIUS>"
TEXTS, LENGTH, STEPS = 128, 40, (0.0, 0.05, 0.2)


def likelihood(model: Any, first: int, texts: Tensor) -> Tensor:
    """Mean log-probability of a character, `(N,)`, behind a first token."""
    ids = torch.cat([torch.full_like(texts[:, :1], first), texts], 1)
    log_p = model(ids).logits[:, :-1].log_softmax(-1)
    found: Tensor = log_p.gather(2, ids[:, 1:, None])[..., 0].mean(1)
    return found


def head(model: Any, anyone: int, texts: list[Tensor]) -> Any:
    """A logistic classifier of mean hidden states, trained on beginnings of both kinds of text."""
    features, labels = [], []
    for label, kind in enumerate(texts):
        ids = torch.cat([torch.full_like(kind[:, :1], anyone), kind], 1)
        states = model(ids, output_hidden_states=True).hidden_states[-1]
        for n in range(5, LENGTH + 1, 5):
            features.append(states[:, : n + 1].mean(1))
            labels.append(torch.full((len(kind),), float(label)))
    x, y = torch.cat(features), torch.cat(labels)
    weight = torch.zeros(x.shape[1] + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = x @ weight[1:] + weight[0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
        loss = loss + 1e-3 * weight[1:].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    found = weight.detach()
    return lambda hidden: torch.nn.functional.logsigmoid(hidden @ found[1:] + found[0])


@claim(
    "pplm",
    ids=("XD5",),
    claim="Gradient steps on keys and values towards an attribute head steer a language model that "
    "was not trained for it.",
    setting="shakespeare-ar without a speaker; a logistic head on mean hidden states, trained on "
    f"{TEXTS} texts of {LENGTH} characters that the model writes as each of Romeo and Menenius; "
    f"{TEXTS} texts of {LENGTH} characters, step 0, 0.05, 0.2, 3 iterations, m = 0.9, 10 likeliest "
    "characters; judged by the model with the speaker: mean of log p(text | Romeo) - log p(text | "
    "Menenius) a character; fluency: mean log p(text | no speaker)",
    expected="the ratio at step 0.2 above that at step 0, and at 0.05 between (by their means); "
    "log p of a character falls by less than 0.5",
    models=("shakespeare-ar",),
)
@torch.no_grad()
def speaker() -> Finding:
    """The ratio and the fluency at three sizes of a step."""
    model, tokenizer = zoo.language("shakespeare-ar")
    token = tokenizer.convert_tokens_to_ids
    anyone = token("<anyone>")

    def write(first: int, guide: str, seed: int, **options: Any) -> Any:
        prompts = torch.full((TEXTS, 1), first)
        made = {"do_sample": True, "min_new_tokens": LENGTH, **options}
        return fl.generate(
            model, None, prompts, guide=guide, max_new_tokens=LENGTH, seed=seed, **made
        )

    kinds = [write(token(t), "none", i).sequences[:, 1:] for i, t in enumerate((OTHER, WANTED))]
    classify = head(model, anyone, kinds)
    ratios, fluency, nfe = {}, {}, 0.0
    for step in STEPS:
        out = write(
            anyone,
            f"pplm({step}, of='hidden')",
            2,
            top_k=10,
            rewards={"attribute": classify},
        )
        texts = out.sequences[:, 1:]
        gap = likelihood(model, token(WANTED), texts) - likelihood(model, token(OTHER), texts)
        ratios[step] = mean_interval(gap)
        fluency[step] = mean_interval(likelihood(model, anyone, texts))
        nfe = out.nfe[0].item() / LENGTH
    low, middle, high = (ratios[s] for s in STEPS)
    checks = {
        "the ratio rises": above(difference(high, low)),
        "0.05 lies between": low.value < middle.value < high.value,
        "stays fluent": below(difference(fluency[0.0], fluency[0.2]), 0.5),
    }
    measured = {f"ratio, step {s:g}": v for s, v in ratios.items()}
    measured |= {f"log p, step {s:g}": v for s, v in fluency.items()}
    return Finding(measured, checks, nfe=nfe)
