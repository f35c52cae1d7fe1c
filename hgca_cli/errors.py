"""What can go wrong, said so that a person can act on it.

Every error a user can cause is an `HgcaError`: one line that names what is wrong, a hint that names the remedy, and
the exit code the process ends with. Anything else that escapes is a bug of ours and exits with 1.
"""

from __future__ import annotations


class HgcaError(Exception):
    """A mistake or a limit, told in one line.

    message  what is wrong, naming the file, flag or figure
    hint     what to do about it (may be empty)
    """

    exit_code = 1
    code = "error"  # the machine-readable word of `--json`

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class UsageError(HgcaError):
    """Bad flag, bad input, bad configuration."""

    exit_code = 2
    code = "usage"


class ContextOverflowError(UsageError):
    """The prompt is longer than the context."""

    code = "context_overflow"


class DoesNotFitError(HgcaError):
    """The request needs more memory, disk or context than there is; the message has both figures."""

    exit_code = 4
    code = "does_not_fit"


class ModelError(HgcaError):
    """A model, file, device or environment that is missing, damaged or not supported."""

    exit_code = 5
    code = "model"


class NotHereError(ModelError):
    """A model that has to be fetched or converted first, where neither may be done."""


class NativeError(HgcaError):
    """The C library refused a call: a bug of ours, or memory ran out."""

    code = "native"


class HgcaWarning(UserWarning):
    """Something a user should know although the work goes on."""
