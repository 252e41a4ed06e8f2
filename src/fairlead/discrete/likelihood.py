"""How likely a masked model, guided or not, finds an answer: by chain rule, or by its bound."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.discrete.denoiser import TokenDenoiser
from fairlead.discrete.process import transition
from fairlead.discrete.sampler import Numbers
from fairlead.discrete.sampling import prepare
from fairlead.discrete.unmask import Unmask, masked
from fairlead.guidance.algebra import Guide
from fairlead.guidance.context import Run
from fairlead.guidance.domains import normalised
from fairlead.guidance.masks import fitted
from fairlead.guidance.spec import guide as parse
from fairlead.parameters import choose
from fairlead.schedules import Level


def log_likelihood(
    denoiser: TokenDenoiser,
    z: Tensor,
    condition: Mapping[str, Any] | None = None,
    *,
    guide: Guide | str | None = None,
    method: Literal["chain", "bound"] = "chain",
    draws: int = 128,
    seed: int = 0,
    masks: Mapping[str, Any] | None = None,
    models: Mapping[str, TokenDenoiser] | None = None,
    energies: Mapping[str, Any] | None = None,
) -> Tensor:
    r"""What the guided predictions of a masked model say of an answer, in nats.

    With the answer's tokens ``x^l`` and ``p_w`` the guided prediction,

    .. math::
        \text{chain:} \quad \sum_l \log p_w(x^l \mid x^{<l}), \qquad
        \text{bound:} \quad E_m \frac{A}{m} \sum_{l \text{ masked}}
            \log p_w(x^l \mid x_{\text{not masked}}) ,

    where ``bound`` masks `m` of the `A` tokens of the answer, `m` uniform in ``1..A``. It has the
    mean of the paper's, which masks each with a uniform probability `u` and weighs with ``1/u``,
    and a smaller variance: that mean is the average of the chain rule over all orders, at
    ``w = 1`` a bound of the log-likelihood, exact for an exact model. Tokens of the prompt, the
    region ``masks={"prompt": ...}``, are given. Networks that read the time see the mean share of
    masks.

    Args:
        denoiser: A model of masked tokens.
        z: Clean tokens, `(n, L)`: the prompt, if there is one, and the answer.
        condition: Values by name, each of batch `n`, or one value for all.
        guide: A guide or its text, such as `unprompted(1.6)`.
        method: `chain`, one evaluation a token of the answer; or `bound`, by draws.
        draws: Number of draws of the bound.
        seed: Seed of the draws.
        masks: Masks by name, `(L,)` or `(n, L)`.
        models: As for `fl.discrete.sample`.
        energies: As for `fl.discrete.sample`.

    Returns:
        `(n,)` in float64.

    Raises:
        ValueError: An argument is out of range, or the process has no masks.

    Example:
        >>> import torch, fairlead as fl
        >>> d = fl.exact.golden_tokens().denoiser(fl.discrete.Masked(2))
        >>> z = torch.tensor([[0, 0], [1, 1]])
        >>> fl.discrete.log_likelihood(d, z, {"label": 0}).exp()
        tensor([0.6000, 0.2000], dtype=torch.float64)

    Source:
        Nie et al. (2024), arXiv:2410.18514.
    """
    choose("log_likelihood", "method", method, ("chain", "bound"))
    if z.ndim != 2 or z.is_floating_point():
        raise ValueError(f"log_likelihood: z must hold tokens (n, L), got {tuple(z.shape)}")
    if draws < 1:
        raise ValueError(f"log_likelihood: draws must be at least 1, got {draws}")
    n, length = z.shape
    device = denoiser.device or torch.device("cpu")
    z = z.to(device)
    given = {"cond": Condition(condition or {}).expand(n).to(device)}
    regions = fitted(masks or {}, torch.empty(n, length, device=device))
    count = length if method == "chain" else draws
    run = Run(seed, range(n), count, record=False, energies=energies, masks=regions)
    model = prepare(denoiser, given, parse(guide), Unmask(), run, space="clean", models=models)
    mask = masked("log_likelihood", model)
    answer = torch.ones_like(z, dtype=torch.bool)
    if "prompt" in regions:
        answer = (regions["prompt"] <= 0).expand(n, length)

    def scored(hidden: Tensor, level: Level) -> Tensor:
        """`log p_w` of each token where some are hidden, `(n, L)`."""
        model.begin(level)
        with torch.no_grad():
            out = model(torch.where(hidden, mask, z), transition(level, level)).denoise
        log_p = normalised(out, "log_likelihood")
        return log_p.gather(-1, z[..., None])[..., 0]

    process = denoiser.process
    total = torch.zeros(n, dtype=torch.float64, device=device)
    if method == "chain":
        order = torch.arange(length, device=device)
        for place in range(length):
            if bool(answer[:, place].any()):
                hidden = answer & (order >= place)
                share = float(hidden.double().mean())
                said = scored(hidden, process.level(share))[:, place]
                total += torch.where(answer[:, place], said, 0.0)
        return total
    numbers = Numbers(run)
    size = answer.sum(1)
    even = torch.where(answer, 0.0, -torch.inf).double()
    for i in range(draws):
        u = (i + numbers.uniform(size.double())) / draws  # one stratum of counts a draw
        chosen = (u * size).floor().long() + 1
        hidden = numbers.subset(even, chosen)
        share = float((chosen / size.clamp(min=1)).mean())
        said = torch.where(hidden, scored(hidden, process.level(min(share, 1.0))), 0.0)
        total += said.sum(1) * size / chosen / draws
    return total
