"""Recipes for models that write token by token, under their papers' scales."""

from collections.abc import Sequence

from fairlead.guidance.algebra import ALL_DOMAINS, TOKEN_DOMAINS, Guide
from fairlead.guidance.composition.chains import Weight, nested, paired
from fairlead.guidance.recipes import recipe
from fairlead.guidance.rules.plausible import Nucleus
from fairlead.guidance.terms.cfg import CFG
from fairlead.guidance.terms.multi import Multi
from fairlead.guidance.weight_schedules.interval import Interval
from fairlead.guidance.weight_schedules.oscillating import Oscillating
from fairlead.guidance.weight_schedules.ramp import Ramp

LOGPROB = frozenset({"logprob"})


def times(a: Weight, b: Weight) -> Weight:
    """The product of two weights, each one number or one a sample."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a * b
    one, other = ([w] if isinstance(w, (int, float)) else list(w) for w in (a, b))
    size = max(len(one), len(other))
    if len({len(one), len(other)} - {1, size}):
        raise ValueError(f"weights are given for {len(one)} and for {len(other)} samples")
    one, other = (w * size if len(w) == 1 else w for w in (one, other))
    return [x * y for x, y in zip(one, other, strict=True)]


def one_plus(strength: Weight) -> Weight:
    """The scale of `cfg` that a strength above the conditional model is."""
    if isinstance(strength, (int, float)):
        return 1 + strength
    return [1 + s for s in strength]


@recipe(ids=("S112",), domains=ALL_DOMAINS)
def double(conditions: Sequence[str], w: Weight = 3.0, push: Weight = 5.0) -> Multi:
    r"""Double CFG: the second condition is pushed from the first, and both from nothing.

    .. math:: l = l_\emptyset + A \, [\, l_1 + B \, (l_{12} - l_1) - l_\emptyset \,]
              = A B \, l_{12} + A (1 - B) \, l_1 + (1 - A) \, l_\emptyset

    For a first condition that speaks louder than the second, such as a style beside a text. It is
    ``nested`` with the weights ``A`` and ``A B``. ``B = 1`` is CFG with ``A`` on both, ``B = 0``
    CFG with ``A`` on the first alone; ``A = 1`` needs no null.

    Args:
        conditions: Two names: ``["style", "text"]``. In ``fl.generate`` the state with the first
            alone is ``states={"style": prompts}``.
        w: ``A``, 3 in the paper; one number, or one a sample.
        push: ``B``, 5 in the paper, useful from 1 to 9; one number, or one a sample.

    Raises:
        ValueError: There are not two conditions, or as for ``multi``.

    Example:
        >>> from fairlead import recipes
        >>> recipes.double(["style", "text"]).terms
        ((3.0, 'style', 'none'), (15.0, 'style+text', 'style'))

    Source:
        Rouard, Adi, Copet, Roebel, Defossez (2024), arXiv:2407.12563.
    """
    paired("double", "the two conditions", conditions, (w, push))
    return nested(conditions, [w, times(w, push)])


@recipe(ids=("S042",), domains=ALL_DOMAINS)
def voxinstruct(
    conditions: Sequence[str] = ("text", "semantic"), w_text: Weight = 3.0, w_content: Weight = 1.5
) -> Multi:
    r"""Triple CFG of a second phase: text amplified, then the tokens that the first phase wrote.

    .. math:: l' = l_{0,S} + w_2 \, (l_{T,S} - l_{0,S}), \qquad
              l = l_{T,-} + w_3 \, (l' - l_{T,-})
              = w_3 w_2 \, l_{T,S} + w_3 (1 - w_2) \, l_{0,S} + (1 - w_3) \, l_{T,-}

    The order matters. ``w_3 = 1`` is CFG on the text alone, ``w_2 = 1`` on the tokens alone. The
    phases are two calls, since every cache begins anew: semantic tokens under ``cfg(1.5)``, top-k
    5, top-p 0.95, temperature 0.8; then, with them at the end of the prompts, acoustic tokens of
    the first codebook under this guide, top-k 50. In the paper a text that is absent is zeros in
    place of its encoding, of the same length; absent tokens are ids of 0.

    Args:
        conditions: Names of ``T`` and ``S``. In ``fl.generate`` the further states are
            ``states={"text": ..., "semantic": ...}``.
        w_text: ``w_2``; one number, or one a sample.
        w_content: ``w_3``; one number, or one a sample.

    Raises:
        ValueError: There are not two conditions, or as for ``multi``.

    Example:
        >>> from fairlead import recipes
        >>> {b.name: a for b, a in recipes.voxinstruct().coefficients.items()}
        {'text': -0.5, 'semantic': -3.0, 'cond': 4.5}

    Source:
        Zhou et al. (2024), ACM Multimedia: VoxInstruct.
    """
    paired("voxinstruct", "the two conditions", conditions, (w_text, w_content))
    text, content = conditions
    inner = times(w_content, w_text)
    return Multi(conditions, [(w_content, content, text), (inner, "all", content)], text)


@recipe(ids=("XD2",), domains=LOGPROB)
def context_aware(a: Weight = 0.5, top_p: float = 1.0) -> Guide:
    r"""Context-aware decoding: the context speaks louder than what the model remembers.

    .. math:: l = (1 + a) \, l(\mathrm{context}, q) - a \, l(q), \qquad w = 1 + a

    The prompt holds the context and the question; ``negative=`` is the question alone.

    Args:
        a: Strength: 0 is the model with the context, 0.5 for summaries, 1 where the context
            contradicts what was learned; one number, or one a sample.
        top_p: Mass of the nucleus of each of the two that a token has to be in; 1 is no filter.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> from fairlead import recipes
        >>> str(recipes.context_aware(1.0))
        'cfg(2.0)'

    Source:
        Shi, Han, Lewis, Tsvetkov, Zettlemoyer, Yih (2023), arXiv:2305.14739.
    """
    guide = CFG(one_plus(a))  # type: ignore[arg-type]
    return guide if top_p == 1 else guide | Nucleus(top_p, against="null")


@recipe(ids=("S102",), domains=ALL_DOMAINS)
def switti(cfg: float = 6.0, scales: int = 14, on: int = 0, off: int | None = 11) -> Guide:
    r"""Guidance of token maps of growing size: it rises with the scale and stops before the last.

    .. math:: w_i = 1 + \mathrm{cfg} \, \frac{i}{S - 1} \text{ for } on \le i < off,
              \qquad 1 \text{ else}

    Steps are scales. The first scale is never guided; behind ``off`` null is not asked for, so
    that its rows can leave the batch and the cache, which is where the time is saved. VAR has no
    ``off`` and ``cfg=1.5``. The paper divides the logits of the scales behind ``off`` by a
    temperature of 0.1: that is the sampler's.

    Args:
        cfg: Its strength at the last scale, ``w - 1``.
        scales: Number of scales ``S``; 14 at 1024 pixels, 10 at 512.
        on: First guided scale.
        off: First scale that is not guided any more; `None`: all are.

    Raises:
        ValueError: Not ``0 <= on <= off <= scales``.

    Example:
        >>> from fairlead import recipes
        >>> str(recipes.switti(1.5, 10, off=None))
        'cfg(2.5) | ramp(0.0, 1.0)'

    Source:
        Voronov, Kuznedelev, Khoroshikh, Khrulkov, Baranchuk (2024), arXiv:2412.01819; Tian,
        Jiang, Yuan, Peng, Wang (2024), arXiv:2404.02905.
    """
    end = scales if off is None else off
    if not 0 <= on <= end <= scales or scales < 1:
        raise ValueError(
            f"switti: 0 <= on <= off <= scales must hold, got on={on}, off={off}, scales={scales}"
        )
    rising = CFG(1 + cfg) | Ramp(0.0, 1.0)
    return rising if (on, end) == (0, scales) else rising | Interval(on / scales, end / scales)


@recipe(ids=("S057",), domains=ALL_DOMAINS)
def ssr_speech(w: Weight = 1.5, stride: int = 5) -> Guide:
    r"""Guidance of a model that never saw a null, at every few tokens: SSR-Speech.

    .. math:: l_i = w \, l_c + (1 - w) \, l_u \text{ where } n \mid i, \qquad l_c \text{ else,}
              \qquad i = 1, 2, \dots

    Null is a random text of the same length, drawn once an utterance:
    ``negative=fairlead.autoregressive.random_prompts(prompts, tokens)``. One draw is a noisy
    estimate; the mean of the probabilities of many is the model without the text. In
    ``fl.generate`` its rows are computed at every token all the same, since its cache needs them.

    Args:
        w: Guidance scale, 1.5 in the paper; one number, or one a sample.
        stride: ``n``: 5 for English, 1 for Mandarin in released commands.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> from fairlead import recipes
        >>> str(recipes.ssr_speech())
        'cfg(1.5) | oscillating(hold=0.0, every=5)'

    Source:
        Wang, Yu, Hai, et al. (2024), arXiv:2409.07556.
    """
    guide = CFG(w)  # type: ignore[arg-type]
    return guide if stride == 1 else guide | Oscillating(hold=0.0, every=stride)


@recipe(ids=("S109",), domains=TOKEN_DOMAINS)
def steve1(s: Weight = 6.0) -> CFG:
    r"""Guidance of the actions of a policy that follows a goal: STEVE-1.

    .. math:: l = (1 + s) \, l_c - s \, l_u, \qquad w = 1 + s

    for every head of the action: ``fairlead.autoregressive.combine_heads``. Null is a goal
    embedding of zeros; a memory goes on in both copies, which see the same frames.

    Args:
        s: Strength: 6 for goals as text, 7 for goals as images; one number, or one a sample.

    Raises:
        ValueError: It is NaN or infinite.

    Example:
        >>> from fairlead import recipes
        >>> str(recipes.steve1())
        'cfg(7.0)'

    Source:
        Lifshitz, Paster, Chan, Ba, McIlraith (2023), arXiv:2306.00937.
    """
    return CFG(one_plus(s))  # type: ignore[arg-type]
