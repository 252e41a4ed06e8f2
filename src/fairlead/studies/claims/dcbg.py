"""Claims of classifier guidance of tokens."""

from fairlead.discrete import Masked, Uniform
from fairlead.exact import golden_tokens, token_law
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import equals

# E p(y = 0 | x) with guidance on for t <= 1/2 alone: masked, uniform
PUBLISHED = {5: (0.684, 0.802), 20: (0.692, 0.854)}
NULL = {"label": 2}


@claim(
    "dcbg",
    ids=("S129",),
    claim="Uniform noise lets guidance change tokens that are written already; masked tokens lock "
    "in. With the exact classifier D-CBG is D-CFG of the posterior.",
    setting="two binary tokens in two classes, exact denoisers and classifiers, 64 equal steps, "
    "laws enumerated; D-CBG exact, exponent 5 and 20, guidance on for t <= 1/2 alone",
    expected="mean p(y = 0 | x), masked and uniform: .684 and .802 at 5, .692 and .854 at 20; at "
    "exponents 1 and 2 the law of masked D-CBG is that of D-CFG to 1e-6",
)
def toy() -> Finding:
    """The four numbers, and the equality of two laws."""
    table = golden_tokens()
    posterior = table.laws[0] * table.prior[0] / table.laws[2]
    measured, checks = {}, {}
    for gamma, numbers in PUBLISHED.items():
        guide = f"dcbg('classifier', {gamma}, order='exact') | interval(0.5, 1.0)"
        for process, number in zip((Masked(2, eps=0.0), Uniform(2, eps=0.0)), numbers, strict=True):
            law = token_law(
                table.denoiser(process),
                NULL,
                guide=guide,
                steps=64,
                space="posterior",
                energies={"classifier": table.classifier(process)},
            )
            if process.mask is not None:
                law = law.reshape(3, 3)[:2, :2].flatten()
            value = (law @ posterior).item()
            name = f"{process.name}, exponent {gamma}"
            measured[name] = value
            checks[f"{name}: {number}"] = equals(value, number, 0.0006)
    process = Masked(2, eps=0.0)
    denoiser = table.denoiser(process)
    for gamma in (1, 2):
        mine = token_law(
            denoiser,
            NULL,
            guide=f"dcbg('classifier', {gamma}, order='exact')",
            steps=64,
            space="posterior",
            energies={"classifier": table.classifier(process)},
        )
        free = token_law(denoiser, {"label": 0}, guide=f"cfg({gamma})", steps=64, space="posterior")
        gap = (mine - free).abs().max().item()
        measured[f"largest difference to D-CFG at {gamma}"] = gap
        checks[f"D-CBG is D-CFG at {gamma}"] = gap < 1e-6
    return Finding(measured, checks, nfe=64)
