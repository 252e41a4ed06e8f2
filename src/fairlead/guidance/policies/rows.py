"""Which samples of a batch a remembered prediction is good for, and which branches are meant."""

import torch
from torch import Tensor

from fairlead.guidance.algebra import Guide, Rows, Term
from fairlead.guidance.branch import COND, Branch
from fairlead.parameters import nearest


def mask(rows: Rows, batch: int) -> Tensor:
    """Rows as `(batch,)` booleans."""
    if rows is None:
        return torch.ones(batch, dtype=torch.bool)
    return torch.zeros(batch, dtype=torch.bool).index_fill_(0, rows.cpu(), True)


def covers(known: Tensor, rows: Rows) -> bool:
    """Whether all rows are among the known."""
    return bool(known.all() if rows is None else known[rows.cpu()].all())


def wanted_below(guide: Guide) -> list[Branch]:
    """Every branch beside `cond` that the terms of a guide weigh."""
    found: dict[Branch, None] = {}
    for node in guide.nodes():
        if isinstance(node, Term):
            for _, positive, negative in node.differences:
                found |= {positive: None, negative: None}
    return [b for b in found if b != COND]


def check_only(owner: str, only: tuple[str, ...], guide: Guide | None = None) -> None:
    """Refuses names of branches that a policy may not provide, or that nobody asks for.

    Raises:
        ValueError: The base is among them, or, given the guide, a name that is no branch of it.
    """
    if COND.name in only:
        raise ValueError(f"{owner}: only names the base branch 'cond', which is never skipped")
    known = [] if guide is None else [b.name for b in wanted_below(guide)]
    for name in only if guide is not None else ():
        if name not in known:
            raise ValueError(
                f"{owner}: only names {name!r}, which the terms before it do not ask for; "
                f"{nearest(name, known)}"
            )
