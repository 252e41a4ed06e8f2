"""The checks of methods that serve tokens alone, on a tiny masked model."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairlead.discrete.classifier import Classifier
from fairlead.discrete.denoiser import TokenDenoiser
from fairlead.discrete.process import Masked
from fairlead.discrete.sampling import TokenResult, sample
from fairlead.guidance.algebra import Guide, Term
from fairlead.guidance.spec import guide as parse
from fairlead.models.sequence import TokenClassifier, TokenTransformer
from fairlead.testing.subject import NotApplicable, Subject

TOKENS, LENGTH, STEPS = 5, 6, 4
LABELS = [0, 2, 1]

Check = Callable[[Subject], None]
TOKEN_CHECKS: dict[str, Check] = {}
"""Those of `CHECKS` that are another for tokens, by name."""


def check(function: Check) -> Check:
    """Enters a check under its name."""
    TOKEN_CHECKS[function.__name__] = function
    return function


class TinyTokens(TokenTransformer):
    """A transformer of random weights over 5 tokens and the mask, for 6 positions.

    Attributes:
        rows: Rows predicted so far.
    """

    def __init__(self) -> None:
        super().__init__(
            TOKENS, LENGTH, {"label": 3}, mask=True, time=True, width=16, depth=1, heads=2
        )
        self.rows = 0

    def forward(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """Logits over the clean tokens."""
        self.rows += len(z)
        return super().forward(z, t, **condition)


def _random(network: Any) -> Any:
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return network.double().eval().requires_grad_(False)


def tiny_tokens(seed: int = 0) -> TokenDenoiser:
    """A denoiser of tokens with random weights; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _random(TinyTokens())
    return TokenDenoiser(network, Masked(TOKENS), {"label": 3}, length=LENGTH, choices={"label": 3})


def tiny_classifier() -> Classifier:
    """A classifier of noisy tokens with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = _random(
            TokenClassifier(TOKENS, LENGTH, {"label": 3}, True, width=16, depth=1, heads=2)
        )

    def call(z: Tensor, t: Tensor) -> Tensor:
        logits: Tensor = network(z.double() if z.is_floating_point() else z, t.double())["label"]
        return logits

    return Classifier(call, 1)


def draw(
    guide: Guide,
    denoiser: TokenDenoiser | None = None,
    *,
    n: int = 3,
    first: int = 0,
    seed: int = 0,
) -> TokenResult:
    """Sequences under a guide, labels fixed by the index of the sample; two tokens are a prompt."""
    z = torch.full((LENGTH,), TOKENS)
    z[:2] = torch.tensor([3, 1])
    space: Any = "clean" if "logprob" in guide.domains else "posterior"
    try:
        return _sampled(guide, denoiser or tiny_tokens(), n, first, seed, z, space)
    except ValueError as error:
        raise NotApplicable(f"it asks for more than this model has: {error}") from None


def _sampled(
    guide: Guide, denoiser: TokenDenoiser, n: int, first: int, seed: int, z: Tensor, space: Any
) -> TokenResult:
    return sample(
        denoiser,
        {"label": LABELS[first : first + n]},
        guide=guide,
        steps=STEPS,
        n=n,
        first=first,
        seed=seed,
        z=z,
        space=space,
        energies={"classifier": tiny_classifier()},
        masks={"prompt": torch.tensor([1, 1, 0, 0, 0, 0])},
        record=False,
    )


@check
def shape_dtype_device(subject: Subject) -> None:
    """Sequences look like what was asked for, without masks."""
    out = draw(subject.guide).x
    assert out.shape == (3, LENGTH), f"shape {tuple(out.shape)}"
    assert out.dtype == torch.long, f"dtype {out.dtype} instead of int64"
    assert bool((out < TOKENS).all()), "masks are left"


@check
def neutral(subject: Subject) -> None:
    """The neutral setting changes nothing."""
    arguments = type(subject.method).neutral
    if arguments is None:
        raise NotApplicable("the method has no neutral setting")
    if not isinstance(subject.method, Term):
        raise NotApplicable("no term")
    neutral_guide = parse(f"{subject.method.name}({arguments})")
    denoiser = tiny_tokens()
    out, plain = draw(neutral_guide, denoiser), draw(parse("none"))
    assert torch.equal(out.x, plain.x), f"{neutral_guide} differs from no guidance"
    assert torch.equal(out.nfe, plain.nfe), f"nfe {out.nfe.tolist()}, not {plain.nfe.tolist()}"


@check
def nfe(subject: Subject) -> None:
    """The reported cost is what the network saw, and what the method declares."""
    denoiser = tiny_tokens()
    network: Any = denoiser.network
    out = draw(subject.guide, denoiser)
    assert int(out.nfe.sum()) == network.rows, f"reported {out.nfe.tolist()}, saw {network.rows}"
    if isinstance(subject.node, Term):
        declared = (1 + type(subject.node).nfe) * STEPS
        assert out.nfe.max().item() == declared, f"declares {declared}, spends {out.nfe.tolist()}"


@check
def batches(subject: Subject) -> None:
    """A batch of n is n batches of one, with the same draws."""
    together = draw(subject.guide)
    single = [draw(subject.guide, n=1, first=i) for i in range(3)]
    assert torch.equal(together.x, torch.cat([s.x for s in single])), "samples differ"
    assert torch.equal(together.nfe, torch.cat([s.nfe for s in single])), "nfe differs"


@check
def deterministic(subject: Subject) -> None:
    """The seed decides alone; the global random state is neither read nor moved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = draw(subject.guide, seed=7).x
        assert torch.equal(before, torch.get_rng_state()), "moves the global random state"
        torch.manual_seed(2)
        assert torch.equal(first, draw(subject.guide, seed=7).x), "two runs differ"
    assert not torch.equal(first, draw(subject.guide, seed=8).x), "the seed has no effect"


@check
def no_traces(subject: Subject) -> None:
    """A run leaves nothing in the guide."""
    guide = subject.guide
    twin, kept = copy.deepcopy(guide), copy.deepcopy([vars(n) for n in guide.nodes()])
    first = draw(guide).x
    draw(guide, seed=1)
    assert torch.equal(draw(guide).x, first), "differs after another run"
    assert guide == twin, "the guide has changed"
    assert [vars(n) for n in guide.nodes()] == kept, "a run leaves something in the guide"


@check
def weights_per_sample(subject: Subject) -> None:
    """A scale per sample equals a loop over the samples."""
    weights = (1.0, 2.0, 3.5)
    together = draw(subject.scaled(weights))
    single = [draw(subject.scaled(w), n=1, first=i) for i, w in enumerate(weights)]
    assert torch.equal(together.x, torch.cat([s.x for s in single])), "samples differ"
