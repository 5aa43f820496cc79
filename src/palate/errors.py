"""The one error that palate raises for what a person can put right, and how a run is stopped."""


class PalateError(ValueError):
    """Bad input, configuration or environment: the message says what, where, the value, the remedy.

    `reason` is the short fixed phrase under which the ledger counts a row refused with this error.
    """

    def __init__(self, message: str, reason: str = "invalid value") -> None:
        super().__init__(message)
        self.reason = reason


class SourceError(PalateError):
    """What one row shows and holds for its whole source: no row of it can be read as asked."""


class Interrupted(Exception):
    """The run was stopped by a signal after writing a checkpoint."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
