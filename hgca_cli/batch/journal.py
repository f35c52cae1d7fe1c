"""The output of a job: a line for every row that is finished, on the disk before the next one; and what it is the output of.

    OUT                  one JSON object per line, appended and fsynced
    OUT.manifest.json    model and settings, so that a job goes on only as what it was

The only damage a crash can do is at the end: a line without its newline, or zeros a file system left there. Both are cut
off, and the row is done again. Whoever writes has OUT locked, until the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from hgca_cli import durable
from hgca_cli.errors import DoesNotFitError, ModelError, UsageError

PIECE = 1 << 20
RESUME = "Free some space, and run the same command again: it goes on with the rows that are missing."


class Journal:
    """An output file, locked and open for appending.

    path  never a link's target that changes: what is open is compared with what is there before every line
    made  it was not there before
    """

    def __init__(self, path: Path) -> None:
        """Open or create. Raises UsageError if another process writes it or it is no file, ModelError if it cannot be written."""
        self.path = path
        self._size = 0
        self._handle, self.made = _open_locked(path)
        try:
            if not stat.S_ISREG(os.fstat(self._handle).st_mode):
                raise UsageError(f"{path} is not a file.", "Name another with -o, or -o - for standard output.")
            self._size = os.fstat(self._handle).st_size
        except BaseException:
            self.close()
            raise

    @property
    def empty(self) -> bool:
        """Whether nothing is in it."""
        return self._size == 0

    def repair(self) -> int:
        """Cut off an unfinished last line; returns the bytes that went. What is not ours is left as it is: UsageError."""
        end = self._size
        while end and (block := os.pread(self._handle, min(PIECE, end), max(0, end - PIECE))):
            kept = len(block.rstrip(b"\0"))
            end -= len(block) - kept
            if kept:
                break
        whole = _after_last_newline(self._handle, end)
        if self._size and not whole and os.pread(self._handle, 1, 0) not in (b"{", b"\0"):
            raise UsageError(f"{self.path} is not the output of a job.", "Name another file, or give --overwrite.")
        gone = self._size - whole
        if gone:
            with _writing(self.path):
                os.ftruncate(self._handle, whole)
                os.fsync(self._handle)
            self._size = whole
        return gone

    def records(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """The lines, and what they say. Raises UsageError for one that is none of ours. Only after `repair`."""
        with os.fdopen(os.dup(self._handle), "rb") as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                try:
                    record = json.loads(line)
                    if not isinstance(record, dict) or not isinstance(record.get("hgca"), dict):
                        raise ValueError
                except (ValueError, RecursionError) as error:
                    raise UsageError(
                        f"{self.path}: line {number:,} is not a line of a job's output.",
                        "Name another file, or give --overwrite.",
                    ) from error
                yield line, record

    def append(self, line: bytes) -> None:
        """One line, on the disk when this returns; or nothing of it.

        Raises DoesNotFitError for a full disk, ModelError if the file was removed or cannot be written.
        """
        self._check_there()
        try:
            with _writing(self.path):
                done = 0
                while done < len(line):
                    done += os.pwrite(self._handle, line[done:], self._size + done)
                os.fsync(self._handle)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self._size)
            raise
        self._size += len(line)

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> int:
        """Leave out the lines that are not wanted; returns how many. The file is replaced as a whole, or not at all."""
        kept, gone = [], 0
        for line, record in self.records():
            if wanted(record):
                kept.append(line)
            else:
                gone += 1
        if gone:
            self._replace(kept)
        return gone

    def sort(self, place: Callable[[dict[str, Any]], int]) -> None:
        """Put the lines in the order of their places, those of one place as they are. The file is replaced as a whole, or not at all.

        Errors as of `append`.
        """
        found, begin = [], 0
        for line, record in self.records():
            found.append((place(record), begin, len(line)))
            begin += len(line)
        if any(one > after for one, after in pairwise(found)):
            self._check_there()
            self._replace(os.pread(self._handle, length, at) for _, at, length in sorted(found))

    def clear(self) -> None:
        """Nothing is in it any more."""
        with _writing(self.path):
            os.ftruncate(self._handle, 0)
            os.fsync(self._handle)
        self._size = 0

    def remove(self) -> None:
        """It is gone, if it was made and nothing is in it. Whoever has opened it meanwhile finds it gone once it is closed."""
        if self.made and self.empty:
            with contextlib.suppress(OSError, ModelError):
                self._check_there()
                self.path.unlink()

    def close(self) -> None:
        """Others may write."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _replace(self, lines: Iterable[bytes]) -> None:
        import fcntl

        there = self.path.resolve()  # where it is a link, that stays
        spare = there.with_name(f".{there.name}.new")
        with _writing(spare):
            handle = os.open(spare, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.fchmod(handle, stat.S_IMODE(os.fstat(self._handle).st_mode))
                for line in lines:
                    _write_all(handle, line)
                os.fsync(handle)
                size = os.fstat(handle).st_size
                spare.replace(there)
                durable.sync_folder(there.parent)
            except BaseException:
                os.close(handle)
                with contextlib.suppress(OSError):
                    spare.unlink()
                raise
        os.close(self._handle)
        self._handle, self._size = handle, size

    def _check_there(self) -> None:
        mine = os.fstat(self._handle)
        try:
            there = self.path.stat()
        except OSError:
            there = None
        if there is None or (there.st_ino, there.st_dev) != (mine.st_ino, mine.st_dev):
            raise ModelError(f"{self.path} was removed or replaced while the job ran.", "Run the same command again.")


class Manifest:
    """What an output is the output of, beside it."""

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(f"{output.name}.manifest.json")
        self._made = False

    def read(self) -> dict[str, Any] | None:
        """None if there is none. Raises UsageError for one that cannot be read."""
        try:
            value = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"{self.path} cannot be read.", "Give --overwrite to begin anew.") from error
        if not isinstance(value, dict) or value.get("version") != 1:
            raise UsageError(f"{self.path} is of another version of hgca.", "Give --overwrite to begin anew.")
        return value

    def write(self, told: Mapping[str, Any]) -> None:
        """Whole, or as it was before. Errors as of Journal.append."""
        content = json.dumps({"version": 1, **told}, indent=1, sort_keys=True).encode() + b"\n"
        self._made = self._made or not self.path.exists()
        with _writing(self.path):
            durable.replace(self.path, content)

    def remove(self) -> None:
        """It is gone, if it was not there before."""
        if self._made:
            with contextlib.suppress(OSError):
                self.path.unlink()


TOLD_LATER = ("fingerprint", "quant chosen")  # once they are known


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What an old manifest says otherwise than a new one, in words; "" if nothing."""
    for name in sorted({*new, *old} - {"version"}):
        if old.get(name) != new.get(name) and (name in new or name not in TOLD_LATER):
            was, now = (_said(one.get(name)) for one in (old, new))
            return f"{name} was {was} and is {now}"
    return ""


def _said(value: Any) -> str:
    return "not given" if value is None else json.dumps(value)[:80]


def _open_locked(path: Path) -> tuple[int, bool]:
    """A handle, and whether the file was made for it."""
    import fcntl

    while True:
        with _writing(path):
            handle, made = _open_or_make(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise UsageError(
                f"{path} is being written by another job.", "Wait for it, or name another file with -o."
            ) from error
        mine = os.fstat(handle)
        with contextlib.suppress(OSError):
            there = path.stat()
            if (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev):
                return handle, made
        os.close(handle)  # replaced between open and lock


def _open_or_make(path: Path) -> tuple[int, bool]:
    how = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
    with contextlib.suppress(FileExistsError):
        return os.open(path, how | os.O_CREAT | os.O_EXCL, 0o666), True
    return os.open(path, how | os.O_CREAT, 0o666), False  # a link that leads nowhere makes its file, too


def _after_last_newline(handle: int, end: int) -> int:
    """The bytes up to the last newline before `end`, itself included."""
    while end > 0:
        begin = max(0, end - PIECE)
        found = os.pread(handle, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _write_all(handle: int, content: bytes) -> None:
    done = 0
    while done < len(content):
        done += os.write(handle, content[done : done + PIECE])


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Inside, a disk that is full is a DoesNotFitError, a wrong path a UsageError, and another OSError a ModelError."""
    try:
        yield
    except OSError as error:
        if durable.is_full(error):
            raise DoesNotFitError(f"cannot write {path}: {error.strerror}.", RESUME) from error
        if error.errno in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
            raise UsageError(f"cannot write {path}: {error.strerror}.", "Name another file with -o.") from error
        raise ModelError(f"cannot write {path}: {error.strerror}.", "Name another file with -o.") from error
