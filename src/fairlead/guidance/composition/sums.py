"""Sums of single directions: each condition, concept, style or expert counts for itself."""

from collections.abc import Sequence

from fairlead.guidance.composition.chains import Weight, paired
from fairlead.guidance.recipes import recipe
from fairlead.guidance.states import absent
from fairlead.guidance.terms.multi import Multi


@recipe(ids=("XM2", "S059", "S083"))
def independent(conditions: Sequence[str], weights: Sequence[Weight]) -> Multi:
    r"""Each condition alone, with a weight of its own.

    .. math:: D = D(\emptyset) + \sum_i w_i \, [D(c_i) - D(\emptyset)]

    At weights 1 it is the joint conditional only where the conditions are independent given the
    noisy sample; the state with all of them is never evaluated. SpaText's exact form takes
    weights of at least 1, DiffPoseTalk (audio 1.15, style 3).

    Args:
        conditions: Names.
        weights: A weight for each, one number, or one a sample; below 0 it negates.

    Raises:
        ValueError: The lists differ in length, or as for ``multi``.

    Example:
        >>> from fairlead import recipes
        >>> recipes.independent(["audio", "style"], [1.15, 3.0]).terms
        ((1.15, 'audio', 'none'), (3.0, 'style', 'none'))

    Source:
        Liu, Li, Du, Torralba, Tenenbaum (2022), arXiv:2206.01714; Avrahami et al. (2022),
        arXiv:2211.14305; Sun et al. (2023), arXiv:2310.00434.
    """
    paired("independent", "the conditions", conditions, weights)
    names = absent("independent", conditions)
    terms = [(w, name, "none") for w, name in zip(weights, names, strict=True)]
    return Multi(conditions, terms, "none")


@recipe(ids=("S063",))
def dual(conditions: Sequence[str], weights: Sequence[Weight]) -> Multi:
    r"""Directions of single conditions, added to the prediction under all of them.

    .. math:: D = D(c_1 \dots c_n) + \sum_i w_i \, [D(c_i) - D(\emptyset)]

    The weights are increments: 0 is the conditional model. VoiceLDM takes 7 and 7 for
    description and content, 1 and 9 for speech, 9 and 1 for sound.

    Args:
        conditions: Names.
        weights: A weight for each, one number, or one a sample.

    Raises:
        ValueError: The lists differ in length, or as for ``multi``.

    Example:
        >>> from fairlead import recipes
        >>> recipes.dual(["description", "content"], [7, 7]).describe().nfe
        4

    Source:
        Lee, Yeon, Nam, Chung (2023), arXiv:2309.13664.
    """
    paired("dual", "the conditions", conditions, weights)
    names = absent("dual", conditions)
    terms = [(w, name, "none") for w, name in zip(weights, names, strict=True)]
    return Multi(conditions, terms, "all")


@recipe(ids=("XM2",))
def compose(condition: str, states: Sequence[str], weights: Sequence[Weight]) -> Multi:
    r"""Concepts joined by AND and NOT: several values of one condition.

    .. math:: D = D(\emptyset) + \sum_k w_k \, [D(c = s_k) - D(\emptyset)]

    A weight below 0 is NOT. "A and not B" is ``D(0) + w [D(A) - D(B)]``; ``cfg(w, against=...)``
    begins at the negative instead. Every weight is 7.5 in the authors' code. Without a
    normaliser for ``1/p``, strong negative weights push off the data.

    Args:
        condition: Name.
        states: States that hold the concepts, given to ``fl.sample(states=...)``; ``cond`` is
            the sampled condition's own value.
        weights: A weight for each, one number, or one a sample.

    Raises:
        ValueError: The lists differ in length, or as for ``multi``.

    Example:
        >>> from fairlead import recipes
        >>> str(recipes.compose("text", ["cat", "dog"], [7.5, -7.5]))
        "multi(['text'], [[7.5, 'text=cat', 'none'], [-7.5, 'text=dog', 'none']], origin='none')"

    Source:
        Liu, Li, Du, Torralba, Tenenbaum (2022), arXiv:2206.01714.
    """
    paired("compose", "the states", states, weights)
    name = next(iter(absent("compose", [condition])))
    parts = [name if s == "cond" else f"{name}={s}" for s in states]
    return Multi([condition], [(w, p, "none") for w, p in zip(weights, parts, strict=True)], "none")


@recipe(ids=("S050",))
def style_mix(condition: str, a: str, b: str, gamma: Weight) -> Multi:
    r"""Between two values of a condition, and beyond them.

    .. math:: D = D(b) + \gamma \, [D(a) - D(b)]

    1 is ``a``, 0 is ``b``, between them is a mixture; above 1 or below 0 one is exaggerated
    against the other. With ``b = "none"`` it is the strength of style ``a``, with the other
    conditions in both.

    Args:
        condition: Name.
        a: State that holds the one value, ``cond`` for the sampled condition's own.
        b: State that holds the other; ``none`` for null.
        gamma: Share of ``a``, one number, or one a sample.

    Raises:
        ValueError: As for ``multi``.

    Example:
        >>> from fairlead import recipes
        >>> str(recipes.style_mix("style", "happy", "sad", 0.5))
        "multi(['style'], [[0.5, 'style=happy', 'style=sad']], origin='style=sad')"

    Source:
        Yang et al. (2023), arXiv:2305.04919.
    """
    name = next(iter(absent("style_mix", [condition])))
    one, other = ({"cond": name, "none": "none"}.get(s, f"{name}={s}") for s in (a, b))
    return Multi([condition], [(gamma, one, other)], other)


@recipe(ids=("S081",))
def experts(
    conditions: Sequence[str],
    states: Sequence[str],
    weights: Sequence[Weight],
    origin: str = "none",
) -> Multi:
    r"""A product of experts: other conditions, or other models, from one base.

    .. math:: D = D_0 + \sum_k w_k \, (D_k - D_0), \qquad p \propto p_0^{1 - \sum w_k}
              \prod_k p_k^{w_k}

    Where the weights add up to 1 the base cancels and is not evaluated. It is the product as the
    noise goes to 0: the diffusion of a product is not the product of the diffusions. All models
    must share the noise schedule and the units of the data.

    Args:
        conditions: Names that differ between the experts.
        states: The experts, as states of ``multi``: ``style=old``, ``dancer: style``.
        weights: A weight for each; the paper shows (1, 1), (0.5, 0.5), (0.25, 1).
        origin: The base, a state.

    Raises:
        ValueError: The lists differ in length, or as for ``multi``.

    Example:
        >>> from fairlead import recipes
        >>> recipes.experts(["style"], ["style", "dancer: style"], [0.5, 0.5]).describe().nfe
        2

    Source:
        Alexanderson, Nagy, Beskow, Henter (2022), arXiv:2211.09707.
    """
    paired("experts", "the states", states, weights)
    terms = [(w, s, origin) for w, s in zip(weights, states, strict=True)]
    return Multi(conditions, terms, origin)
