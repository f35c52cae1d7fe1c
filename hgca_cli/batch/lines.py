"""The lines of a job's input: read one at a time, and found again by where they begin."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hgca_cli.errors import ModelError, UsageError

MOST_LINE = 256 << 20  # bytes
PIECE = 1 << 20
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """number: from 1; content without its end, None if it is longer than MOST_LINE."""

    number: int
    begin: int
    content: bytes | None


class Lines:
    """An input, open until `close`. What is piped in is copied to a file without a name first: it is read twice.

    name  what errors call it
    """

    def __init__(self, path: str) -> None:
        """path: `-` is standard input. Raises ModelError for a file that cannot be read, UsageError for no file."""
        self.name = "standard input" if path == "-" else path
        self._file = _spooled() if path == "-" else _opened(Path(path).expanduser(), path)

    def __iter__(self) -> Iterator[Line]:
        """Every line that is not blank."""
        self._file.seek(0)
        number = begin = 0
        while content := self._file.readline(MOST_LINE + 1):
            number += 1
            whole: bytes | None = content
            size = len(content)
            if size > MOST_LINE:
                whole = None
                while not content.endswith(b"\n") and (content := self._file.readline(PIECE)):
                    size += len(content)
            if whole is None or whole.strip():
                yield Line(number, begin, None if whole is None else _bare(whole, number))
            begin += size

    def at(self, begin: int, number: int) -> Line:
        """The line that begins there; one that `__iter__` gave with its content."""
        self._file.seek(begin)
        return Line(number, begin, _bare(self._file.readline(MOST_LINE + 1), number))

    def is_file(self, path: Path) -> bool:
        """Whether a path is this very input, by whatever name."""
        try:
            return path.samefile(self._file.name) if isinstance(self._file.name, str) else False
        except OSError:
            return False

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def _bare(content: bytes, number: int) -> bytes:
    content = content.rstrip(b"\r\n")
    return content.removeprefix(BOM) if number == 1 else content


def _opened(path: Path, called: str) -> BinaryIO:
    try:
        file = path.open("rb")
        if not file.seekable():
            with file:
                return _copy(file)
        return file
    except FileNotFoundError as error:
        raise ModelError(f"{called}: no such file.", "Check the path.") from error
    except IsADirectoryError as error:
        raise UsageError(f"{called} is a directory.", "Name a file of JSON lines.") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{called}: {getattr(error, 'strerror', None) or error}.", "Check the path.") from error


def _spooled() -> BinaryIO:
    if sys.stdin is None or sys.stdin.closed:
        raise UsageError("standard input is closed.", "Pipe lines in, or name a file.")
    if sys.stdin.isatty():
        raise UsageError("standard input is a terminal.", "Pipe lines in, or name a file.")
    return _copy(sys.stdin.buffer)


def _copy(source: BinaryIO) -> BinaryIO:
    spool = tempfile.TemporaryFile()  # noqa: SIM115  (for as long as the job runs)
    try:
        shutil.copyfileobj(source, spool, PIECE)
    except OSError as error:
        raise ModelError(f"cannot keep what is piped in: {error.strerror}.", "Set TMPDIR, or name a file.") from error
    return spool
