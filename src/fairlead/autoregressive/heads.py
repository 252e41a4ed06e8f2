"""Guidance of policies, whose action is one token from each of several vocabularies."""

from collections.abc import Mapping

from torch import Tensor

from fairlead.guidance.algebra import Guide
from fairlead.guidance.combine import combine
from fairlead.guidance.context import Run


def combine_heads(
    guide: Guide | str,
    predictions: Mapping[str, Mapping[str, Tensor]],
    *,
    runs: Mapping[str, Run] | None = None,
) -> dict[str, Tensor]:
    r"""One action of a policy under a guide: each head is combined and normalised by itself.

    .. math:: \log p_h(k) = \log p_{u,h}(k) + w \, [\log p_{c,h}(k) - \log p_{u,h}(k)]
              + \text{const}, \qquad h = \text{buttons, camera, ...}

    Heads that are independent given the observation are so under the guide, so an action is drawn
    head by head, and its log-probability is the sum over them. A memory of the policy goes on in
    every branch, with the same observations.

    Args:
        guide: A guide that serves `logprob`, or its text; `recipes.steve1(6.0)`.
        predictions: Logits by branch name (`cond`, `null`, ...), by head, `(B, ..., K)`.
        runs: A memory for each head, for schedules over an episode; each call is a step of it.

    Returns:
        Log-probabilities by head, `(B, ..., K)`.

    Raises:
        ValueError: Branches differ in their heads; as for `fl.combine`.

    Example:
        >>> import torch
        >>> from fairlead.autoregressive import combine_heads
        >>> goal = {"jump": torch.tensor([[0.2, 0.8]]).log(), "turn": torch.zeros(1, 3)}
        >>> none = {"jump": torch.tensor([[0.5, 0.5]]).log(), "turn": torch.zeros(1, 3)}
        >>> action = combine_heads("cfg(2)", {"cond": goal, "null": none})
        >>> [round(p, 3) for p in action["jump"].exp()[0].tolist()]
        [0.059, 0.941]

    Source:
        Lifshitz, Paster, Chan, Ba, McIlraith (2023), arXiv:2306.00937.
    """
    heads = {name: sorted(given) for name, given in predictions.items()}
    if not heads or any(h != next(iter(heads.values())) for h in heads.values()):
        raise ValueError(f"combine_heads: every branch needs the same heads, got {heads}")
    found = {}
    for head in next(iter(predictions.values())):
        values = {name: given[head].log_softmax(-1) for name, given in predictions.items()}
        found[head] = combine(guide, values, domain="logprob", run=(runs or {}).get(head))
    return found
