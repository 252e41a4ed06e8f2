"""Chains of condition states: each weight amplifies a condition given those before it."""

from collections.abc import Sequence
from typing import Any, Literal

from fairlead.guidance.recipes import recipe
from fairlead.guidance.states import absent
from fairlead.guidance.terms.multi import Multi
from fairlead.parameters import choose

Weight = float | Sequence[float]
"""A guidance scale, one number or one a sample."""


def paired(owner: str, first: str, names: Sequence[str], weights: Sequence[Any]) -> None:
    """Refuses lists of different lengths.

    Raises:
        ValueError: Names both lists and their lengths.
    """
    if isinstance(names, str) or isinstance(weights, (int, float)) or len(names) != len(weights):
        raise ValueError(
            f"{owner}: weights must be a list of one for each of {first}, got {weights!r} for "
            f"{names!r}"
        )


@recipe(ids=("XM1", "S023", "S059", "S062", "S066", "S100", "S121", "XM6"))
def nested(conditions: Sequence[str], weights: Sequence[Weight]) -> Multi:
    r"""A chain: each condition is added to those before it, with a weight of its own.

    .. math:: D = D(\emptyset) + \sum_i w_i \, [D(c_1 \dots c_i) - D(c_1 \dots c_{i-1})]

    Also called incremental, or dual CFG. Weights of 1 are the conditional model, equal weights
    are ``joint``; the order matters otherwise. Models: InstructPix2Pix and DreamPose (image 1.5,
    text 7.5), DreamVideo (image, text), DiffPoseTalk (audio 1.15, style 3), Magic Clothing
    (garment 2.5, text 7.5), OmniInsert (prompt, subject, video), camera motion guidance (text 6,
    camera 4, whose null is a camera at rest), STIV's SIT (image 1.5, text 7.5), one graph of
    InstructG2I (text 7.5, graph 1.5).

    Args:
        conditions: Names in their order; others of the model are there in every state.
            ``text=negative`` puts the negative text where text is absent.
        weights: A guidance scale for each, 1 is conditional; one number, or one a sample.

    Raises:
        ValueError: The lists differ in length, or as for ``multi``.

    Example:
        >>> from fairlead import recipes
        >>> recipes.nested(["image", "text"], [1.5, 7.5]).terms
        ((1.5, 'image', 'none'), (7.5, 'image+text', 'image'))

    Source:
        Brooks, Holynski, Efros (2023), arXiv:2211.09800; models as above.
    """
    paired("nested", "the conditions", conditions, weights)
    names = list(absent("nested", conditions))
    states = ["none", *("+".join(names[: i + 1]) for i in range(len(names)))]
    terms = [(w, states[i + 1], states[i]) for i, w in enumerate(weights)]
    return Multi(conditions, terms, "none")


@recipe(ids=("S108",))
def split(conditions: Sequence[str], weights: Sequence[Weight]) -> Multi:
    r"""Split-CFG: ``nested`` over groups of conditions, the base's own weight written first.

    .. math:: D = w_0 D(\emptyset) + \sum_i w_i \, [D(c_1 \dots c_i) - D(c_1 \dots c_{i-1})]

    Fashion-VDM takes (1, 1, 3, 1) or (1, 1, 1, 3) over garment, person, pose; equal neighbours
    merge, and a state whose coefficient is 0 is not evaluated.

    Args:
        conditions: Names in their order.
        weights: ``w_0``, which must be 1 (else the result would depend on the prediction
            space), and one for each condition.

    Raises:
        ValueError: ``w_0`` is not 1, or as for ``nested``.

    Example:
        >>> from fairlead import recipes
        >>> recipes.split(["garment", "person", "pose"], [1, 1, 1, 3]).describe().nfe
        2

    Source:
        Karras, Li, Liu, Luo, Yoo, Ling, et al. (2024), arXiv:2411.00225.
    """
    if isinstance(weights, (int, float)) or not len(weights) or weights[0] != 1:
        raise ValueError(
            "split: weights must begin with 1, the weight of the state without conditions, whose "
            f"coefficients would else not add up to 1; got {weights!r}"
        )
    return nested(conditions, weights[1:])


@recipe(ids=("S038", "S040", "S046", "S060", "S083", "S093", "S097", "S121", "S122"))
def joint(conditions: Sequence[str], w: Weight) -> Multi:
    r"""CFG on some conditions at once; those not listed are in both states.

    .. math:: D = D(\emptyset) + w \, [D(c_1 \dots c_n) - D(\emptyset)]

    Over all conditions it is ``cfg(w)``. Models: VIDIM (both end frames, ``w = 2``, whose null is
    noise at the highest level), DiffBatt (``w = 1 + omega``, ``omega = 0``), OOTDiffusion
    (``["garment"]``, ``w = 1.5``, the text stays), STIV's JIT (text and image, ``w = 7.5``, then
    ``| renorm(grow=True)``), SpaText's fast form, Diffusion Motion, RadRotator. S3Diff is
    ``cfg(1.07, against='negative')`` in one step; a model without a null (EEG synthesis) has
    ``w = 1`` alone, or ``icg``.

    Args:
        conditions: Names.
        w: Guidance scale, one number, or one a sample.

    Raises:
        ValueError: As for ``multi``.

    Example:
        >>> from fairlead import recipes
        >>> str(recipes.joint(["garment"], 1.5))
        "multi(['garment'], [[1.5, 'all', 'none']], origin='none')"

    Source:
        Ho, Salimans (2022), arXiv:2207.12598; models as above.
    """
    return Multi(conditions, [(w, "all", "none")], "none")


@recipe(ids=("S062",))
def graph(
    text: str,
    neighbours: str,
    w: Weight,
    weights: Sequence[Weight],
    states: Sequence[str] = (),
) -> Multi:
    r"""Graph CFG: one weight for the text, one for each graph of neighbours given the text.

    .. math:: D = D(\emptyset) + w \, [D(T) - D(\emptyset)] + \sum_k w_k \, [D(T, G_k) - D(T)]

    InstructG2I takes ``w = 7.5``, ``w_k = 1.5`` and sweeps 0 to 15; two equal graphs add their
    weights. The sum over graphs takes them as independent given the text.

    Args:
        text: Name of the text condition; ``text=negative`` as in ``multi``.
        neighbours: Name of the condition that holds a graph's tokens.
        w: Weight of the text.
        weights: Weight of each graph.
        states: States that hold the graphs, one each, given to ``fl.sample(states=...)``;
            default: one graph, the sampled condition's own.

    Raises:
        ValueError: The lists differ in length, or as for ``multi``.

    Example:
        >>> from fairlead import recipes
        >>> recipes.graph("text", "graph", 7.5, [3, 10], ["one", "two"]).describe().nfe
        4

    Source:
        Jin, Pang, Guo, Wang, Han (2024), arXiv:2410.07157.
    """
    graphs = [f"{neighbours}={s}" for s in states] or [neighbours]
    paired("graph", "the graphs", graphs, weights)
    name = next(iter(absent("graph", [text])))
    each = [(v, f"{name}+{g}", name) for v, g in zip(weights, graphs, strict=True)]
    return Multi([text, neighbours], [(w, name, "none"), *each], "none")


@recipe(ids=("XM4",))
def control(
    text: str,
    side: str,
    w: Weight,
    mode: Literal["normal", "guess", "nested"] = "normal",
    strength: Weight = 1.0,
) -> Multi:
    r"""CFG beside a control network that stays, or that is amplified too.

    * ``normal``: the control is in both states, ``D(K) + w [D(c, K) - D(K)]``.
    * ``guess``: it is hidden with the text, ``D(0) + w [D(c, K) - D(0)]``: for empty prompts.
    * ``nested``: it has a weight of its own,
      ``D(0) + s [D(K) - D(0)] + w [D(c, K) - D(K)]``, at one more evaluation.

    ControlNet takes ``w`` 3 to 5 in guess mode, and there also fades its residuals from layer to
    layer (``guess_scales``). ``fairlead.adapters.SideNetwork`` runs the control network for the
    rows that show it alone.

    Args:
        text: Name of the text condition.
        side: Name of the condition that the control network takes.
        w: Guidance scale.
        mode: As above.
        strength: ``s`` of ``nested``.

    Raises:
        ValueError: The mode is unknown, or as for ``multi``.

    Example:
        >>> from fairlead import recipes
        >>> str(recipes.control("text", "pose", 4.0, "guess"))
        "multi(['text', 'pose'], [[4.0, 'all', 'none']], origin='none')"

    Source:
        Zhang, Rao, Agrawala (2023), arXiv:2302.05543.
    """
    choose("control", "mode", mode, ("normal", "guess", "nested"))
    if mode == "normal":
        return joint([text], w)
    return joint([text, side], w) if mode == "guess" else nested([side, text], [strength, w])


def guess_scales(count: int, strength: float = 1.0) -> list[float]:
    """Factors of a control network's residuals in guess mode, from the first to the middle one.

    `logspace(-1, 0, count + 1)` times `strength`: 0.1 at the first of `count` residuals, 1 at
    the middle one, which comes last.

    >>> from fairlead.guidance.composition.chains import guess_scales
    >>> guess_scales(2)
    [0.1, 0.31622776601683794, 1.0]
    """
    if count < 1:
        raise ValueError(f"guess_scales: count must be at least 1, got {count}")
    return [float(strength * 10 ** (i / count - 1)) for i in range(count + 1)]
