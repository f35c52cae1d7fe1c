"""What a job tells, in a file, with the time of each line."""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path

from hgca_cli.errors import ModelError


class LogFile:
    """Open for appending until `close`. A disk that fills up ends the log, not the job."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError for a file that cannot be written."""
        try:
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
        except OSError as error:
            raise ModelError(f"cannot write {path}: {error.strerror}.", "Name another file with --log-file.") from error

    def write(self, text: str) -> None:
        """Every line of a text."""
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        with contextlib.suppress(OSError, ValueError):
            self._file.write("".join(f"{now} {line}\n" for line in text.splitlines()))

    def close(self) -> None:
        """Give the file back."""
        with contextlib.suppress(OSError):
            self._file.close()
