"""The runner of the checks."""

import traceback
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fairlead.parameters import choose
from fairlead.testing import tokens  # noqa: F401  enters its check
from fairlead.testing.checks import CHECKS, Check
from fairlead.testing.sequences import TOKEN_CHECKS
from fairlead.testing.subject import NotApplicable, Subject

Status = Literal["passed", "failed", "skipped", "expected failure", "not applicable"]


WITHOUT_SAMPLES = ("text", "bad_values", "tokens")
"""Checks that draw no continuous samples."""


@dataclass(frozen=True)
class Outcome:
    """What came of one check.

    Attributes:
        check: Its name.
        status: `failed` also where a failure was expected and did not come.
        reason: Why it failed, was expected to, or does not apply.
    """

    check: str
    status: Status
    reason: str = ""


def check_guide(
    guide: Any,
    *,
    skip: Collection[str] = (),
    only: Collection[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    strict: bool = True,
) -> list[Outcome]:
    """Checks that a guidance method keeps what every method promises.

    Args:
        guide: A registered class, which is tried at its docstring's example; an instance of a
            term, rule, schedule or policy; or a whole guide or its text.
        skip: Names of checks that are not run.
        only: Names of the checks that are run; default: all.
        expected_failures: By name of the check the reason why it cannot pass. The check is run
            all the same, and it counts as failed if it passes.
        strict: Raise if any failed.

    Returns:
        One outcome a check.

    Raises:
        AssertionError: A check failed, with `strict`; lists them all.
        ValueError: An unknown check, or an expected failure without a reason.

    Example:
        >>> import fairlead as fl
        >>> check_guide(fl.PAG(3.0), only=["text"])
        [Outcome(check='text', status='passed', reason='')]
    """
    expected = dict(expected_failures or {})
    for name in (*skip, *(only or ()), *expected):
        choose("check_guide", "check", name, CHECKS)
    for name, reason in expected.items():
        if not reason.strip():
            raise ValueError(f"check_guide: the expected failure of {name!r} needs a reason")
    subject = Subject.of(guide)
    outcomes = [
        _run(name, subject, name in skip, expected.get(name))
        for name in CHECKS
        if only is None or name in only
    ]
    failed = [o for o in outcomes if o.status == "failed"]
    if failed and strict:
        details = "\n".join(f"{o.check}: {o.reason}" for o in failed)
        raise AssertionError(f"{subject.guide} does not conform:\n{details}")
    return outcomes


def _check(name: str, subject: Subject) -> Check:
    """The check of a name: methods that serve tokens alone are tried on tokens."""
    if "continuous" in subject.guide.domains or name in WITHOUT_SAMPLES:
        return CHECKS[name]
    if name not in TOKEN_CHECKS:
        raise NotApplicable("the guide serves tokens alone")
    return TOKEN_CHECKS[name]


def _run(name: str, subject: Subject, skipped: bool, expected: str | None) -> Outcome:
    if skipped:
        return Outcome(name, "skipped")
    try:
        _check(name, subject)(subject)
    except NotApplicable as reason:
        return Outcome(name, "not applicable", str(reason))
    except Exception as error:
        if expected is not None:
            return Outcome(name, "expected failure", expected)
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{at.filename.rsplit('/', 1)[-1]}:{at.lineno}"
        return Outcome(name, "failed", f"{type(error).__name__} at {where}: {error}")
    if expected is not None:
        return Outcome(name, "failed", f"it passes, though a failure was expected: {expected}")
    return Outcome(name, "passed")
