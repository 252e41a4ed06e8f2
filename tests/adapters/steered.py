"""What tests of steered pipelines share: a run under a guide, and a comparison of what it made."""

import fairlead as fl


def steered(pipe, recipe, guide, options=None, **changes):
    with fl.steer(pipe, guide, **(options or {})) as s:
        latents = recipe.run(pipe, **changes)
    return latents, s


def close(a, b, tolerance=2e-5):
    assert ((a - b).abs().max() / b.abs().max()).item() < tolerance
