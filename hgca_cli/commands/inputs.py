"""What a person gives to read: prompt words, files, a pipe. Exact, or refused by name."""

from __future__ import annotations

import glob
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from hgca_cli.errors import ModelError, UsageError

MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Document:
    """A text to put before the question. name: one line of valid Unicode, whatever the file is called."""

    name: str
    text: str


def prompt_text(text: str, what: str) -> str:
    """Text from the command line. Raises UsageError if the shell passed bytes that are not UTF-8."""
    if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        raise UsageError(f"{what}: the text is not valid UTF-8.", "Check the terminal's encoding, or use --file.")
    return text


def read_document(path: str) -> Document:
    """A text file; `-` is standard input. A byte order mark is dropped.

    Raises ModelError for a file that is not there or cannot be read, UsageError for one that is not text.
    """
    if path == "-":
        return Document("standard input", read_stdin())
    file = Path(path).expanduser()
    name = " ".join(os.fsencode(file.name).decode("utf-8", "replace").split())
    return Document(name, read_text(file, path))


def meant_by(path: str) -> list[str]:
    """Files that are meant by a pattern or by names with commas between, where no file is called so; else none."""
    try:
        if Path(path).expanduser().exists():
            return []
        if "," in path and all(Path(one).expanduser().is_file() for one in path.split(",")):
            return path.split(",")
        found = glob.glob(str(Path(path).expanduser()), recursive=True) if glob.has_magic(path) else []  # noqa: PTH207
        return sorted(one for one in found if Path(one).is_file())
    except (OSError, ValueError, RuntimeError):
        return []


def read_text(file: Path, called: str) -> str:
    """The text of a file, which errors call as the person did. Errors as of `read_document`."""
    try:
        if file.stat().st_size > MOST_BYTES:
            raise UsageError(f"{called} is larger than 1 GiB.", "No context holds so much text.")
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{called}: no such file.", "Check the path.") from error
    except IsADirectoryError as error:
        raise UsageError(f"{called} is a directory.", "Name its files one by one.") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{called}: {getattr(error, 'strerror', None) or error}.", "Check the path.") from error
    return decode_text(content, called)


def decode_text(content: bytes, name: str) -> str:
    """UTF-8 text. Raises UsageError, naming the place, for bytes that are not."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text (byte {error.start:,}).", "Convert it first, e.g. with iconv."
        ) from error
    if "\0" in text:
        raise UsageError(f"{name} holds NUL bytes: not a text file.", "Extract its text first.")
    return text


def read_stdin() -> str:
    """All of standard input. Raises UsageError if it is closed or a terminal."""
    if sys.stdin is None or sys.stdin.closed:
        raise UsageError("standard input is closed.", "Pipe a text in, or name a file.")
    if sys.stdin.isatty():
        raise UsageError("standard input is a terminal.", "Pipe a text in, or name a file.")
    try:
        content = sys.stdin.buffer.read()
    except OSError as error:
        raise UsageError(f"standard input: {error.strerror}.", "Pipe a text in, or name a file.") from error
    return decode_text(content, "standard input")


def stdin_is_piped() -> bool:
    """Whether somebody means standard input to be read: it is a pipe or a file, no terminal, nor /dev/null."""
    if not stdin_has_text():
        return False
    try:
        return not stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError):  # no file behind it
        return True


def stdin_has_text() -> bool:
    """Whether something was piped in: standard input is open and no terminal."""
    return sys.stdin is not None and not sys.stdin.closed and not sys.stdin.isatty()
