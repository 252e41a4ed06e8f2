"""Claim of decoding under a regular expression."""

import itertools
import re

import torch

from fairlead.autoregressive import Grammar
from fairlead.studies.claims._harness import Finding, claim

LETTERS, LANGUAGE, LENGTH = "abc", "(ab|c)*", 6


def law(p: list[float]) -> dict[str, float]:
    """Probability of each text, for a model without memory whose last token is the end."""
    log_p, found = torch.tensor([p], dtype=torch.float64).log(), {}
    for n in range(LENGTH + 1):
        for text in itertools.product(range(3), repeat=n):
            grammar = Grammar(LANGUAGE, dict(enumerate(LETTERS)), eos=3)
            total = 1.0
            for i, token in enumerate((*text, 3)):
                total *= grammar(torch.tensor([[0, *text[:i]]]), log_p)[0, token].exp().item()
                if not total:
                    break
            found["".join(LETTERS[t] for t in text)] = total
    return found


@claim(
    "grammar",
    ids=("S281",),
    claim="Masking tokens by an automaton keeps every text in the language; token by token, so not "
    "with the probabilities that the model gives texts of the language.",
    setting="a model without memory, p(a, b, c, end) = .5, .2, .2, .1, the language (ab|c)*, all "
    "texts of up to 6 tokens",
    expected="no text outside has probability; '', 'c', 'ab' have .125, .03125, .078125; their "
    "total variation to the exact conditional (.7, .14, .07 for the three) is .7083",
)
def masked() -> Finding:
    """The numbers of the law, token by token and given the language."""
    found = law([0.5, 0.2, 0.2, 0.1])
    # the weights of all texts of the language add up to .1 / (1 - .5 * .2 - .2)
    exact = {
        t: 0.7 * 0.5 ** t.count("a") * 0.2 ** (len(t) - t.count("a"))
        for t in found
        if re.fullmatch(LANGUAGE, t)
    }
    outside = sum(p for t, p in found.items() if t not in exact)
    rest = abs(sum(found.values()) - sum(exact.values()))
    distance = (sum(abs(found[t] - exact[t]) for t in exact) + rest) / 2
    wanted = {"": 0.125, "c": 0.03125, "ab": 0.078125}
    checks = {
        "nothing outside": outside == 0,
        "three texts": all(abs(found[t] - p) < 1e-9 for t, p in wanted.items()),
        "total variation": abs(distance - 0.7083) < 1e-3,
    }
    measured = {t or "empty": found[t] for t in wanted}
    return Finding({**measured, "outside": outside, "total variation": distance}, checks, nfe=1)
