"""Files of sessions: where they are, who may write them, and how they get there whole or not at all.

    <data>/sessions/<name>/    session.json, messages.jsonl, tokens-*.u32, kv/*.safetensors, lock

<data> is HGCA_DATA_DIR, else the user's data directory. Nothing here follows a symbolic link inside a session.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from hgca_cli import durable
from hgca_cli.errors import DoesNotFitError, ModelError, UsageError

MOST_JSON = 64 << 20
LONGEST_NAME = 100  # bytes
PRIVATE = 0o600  # the user's own


class DamagedError(ModelError):
    """Files of a session that are not what was written."""


def data_dir() -> Path:
    """Where the user's data are."""
    return Path(os.environ.get("HGCA_DATA_DIR") or platformdirs.user_data_dir("hgca")).expanduser()


def sessions_dir() -> Path:
    """Where sessions are kept, be it there or not."""
    return data_dir() / "sessions"


def check_name(name: str) -> str:
    """A session's name. Raises UsageError for one that could be more than a name of a directory."""
    good = name and all(letter.isalnum() or letter in "._-" for letter in name) and name[0] not in ".-"
    if not good or len(name.encode("utf-8", "replace")) > LONGEST_NAME:
        like = "-".join(re.findall(r"\w[\w.-]*", name[:60]))
        raise UsageError(
            f"{name[:60]!r} is no name for a session.",
            f"Use letters, digits, '.', '_' and '-', not first '.' or '-'{f', like {like}' if like else ''}.",
        )
    return name


def make_folder(path: Path) -> None:
    """A directory of the user's own. Raises UsageError if something else is there, ModelError if it cannot be made."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            durable.sync_folder(path.parent)
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise UsageError(f"{path} is not a directory.", "Move it away, or choose another name.")


def is_folder(path: Path) -> bool:
    """Whether it is a directory, and no link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def read_file(path: Path, most: int = MOST_JSON) -> bytes:
    """A regular file of at most so many bytes. Raises DamagedError for anything else, FileNotFoundError for nothing."""
    try:
        with open_regular(path) as handle, os.fdopen(os.dup(handle), "rb") as file:
            if (size := os.fstat(handle).st_size) > most:
                raise DamagedError(f"{path} has {size:,} bytes, more than it can.")
            return file.read(most)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"{path}: {error.strerror}.") from error


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """A descriptor of a regular file. Raises DamagedError for a link, a directory, a device; OSError as of open."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamagedError(f"{path} is a symbolic link.") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise DamagedError(f"{path} is not a file.")
        yield handle
    finally:
        os.close(handle)


def write_new(path: Path, content: bytes) -> None:
    """A file under a name nobody refers to yet, and surely on the disk. Errors as of `writing`."""
    with writing(path):
        durable.write_new(path, content, PRIVATE)


def replace(path: Path, content: bytes) -> None:
    """The file holds this, or after whatever happens what it held before. Errors as of `writing`."""
    with writing(path):
        durable.replace(path, content, PRIVATE)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, a disk that is full is a DoesNotFitError, and another OSError a ModelError."""
    try:
        yield
    except OSError as error:
        if durable.is_full(error):
            raise DoesNotFitError(
                f"cannot write {path}: {error.strerror}.", "Make room (hgca sessions prune), or set HGCA_DATA_DIR."
            ) from error
        raise ModelError(
            f"cannot write {path}: {error.strerror}.", "Set HGCA_DATA_DIR to another directory."
        ) from error


class Lock:
    """A session is open for writing, until `free` or the end of the process, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError if another process, or another chat of this one, has it. The directory exists."""
        import fcntl

        file = folder / "lock"
        while True:
            with writing(file):
                self._handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self._handle)
                raise UsageError(
                    f"session {folder.name} is open in another chat.", "Leave that one, or choose another name."
                ) from error
            if self._is_there(file):
                return
            os.close(self._handle)  # removed between open and lock
            if not is_folder(folder):
                raise UsageError(f"session {folder.name} was just removed.", "Try again.")

    def free(self) -> None:
        """Others may write."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _is_there(self, file: Path) -> bool:
        try:
            found, mine = file.lstat(), os.fstat(self._handle)
        except OSError:
            return False
        return (found.st_ino, found.st_dev) == (mine.st_ino, mine.st_dev)
