"""Contrastive decoding and DExperts: further language models beside the generating one."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

from torch import Tensor

from fairlead.guidance.algebra import FINITE, Predictions, Range, Term, register
from fairlead.guidance.branch import Branch

LOGPROB = frozenset({"logprob"})


@register("contrastive", ids=("XD3",), nfe=1, neutral="0.0")
@dataclass(frozen=True)
class Contrastive(Term):
    r"""Takes from the score of a token what a weaker language model gives it.

    .. math:: \log p = \log p_\mathrm{expert}
              - \lambda \, \log p_\mathrm{amateur}^{1 / \tau} + \text{const}

    Pipe it through ``plausible(0.1)``: without it unlikely tokens that the amateur likes even
    less win. The weights do not add up to 1, so ``lam = 1`` is no CFG of any finite scale; the
    variant ``(1 + b) l_E - b l_A`` is ``autoguidance(1 + b, model='amateur')``.

    * Cost: 1 NFE of the amateur a token.
    * Neutral: ``lam = 0``. Equal models at ``lam = tau = 1`` give the uniform distribution.

    Args:
        lam: Strength; 1 in the paper, 0.8 in released scripts.
        tau: Temperature of the amateur > 0; 0.5 (GPT-2) or 1 (OPT) in the paper.
        model: Name of the amateur among ``fl.generate(models=...)``.

    Raises:
        ValueError: A parameter is out of range; there is no model of that name.

    Example:
        >>> import fairlead as fl
        >>> str(fl.Contrastive(0.5) | fl.Plausible(0.1))
        'contrastive(0.5) | plausible(0.1)'

    Source:
        Li et al. (2022), arXiv:2210.15097; variant: O'Brien, Lewis (2023), arXiv:2309.09117.
    """

    affine: ClassVar[bool] = False
    domains: ClassVar[frozenset[str]] = LOGPROB

    lam: Annotated[float, FINITE]
    tau: Annotated[float, Range(0, math.inf, closed="neither")] = 1.0
    model: str = "amateur"

    @cached_property
    def strength(self) -> float:
        return self.lam

    @cached_property
    def negative(self) -> Branch:
        return Branch(self.model, model=self.model)

    def direction(self, positive: Branch, negative: Branch, predictions: Predictions) -> Tensor:
        scaled = predictions.values_by_branch[negative] / self.tau
        return -scaled.log_softmax(-1)


@register("dexperts", ids=("XD4",), nfe=2, neutral="0.0")
@dataclass(frozen=True)
class DExperts(Term):
    r"""Adds the difference of an expert and an anti-expert to a base language model.

    .. math:: \log p = \log p_\mathrm{base}
              + a (\log p_\mathrm{expert} - \log p_\mathrm{anti}) + \text{const}

    The paper keeps the tokens of the base's nucleus alone: pipe it through ``nucleus(0.9)``. An
    anti-expert equal to the base is CFG with the base as null and ``w = a``; an expert equal to
    it, CFG with the anti-expert as null and ``w = 1 + a``.

    * Cost: 2 NFE of the further models a token.
    * Neutral: ``a = 0``.

    Args:
        a: Strength; 2 in the paper.
        expert: Name of the expert among ``fl.generate(models=...)``.
        anti: Name of the anti-expert.

    Raises:
        ValueError: ``a`` is NaN or infinite; there is no model of that name.

    Example:
        >>> import fairlead as fl
        >>> str(fl.DExperts(2.0) | fl.Nucleus(0.9))
        'dexperts(2.0) | nucleus(0.9)'

    Source:
        Liu, Sap, Lu, Swayamdipta, Bhagavatula, Smith, Choi (2021), arXiv:2105.03023.
    """

    domains: ClassVar[frozenset[str]] = LOGPROB

    a: Annotated[float, FINITE]
    expert: str = "expert"
    anti: str = "anti"

    @cached_property
    def strength(self) -> float:
        return self.a

    @cached_property
    def positive(self) -> Branch:
        return Branch(self.expert, model=self.expert)

    @cached_property
    def negative(self) -> Branch:
        return Branch(self.anti, model=self.anti)
