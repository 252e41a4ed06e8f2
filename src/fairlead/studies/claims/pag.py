"""Claims of perturbed-attention guidance."""

import torch
from torch import Tensor, nn

import fairlead as fl
from fairlead.metrics import Estimate, bootstrap
from fairlead.schedules import EDM
from fairlead.studies.claims import _images as images
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, agrees, below, difference

CORRELATION = 0.6


class Mixing(nn.Module):
    """Attention whose queries carry the result and whose values are those of each token alone."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The joint prediction; PAG's hook puts `v` in its place."""
        return q


class TwoTokens(nn.Module):
    """Exact denoiser of two correlated Gaussian tokens; identity attention makes it marginal."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Mixing()
        self.attention_layers = {"mid": self.core}

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The clean estimate, `(B, 2)`."""
        c = torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]]).to(x)
        noise = sigma[0].to(x) ** 2
        gain = torch.linalg.solve(c + noise * torch.eye(2).to(x), c)
        out: Tensor = self.core(x @ gain, x, x / (1 + noise))
        return out


class Sigma(EDM):
    """The network takes sigma itself."""

    def network_time(self, t: Tensor) -> Tensor:
        """Sigma."""
        return t


def correlation(x: Tensor) -> Estimate:
    """Correlation of the two tokens."""
    return bootstrap(lambda y: torch.corrcoef(y.T)[0, 1], x, resamples=200)


@claim(
    "pag",
    ids=("S029",),
    claim="Guiding away from identity attention strengthens structure: what holds tokens together.",
    setting="two Gaussian tokens of unit variance and correlation 0.6, exact network whose "
    "attention layer, made the identity, predicts each token alone; 200 DDIM steps, 4000 samples",
    expected="correlation 0.61, 0.79, 0.89, 0.97, 0.99 and variance 1.0, 1.1, 1.4, 2.1, 3.3 at s = "
    "0, 0.5, 1, 2, 3",
)
def tokens() -> Finding:
    """Numbers agree, and the correlation rises clearly from scale to scale."""
    denoiser = fl.Denoiser(TwoTokens().double(), schedule=Sigma(), prediction="sample", shape=(2,))
    scales = (0.0, 0.5, 1.0, 2.0, 3.0)
    found, wide = [], []
    for s in scales:
        x = fl.sample(
            denoiser,
            guide=f"pag({s})",
            sampler="ddim",
            steps=200,
            n=4000,
            dtype=torch.float64,
            record=False,
        ).x
        found.append(correlation(x))
        wide.append(bootstrap(lambda y: y.var(0).mean(), x, resamples=200))
    checks = {}
    for i, s in enumerate(scales):
        checks[f"correlation agrees at s = {s:g}"] = agrees(
            found[i], (0.61, 0.79, 0.89, 0.97, 0.99)[i], 0.005
        )
        checks[f"variance agrees at s = {s:g}"] = agrees(
            wide[i], (1.0, 1.1, 1.4, 2.1, 3.3)[i], 0.05
        )
        if i:
            checks[f"correlation rises to s = {s:g}"] = above(difference(found[i], found[i - 1]))
    return Finding({"s": list(scales), "correlation": found, "variance": wide}, checks, nfe=400)


@claim(
    "pag-images",
    ids=("S029",),
    claim="PAG improves unconditional samples without training.",
    setting=f"cifar10, null condition, {images.SETTING}, s = 2 in the middle attention layer",
    expected="classifier confidence up and Fréchet distance down against s = 0, 95 % intervals "
    "over samples on the same noise",
    models=("cifar10",),
)
def cifar10() -> Finding:
    """Both changes clear of zero."""
    base, guided = images.draw(null=True), images.draw(guide="pag(2.0)", null=True)
    confidence = images.confidence_change(guided, base)
    fd = images.fd_change(guided, base)
    return Finding(
        {
            "FD at s = 0": base.fd,
            "FD at s = 2": guided.fd,
            "FD change": fd,
            "confidence change": confidence,
        },
        {"confidence up": above(confidence), "FD down": below(fd)},
        guided.nfe,
    )
