"""The claim of VQ-Diffusion's fast inference, by exact enumeration."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairlead.discrete import MaskedUniform
from fairlead.exact import TokenTable, golden_tokens, token_law
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check

STRIDES = (2, 4, 8)
SEEDS = (0, 1)


def _three(seed: int) -> TokenTable:
    """Two classes of three binary tokens."""
    drawn = np.random.default_rng(seed).dirichlet(0.3 * np.ones(8), 2)
    return TokenTable(torch.from_numpy(drawn).reshape(2, 2, 2, 2), torch.tensor([0.5, 0.5]))


def _gap(table: TokenTable, sampler: str, steps: int) -> float:
    """Total variation of what is drawn to the conditional law."""
    k, length = table.tokens, table.length
    denoiser = table.denoiser(MaskedUniform(k, steps=steps))
    law: Tensor = token_law(denoiser, {"label": 0}, sampler=sampler, steps=steps)
    clean = law.reshape(*[k + 1] * length)[(slice(0, k),) * length].flatten()
    return float((clean - table.laws[0]).abs().sum()) / 2


@claim(
    "vq-fast",
    ids=("S044",),
    claim="Fast inference visits every n-th level and stays close to the law; its posterior, that "
    "of one step of the schedule, writes too few tokens early, and the posterior of the whole way "
    "is closer at the same cost.",
    setting="masks and uniform noise on the schedule of VQ-Diffusion, exact denoisers, w = 1, laws "
    "enumerated: two binary tokens, 100 steps; three binary tokens, joints "
    "default_rng(seed).dirichlet(.3 * ones(8), 2), 20 steps; strides 2, 4, 8; the first toy was "
    "seen at strides 4 and 8 before the criteria were written",
    expected="total variation to p_c: rises with the stride for both posteriors; that of the whole "
    "way is below the released one at each stride; two tokens, 100 steps, stride 4 (26 "
    "evaluations in place of 100) within .03",
    seed=list(SEEDS),
)
def fast() -> Finding:
    """Total variation by stride and posterior."""
    toys = {"two tokens": (golden_tokens(), 100)}
    toys |= {f"three tokens, seed {seed}": (_three(seed), 20) for seed in SEEDS}
    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    for toy, (table, steps) in toys.items():
        measured[f"{toy}, every level"] = plain = _gap(table, "vq('all')", steps)
        found: dict[str, list[float]] = {}
        for skip in ("released", "exact"):
            found[skip] = [
                _gap(table, f"vq('all', stride={n}, skip='{skip}')", steps) for n in STRIDES
            ]
            row = dict(zip(map(str, STRIDES), found[skip], strict=True))
            measured[f"{toy}, {skip}, by stride"] = row
            checks[f"{toy}: {skip} rises"] = [plain, *found[skip]] == sorted([plain, *found[skip]])
        closer = all(b < a for a, b in zip(*found.values(), strict=True))
        checks[f"{toy}: the whole way is closer"] = closer
        if toy == "two tokens":
            checks["two tokens: stride 4 within .03"] = found["released"][1] < 0.03
    return Finding(measured, checks, nfe=26)
