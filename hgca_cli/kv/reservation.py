"""Memory of rows: address space first, memory as rows come, or a file in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import IO, Any

import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.native import ffi, lib

HUGE_PAGE = 2 << 20


class Reservation:
    """Address space that takes memory only as it is committed and touched. Units: bytes.

    file    an empty file that is the memory; it becomes as long as the address space, with holes
    before  called before the memory goes, which is with the last view; it may not hold any
    """

    def __init__(self, size: int, file: IO[bytes] | None = None, before: Callable[[], None] = lambda: None) -> None:
        base = ffi.new("void **")
        self._file = file
        if file is None:
            native.check(lib.hgca_reserve(size, base))
        else:
            file.truncate(size)
            native.check(lib.hgca_reserve_file(size, file.fileno(), base))
        # the finalizer lives as long as the last view: views hold the buffer, the buffer holds the memory
        self._base = ffi.gc(base[0], lambda at: _release(at, size, before), size=0)
        self._size = size

    def commit(self, offset: int, size: int) -> None:
        """Make bytes offset .. offset + size - 1 usable; they read as zeros. Raises OutOfMemoryError, NoSpaceError."""
        assert offset >= 0 and size >= 0 and offset + size <= self._size
        if self._file is None:
            native.check(lib.hgca_commit(self._base, offset, size))
        else:
            native.check(lib.hgca_commit_file(self._base, self._file.fileno(), offset, size))

    def join_pages(self, offset: int) -> None:
        """Let the 2 MiB from `offset` on, a multiple of that, be one page if the system can. Raises OutOfMemoryError."""
        assert self._file is None and offset + HUGE_PAGE <= self._size and offset % HUGE_PAGE == 0
        native.check(lib.hgca_join_pages(self._base, offset))

    def content(self, offset: int, size: int) -> memoryview:
        """Bytes offset .. offset + size - 1."""
        assert offset >= 0 and size >= 0 and offset + size <= self._size
        return memoryview(ffi.buffer(self._base, self._size))[offset : offset + size]

    def map(self, offset: int, size: int, file: IO[bytes], at: int) -> None:
        """Have a file's bytes, from `at` on, in place of what is there; what is written there is not in the file, which may be closed.
        Whole pages. Raises OutOfMemoryError.
        """
        assert offset >= 0 and size >= 0 and offset + size <= self._size
        native.check(lib.hgca_map(self._base, offset, size, file.fileno(), at))

    def advise(self, in_order: bool) -> None:
        """Of a file: how it will be read next, in order or here and there."""
        if self._file is not None:
            native.check(lib.hgca_advise(self._base, self._size, in_order))

    def tensor(self, dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int], offset: int) -> Tensor:
        """A view of the memory: strides in numbers, offset in bytes. Only committed parts may be touched."""
        if self._size < dtype.itemsize or 0 in shape:
            return torch.empty(tuple(shape), dtype=dtype)
        whole = torch.frombuffer(
            ffi.buffer(self._base, self._size),
            dtype=dtype,
            count=(self._size - offset) // dtype.itemsize,
            offset=offset,
        )
        return whole.as_strided(tuple(shape), tuple(strides))


def round_up(count: int, unit: int) -> int:
    """The next multiple of a unit."""
    return -(-count // unit) * unit


def _release(at: Any, size: int, before: Callable[[], None]) -> None:
    try:
        before()
    finally:
        lib.hgca_release(at, size)
