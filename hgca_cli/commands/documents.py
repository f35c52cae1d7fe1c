"""Files that rows of a job name: text files in one directory, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hgca_cli.batch.rows import RowError
from hgca_cli.commands.inputs import read_text
from hgca_cli.errors import HgcaError, UsageError


def documents_under(root: Path | None) -> Callable[[str], tuple[str, str]] | None:
    """A reader of files in a directory: name -> name and text; None without one. Raises UsageError if it is no directory.

    The reader raises RowError for a file that is not in there, whatever links say, or cannot be read.
    """
    if root is None:
        return None
    folder = root.expanduser()
    if not folder.is_dir():
        raise UsageError(f"--root: {root} is not a directory.", "Name the directory that the rows' files are in.")
    folder = folder.resolve()

    def read(name: str) -> tuple[str, str]:
        try:
            path = (folder / name).resolve()
            inside = path.is_relative_to(folder)
        except (OSError, ValueError, RuntimeError):
            inside = False
        if not inside:
            raise RowError(f"file {name[:60]!r} is not under --root", "file")
        try:
            return " ".join(path.name.split()), read_text(path, f"file {name[:60]!r}")
        except HgcaError as error:
            raise RowError(str(error), "file") from error

    return read
