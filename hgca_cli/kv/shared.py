"""Rows that several arrays begin with are in memory once: in a file's pages, which all of them map, each until it writes there.

The file has no name, and is gone with whoever maps it last: the system counts them. Where there are no such files (they
are Linux's) nothing is shared, and rows are copied.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import IO, NamedTuple

from hgca_cli.errors import DoesNotFitError
from hgca_cli.kv.layout import IN_MEMORY, in_common
from hgca_cli.kv.reservation import HUGE_PAGE, round_up

MOST_AT_ONCE = 1 << 30  # bytes of one write: Linux takes no more than 2 GiB


class Part(NamedTuple):
    """Of every head of an array so many bytes, whole pages: head h's are `file`'s from `at` + h * `apart` on."""

    file: IO[bytes]
    at: int
    apart: int
    size: int


class SharedFiles:
    """What one beginning's arrays are written to: a file in memory, and one beside the stores that are in files."""

    def __init__(self) -> None:
        self._files: dict[str | None, IO[bytes]] = {}
        self._ends: dict[str | None, int] = {}

    def put(self, heads: Sequence[memoryview], folder: str | None) -> Part | None:
        """Write the same number of bytes of every head, whole pages of it.

        folder  where the file is; None: in memory. None is returned where there are too few bytes to share, or no such files.

        Raises DoesNotFitError; nothing refers to what was written then.
        """
        size = in_common(len(heads[0]) if heads else 0)
        if not size or (folder is None and not IN_MEMORY):
            return None
        unit = HUGE_PAGE if size >= HUGE_PAGE else mmap.PAGESIZE  # as the arrays' own heads begin
        apart = round_up(size, unit)
        begin = round_up(self._ends.get(folder, 0), unit)
        try:
            file = self._file(folder)
            for head, content in enumerate(heads):
                _write(file.fileno(), content[:size], begin + head * apart)
        except OSError as error:
            where = f"--store-dir {folder}: no room" if folder is not None else "no memory"
            raise DoesNotFitError(
                f"{where} for what several rows begin with ({error.strerror}).", "Lower --concurrency, or --ctx."
            ) from error
        self._ends[folder] = begin + len(heads) * apart
        return Part(file, begin, apart, size)

    def _file(self, folder: str | None) -> IO[bytes]:
        if folder not in self._files:
            if folder is None:
                self._files[None] = os.fdopen(os.memfd_create("hgca-shared"), "w+b", buffering=0)
            else:
                self._files[folder] = tempfile.TemporaryFile(dir=folder, prefix="hgca-shared-", buffering=0)  # noqa: SIM115 (open as long as it is used)
        return self._files[folder]


def _write(file: int, content: memoryview, at: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(file, content[done : done + MOST_AT_ONCE], at + done)
