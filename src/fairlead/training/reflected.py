"""The loss of reflected diffusion."""

from collections.abc import Callable

from torch import Tensor

from fairlead.reflection import heat_kernel, reflect


def reflected_loss(
    score: Callable[..., Tensor], x0: Tensor, sigma: Tensor, n: Tensor, **condition: Tensor
) -> Tensor:
    r"""Score matching under reflected noise.

    .. math:: x = \mathrm{reflect}(x_0 + \sigma n), \qquad
              \tfrac{1}{2} \, \sigma^2 \, \lVert s(x, \sigma) - \nabla \log p(x \mid x_0) \rVert^2

    with the reflected heat kernel ``p``; its minimiser is the score of the reflected data. Drop
    the condition with probability 0.2 to train for guidance.

    Args:
        score: Called as ``score(x, sigma, **condition)``; returns ``(B, ...)``.
        x0: Clean data in [0, 1], ``(B, ...)``.
        sigma: ``(B,)``, log-uniform between 0.01 and 5 in the paper.
        n: Standard normal noise like ``x0``.
        condition: Passed on.

    Returns:
        A scalar: mean over the batch, sum over dimensions.

    Source:
        Lou, Ermon (2023), arXiv:2304.04740.
    """
    s = sigma.reshape(-1, *[1] * (x0.ndim - 1))
    x = reflect(x0 + s * n)
    _, target = heat_kernel(x.double(), x0.double(), (s**2).double())
    apart = score(x, sigma, **condition) - target.to(x.dtype)
    return (s**2 * apart**2).flatten(1).sum(1).mean() / 2
