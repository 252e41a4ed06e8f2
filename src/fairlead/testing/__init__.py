"""Tests that every guidance method has to pass, for this library's methods and for yours.

>>> import fairlead as fl
>>> from fairlead.testing import check_guide
>>> outcomes = check_guide(fl.CFG, skip=("compile",))
>>> sorted({o.status for o in outcomes})
['not applicable', 'passed', 'skipped']
"""

from fairlead.testing.checks import CHECKS
from fairlead.testing.conformance import Outcome, check_guide
from fairlead.testing.helpers import combine, pairs
from fairlead.testing.networks import (
    TinyNetwork,
    TinyTextNetwork,
    tiny_denoiser,
    tiny_network,
)
from fairlead.testing.subject import Subject

__all__ = [
    "CHECKS",
    "Outcome",
    "Subject",
    "TinyNetwork",
    "TinyTextNetwork",
    "check_guide",
    "combine",
    "pairs",
    "tiny_denoiser",
    "tiny_network",
]
