"""How strong should guidance be? A sweep of the scale on the shipped digits, with its cost."""

import argparse

import torch

import fairlead as fl
from fairlead.models import zoo


def main() -> None:
    """Samples under each guide and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200, help="samples a guide")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()

    denoiser = fl.load("digits")
    classifier = zoo.classifier("digits")
    labels = torch.arange(options.n) % 10
    guides = ["none", "cfg(2)", "cfg(4)", "cfg(4) | apg(eta=0)", "cfg(4) | interval(0.2, 0.8)"]

    print(f"{'guide':28} {'NFE':>5} {'as asked':>9} {'diversity':>10}")
    for guide in guides:
        out = fl.sample(
            denoiser, {"label": labels}, guide=guide, sampler="dpmpp_2m", steps=options.steps
        )
        with torch.no_grad():
            correct = (classifier(out.x).argmax(1) == labels).double().mean()
            spread = torch.stack(
                [classifier.features(out.x[labels == c]).std(0).mean() for c in range(10)]
            ).mean()
        nfe = out.nfe.double().mean()
        print(f"{guide:28} {nfe:5.1f} {correct:9.1%} {spread:10.3f}")


if __name__ == "__main__":
    main()
