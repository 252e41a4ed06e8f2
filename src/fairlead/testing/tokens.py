"""The check of guides over a vocabulary, where no network is sampled."""

import torch
from torch import Tensor

from fairlead.guidance.combine import combine
from fairlead.guidance.context import Run
from fairlead.guidance.guided import branches
from fairlead.guidance.spec import guide as parse
from fairlead.testing.checks import check
from fairlead.testing.subject import NotApplicable, Subject

WORDS = 7


def predictions(subject: Subject, n: int = 3, first: int = 0) -> dict[str, Tensor]:
    """Log-probabilities of each branch, fixed by the index of the sample."""
    names = {b.name: i for i, b in enumerate(branches(subject.guide))} | {"cond": 0}
    rows = [
        torch.randn(len(names), WORDS, dtype=torch.float64, generator=_generator(first + i))
        for i in range(n)
    ]
    values = torch.stack(rows, 1).log_softmax(-1)
    return {name: values[i] for name, i in names.items()}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@check
def tokens(subject: Subject) -> None:
    """Log-probabilities come out normalised, row by row, shift by shift, neutral as `cond`."""
    if "logprob" not in subject.guide.domains or subject.moves_base:
        raise NotApplicable("the guide does not serve log-probabilities")
    given = predictions(subject)
    try:
        out = combine(subject.guide, given, domain="logprob")
    except ValueError as error:
        raise NotApplicable(f"it asks for more than predictions: {error}") from None
    sums = out.exp().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    single = [
        combine(
            subject.guide,
            predictions(subject, 1, i),
            domain="logprob",
            run=Run(0, [i], check=False, record=False),  # a draw belongs to its sample
        )
        for i in range(3)
    ]
    torch.testing.assert_close(out, torch.cat(single))
    shifted = {name: value + i for i, (name, value) in enumerate(given.items())}
    again = combine(subject.guide, shifted, domain="logprob")
    torch.testing.assert_close(again.exp(), out.exp(), rtol=1e-9, atol=1e-9)
    neutral = type(subject.method).neutral if subject.node is not None else None
    if neutral is not None:
        text = f"{subject.method.name}({neutral})"
        plain = combine(subject.plain, {**given, "null": given["cond"] * 0.5}, domain="logprob")
        framed = combine(
            parse(str(subject.framed(text))),
            {**given, "null": given["cond"] * 0.5},
            domain="logprob",
        )
        torch.testing.assert_close(framed, plain)
