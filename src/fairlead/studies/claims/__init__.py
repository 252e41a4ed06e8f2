"""Claims: for each method the smallest honest experiment that shows what its paper says.

A claim states beforehand what it measures and by which rule the numbers become a verdict; one
that does not reproduce stays in the table, with its numbers.

>>> from fairlead.studies import claims
>>> "apg" in claims.names()
True
"""

from fairlead.studies.claims._harness import (
    Claim,
    Finding,
    claim,
    names,
    record,
    recorded,
    run,
    select,
    show,
)

__all__ = [
    "Claim",
    "Finding",
    "claim",
    "names",
    "record",
    "recorded",
    "run",
    "select",
    "show",
]
