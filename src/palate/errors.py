"""The one error that palate raises for what a person can put right."""


class PalateError(ValueError):
    """Bad input, configuration or environment: the message says what, where, the value, the remedy.

    `reason` is the short fixed phrase under which the ledger counts a row refused with this error.
    """

    def __init__(self, message: str, reason: str = "invalid value") -> None:
        super().__init__(message)
        self.reason = reason


class SourceError(PalateError):
    """What one row shows and holds for its whole source: no row of it can be read as asked."""
