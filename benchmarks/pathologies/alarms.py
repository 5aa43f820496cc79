"""Whether a check of the audit raised its alarm."""

from collections.abc import Iterable

from palate.audit.findings import SEVERITIES, Finding, Severity, Skipped
from palate.simulation.worlds import TwinName

TWO: tuple[TwinName, ...] = ("planted", "clean")
"""The twins of a fault that has no legitimate one."""


def alarms(found: Iterable[Finding | Skipped], check: str, severity: Severity) -> bool:
    """Whether a finding of this check is as grave as `severity`. Raises AssertionError where the
    check was not made: no alarm would mean nothing."""
    made = [f for f in found if isinstance(f, Finding) and f.check == check]
    assert made, f"{check} was not made"
    return any(SEVERITIES.index(f.severity) >= SEVERITIES.index(severity) for f in made)
