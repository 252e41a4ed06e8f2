"""Rules that change from step to step, along time, or from pixel to pixel."""

from collections.abc import Sequence
from typing import Literal

from fairlead.guidance.algebra import Guide, Sum, Term
from fairlead.guidance.composition.chains import Weight, paired
from fairlead.guidance.recipes import recipe
from fairlead.guidance.rules.response import Response
from fairlead.guidance.states import absent
from fairlead.guidance.terms.cfg import CFG
from fairlead.guidance.terms.foreground import Foreground
from fairlead.guidance.terms.multi import Multi
from fairlead.guidance.terms.pag import PAG
from fairlead.guidance.weight_schedules.coin import Coin
from fairlead.guidance.weight_schedules.region import Region


@recipe(ids=("S094",))
def interleaved(
    conditions: Sequence[str],
    weights: Sequence[Weight],
    eta: float = 0.5,
    per: Literal["batch", "sample"] = "batch",
) -> Sum:
    r"""Interleaved CFG: each step amplifies one of two conditions, chosen by a coin.

    .. math:: D = D(c_2) + w_1 [D(c_1, c_2) - D(c_2)] \text{ with probability } \eta, \text{ else }
              D(c_1) + w_2 [D(c_1, c_2) - D(c_1)]

    2 evaluations a step in place of 3. With one coin for a batch, what chance does is common to
    all of its samples; ``per="sample"`` averages it out, and still costs 2.

    Args:
        conditions: Two names: text and neighbours in Re-Imagen.
        weights: Their guidance scales.
        eta: Probability with which a step amplifies the first.
        per: Whether a batch or each sample has a coin.

    Raises:
        ValueError: There are not two conditions and weights, ``eta`` is outside [0, 1], or as
            for ``multi``.

    Example:
        >>> from fairlead import recipes
        >>> str(recipes.interleaved(["a", "b"], [4.0, 2.0]).parts[0])
        "multi(['a', 'b'], [[4.0, 'all', 'b']], origin='b') | coin(0.5)"

    Source:
        Chen, Hu, Saharia, Cohen (2022), arXiv:2209.14491.
    """
    paired("interleaved", "the conditions", conditions, weights)
    names = list(absent("interleaved", conditions))
    if len(names) != 2:
        raise ValueError(f"interleaved: conditions must be two, got {list(conditions)!r}")
    first, second = (
        Multi(conditions, [(w, "all", other)], other)
        for w, other in zip(weights, reversed(names), strict=True)
    )
    return Sum((first | Coin(eta, per=per), second | Coin(eta, tails=True, per=per)))


@recipe(ids=("S030", "S040"))
def history(
    condition: str,
    w: Weight | Sequence[Weight],
    level: float = 0.0,
    windows: Sequence[Sequence[int]] = (),
    clean: float = 0.0,
    others: Sequence[str] = (),
) -> Multi:
    r"""History guidance: past frames as the condition, over time and frequency.

    With ``H`` the history and ``H@k`` the history in noise of level ``k``:

    * vanilla: :math:`D(\emptyset) + w \, [D(H) - D(\emptyset)]`;
    * over frequency, ``level = k``: :math:`D(H) + (w - 1) \, [D(H@k) - D(\emptyset)]`, which
      leaves fast motion less constrained; ``k = 0`` is vanilla and ``k = 1`` is conditional;
    * over time, ``windows``: :math:`D(\emptyset) + \sum_i w_i \, [D(H_i) - D(\emptyset)]`, with
      the frames of each window alone.

    Null is noise at the highest level, drawn once a sample, on a model with a noise level for
    each frame (``nulls.noise``). DFoT takes ``w = 1.5``; above about 3 videos stand still; ``k``
    is 0.3 or 0.6. VIDIM is the vanilla form with both end frames and ``w = 2``.

    Args:
        condition: Name of the history.
        w: Guidance scale, 1 is conditional; a list, one a window, with ``windows``.
        level: ``k`` in [0, 1].
        windows: First frame and the one behind the last, for each window.
        clean: Level of the history itself, such as 0.02 where it was generated.
        others: Further conditions, such as actions, that are null together with it.

    Raises:
        ValueError: ``level`` and ``windows`` are both given, the lists differ in length, or as
            for ``multi``.

    Example:
        >>> from fairlead import recipes
        >>> recipes.history("history", 1.5, level=0.6).describe().nfe
        3

    Source:
        Song, Chen, Simchowitz, Du, Tedrake, Sitzmann (2025), arXiv:2502.06764; Jain et al.
        (2024), arXiv:2404.01203.
    """
    names = list(absent("history", [condition, *others]))
    name, rest = names[0], "".join(f"+{n}" for n in names[1:])
    rest = f"@{clean:g}{rest}" if clean else rest
    conditions = [condition, *others]
    if windows:
        if level:
            raise ValueError("history: give level or windows, not both")
        weights = [] if isinstance(w, (int, float)) else list(w)
        paired("history", "the windows", [str(v) for v in windows], weights)
        states = [f"{name}[{start}:{stop}]{rest}" for start, stop in windows]
        terms = [(v, s, "none") for v, s in zip(weights, states, strict=True)]
        return Multi(conditions, terms, "none")
    if not level:
        return Multi(conditions, [(w, f"{name}{rest}", "none")], "none")
    more = [v - 1 for v in w] if isinstance(w, Sequence) else w - 1  # type: ignore[operator]
    noised = "+".join([f"{name}@{level:g}", *names[1:]])
    return Multi(conditions, [(more, noised, "none")], f"{name}{rest}")


@recipe(ids=("XM3",))
def regions(condition: str, w: Weight, states: Sequence[str], bootstrap: float = 0.0) -> Guide:
    r"""MultiDiffusion in one prediction: each region follows a condition of its own.

    With the masks ``m_r``, the background ``m_0 = max(1 - sum m_r, 0)`` and shares
    ``m_r / sum m``:

    .. math:: D = \sum_r \frac{m_r}{\sum m} \, \bigl( D_u + w \, [D(c_r) - D_u] \bigr)

    ``c_0`` is the sampled condition. Under a sampler whose step is affine in the prediction and
    the same for every pixel (``ddim``, ``euler``, and ``ddpm`` with one noise for all), stepping
    once with this is averaging the steps of all regions. 2 evaluations a step and one a region.

    Args:
        condition: Name.
        w: Guidance scale of every region.
        states: Their states, given to ``fl.sample(states=...)``, which are also the names of
            their masks, given to ``fl.sample(masks=...)``.
        bootstrap: Share of the steps in which a region sees a plain colour around it, and not
            the others (``foreground``); the authors take 0.4.

    Raises:
        ValueError: There is no region, or one is there twice.

    Example:
        >>> from fairlead import recipes
        >>> recipes.regions("text", 7.5, ["cat", "dog"]).describe().nfe
        4

    Source:
        Bar-Tal, Yariv, Lipman, Dekel (2023), arXiv:2302.08113.
    """
    names = list(states) if not isinstance(states, str) else []
    if not names or len(set(names)) < len(names):
        raise ValueError(f"regions: states must be a list of different names, got {states!r}")
    known = next(iter(absent("regions", [condition])))
    made: Guide = CFG(_scale(w))
    for name in names:
        towards: Term = Multi([condition], [(w, f"{known}={name}", "all")])
        if bootstrap:
            towards = Foreground(condition, name, _scale(w), until=bootstrap)
        made = made + (towards | Region(name, of=tuple(names)))
    return made


@recipe(ids=("XM5",))
def edits(
    condition: str, states: Sequence[str], weights: Sequence[Weight], q: float = 0.9
) -> Guide:
    r"""Several edits at once, each where it responds most.

    .. math:: D = D(\emptyset) + \sum_k w_k \, M_k \, [D(e_k) - D(\emptyset)]

    ``M_k`` is 1 where ``|D(e_k) - D(0)|``, summed over channels, is above its quantile ``q``; a
    weight below 0 takes something away. Steps in which an edit acts are ``| interval(...)``
    behind it. One evaluation a step for each edit, the null, and the base that the masks look at.

    Args:
        condition: Name.
        states: States that hold the edits, given to ``fl.sample(states=...)``.
        weights: A weight for each.
        q: Share of the positions that each edit leaves alone, in [0, 1).

    Raises:
        ValueError: The lists differ in length, or a parameter is out of range.

    Example:
        >>> from fairlead import recipes
        >>> recipes.edits("text", ["glasses", "smile"], [5.0, -3.0]).describe().nfe
        4

    Source:
        Brack, Friedrich, Kornmeier, Tsaban, Schramowski, Kersting, Passos (2023),
        arXiv:2311.16711.
    """
    paired("edits", "the states", states, weights)
    name = next(iter(absent("edits", [condition])))
    made: Guide = Multi([condition], [], "none")
    for state, w in zip(states, weights, strict=True):
        made = made + (Multi([condition], [(w, f"{name}={state}", "none")]) | Response(q))
    return made


@recipe(ids=("XM5",))
def modalities(
    w: Weight, isolated: Weight, perturbed: Weight = 0.0, against: str = "isolated"
) -> Guide:
    r"""Guidance of one modality made jointly with another, such as video with its sound.

    .. math:: D = D_c + (w - 1) (D_c - D_u) + s \, (D_c - D_\mathrm{perturbed})
              + (m - 1) (D_c - D_\mathrm{isolated})

    ``isolated`` is a state in which the modalities do not see each other. Each modality has
    weights of its own: ``modalities(7, 3) | part(...)``. LTX-2 takes ``w`` 7, ``s`` 1, ``m`` 3
    for sound, and a rescale after it.

    Args:
        w: Guidance scale, neutral at 1.
        isolated: ``m``, neutral at 1.
        perturbed: ``s`` of ``pag``, neutral at 0.
        against: Name of the state without exchange, given to ``fl.sample(states=...)``.

    Raises:
        ValueError: A weight is NaN or infinite.

    Example:
        >>> from fairlead import recipes
        >>> str(recipes.modalities(7.0, 3.0, 1.0))
        "cfg(7.0) + cfg(3.0, against='isolated') + pag(1.0)"

    Source:
        The LTX-2 pipelines (2025); no rule of its own in a paper.
    """
    made = CFG(_scale(w)) + CFG(_scale(isolated), against=against)
    return made + PAG(_scale(perturbed)) if perturbed else made


def _scale(w: Weight) -> float | tuple[float, ...]:
    return tuple(w) if isinstance(w, Sequence) else w
