"""Condition contrastive alignment: a loss whose optimum is a guided model in one evaluation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fairlead.guidance.recipes import tool
from fairlead.parameters import Range

ABOVE_0 = Range(0, float("inf"), closed="neither")


@tool("cca_loss", ids=("S012",), kind="loss", domains=frozenset({"logprob"}))
def cca_loss(
    right: Tensor,
    wrong: Tensor,
    *,
    beta: float = 0.02,
    lam: float = 1.0,
    same: Tensor | None = None,
) -> Tensor:
    r"""Contrasts samples under their own condition with samples under another's.

    With ``Delta(x, c) = log p(x|c) - log p_ref(x|c)`` of whole sequences,

    .. math:: \big[ -\log \sigma(\beta \Delta(x, c))
              - \lambda \log \sigma(-\beta \Delta(x, c')) \big] / \max(\lambda, 1) .

    Where the condition is null, or ``c' = c``, nothing is wrong with the second pair, and its part
    is ``-log sigma(beta Delta)``. Free values of each pair have their optimum at ``Delta = (log
    p(x|c) / p(x) - log lambda) / beta``: from a conditional reference that is guidance at
    ``w = 1 + 1 / beta``. A normalised model gets there exactly where ``lambda = Z_w(c)^beta``, with
    ``Z_w`` the sum of ``p(x|c)^w p(x)^(1-w)``, for every condition; a smaller ``lambda`` acts
    like a smaller ``w``.

    Args:
        right: ``Delta(x, c)``, `(B,)`, with a gradient in the trained model alone.
        wrong: ``Delta(x, c')``, `(B,)`; the paper takes ``c' = c.roll(1)`` in the batch.
        beta: Weight of the log-ratios > 0; 0.02 in the paper.
        lam: Weight of the wrong pairs > 0; 50 to 1000 in the paper.
        same: Which pairs are not wrong, `(B,)` of truth values; `None` is none.

    Returns:
        The loss of each sample, `(B,)`.

    Raises:
        ValueError: ``beta`` or ``lam`` is not above 0, or shapes differ.

    Example:
        >>> import torch
        >>> from fairlead.training import cca_loss
        >>> cca_loss(torch.zeros(1), torch.zeros(1), lam=3.0)  # 4 log(2) / 3
        tensor([0.9242])

    Source:
        Chen et al. (2024), arXiv:2410.09347.
    """
    for name, value in (("beta", beta), ("lam", lam)):
        if value not in ABOVE_0:
            raise ValueError(f"cca_loss: {name} must be in {ABOVE_0}, got {value}")
    shapes = {tuple(t.shape) for t in (right, wrong, *(() if same is None else (same,)))}
    if len(shapes) > 1 or right.ndim != 1:
        raise ValueError(f"cca_loss: right, wrong and same must be (B,), got {sorted(shapes)}")
    against = -lam * F.logsigmoid(-beta * wrong)
    if same is not None:
        against = torch.where(same, -F.logsigmoid(beta * wrong), against)
    return (against - F.logsigmoid(beta * right)) / max(lam, 1.0)


def sequence_log_prob(logits: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Log-probability of each sequence, `(B,)`: the sum over its tokens.

    Args:
        logits: Of each token given those before, `(B, L, K)`: already shifted.
        tokens: `(B, L)`.
        mask: Which of them count, `(B, L)`; default all.
    """
    found = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    return (found if mask is None else found * mask).sum(-1)
