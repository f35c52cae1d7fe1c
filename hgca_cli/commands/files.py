"""Files a measurement is written to: checked before it costs minutes, and appended to line by line."""

from __future__ import annotations

from collections.abc import Mapping
from json import dumps
from pathlib import Path
from typing import Any

from hgca_cli.errors import HgcaError, UsageError
from hgca_cli.ui.plot import check_plot


def check_files(record: Path | None, plot: Path | None) -> None:
    """What would be lost after minutes of measuring is refused now. Raises UsageError, ModelError without matplotlib."""
    if plot is not None:
        check_plot(plot)
    if record is not None:
        try:
            with record.open("a", encoding="utf-8"):
                pass
        except OSError as error:
            raise UsageError(f"--record: cannot write {record}: {error.strerror}.", "Choose another file.") from error


def append_line(file: Path, line: Mapping[str, Any]) -> None:
    """One JSON object more, figures to five digits. Raises HgcaError if the disk is full."""
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(dumps(rounded(line)) + "\n")
    except OSError as error:
        raise HgcaError(f"--record: cannot write {file}: {error.strerror}.", "Free some space.") from error


def rounded(value: Any) -> Any:
    """Figures to five digits: more would be noise in a file that people compare."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {name: rounded(one) for name, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value
