"""Torch tensors in, C kernels out: the only importer of the compiled module. The contract is native/hgca.h."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hgca_cli.errors import ModelError, NativeError, UsageError

try:
    from hgca_cli._native import ffi, lib
except ImportError as error:  # a source tree without the built module
    raise ModelError(
        f"the C library is not built ({error}).", "Install the package: pip install -c constraints.txt -e ."
    ) from error

_DTYPES = {torch.float32: lib.HGCA_F32, torch.bfloat16: lib.HGCA_BF16, torch.float16: lib.HGCA_F16}


class OutOfMemoryError(NativeError):
    """malloc, mmap or mprotect said no."""


class Partial(NamedTuple):
    """Attention over some rows of the store."""

    out: Tensor  # f32 [heads, value_dim], zeros over no rows
    lse: Tensor  # f32 [heads], natural; -inf over no rows


@dataclass(slots=True)
class Attention:
    """One query token of one sequence over rows of CPU memory.

    query      f32 [heads, key_dim], contiguous, not scaled
    key        [kv_heads, rows, key_dim]; value [kv_heads, rows, value_dim]: f32, bf16 or f16, any head and row strides,
               numbers of a row next to each other
    row_start  i64 [lists + 1] and row i32: the rows each list of query heads reads; None reads every row
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    softcap: float = 0.0
    row_start: Tensor | None = None
    row: Tensor | None = None


class Pending:
    """Jobs on their way. Tensors stay alive until `wait` has returned; dropped without it, it waits."""

    def __init__(self, ticket: int, jobs: Sequence[Attention], results: list[Partial]) -> None:
        self._ticket = ticket
        self._jobs: Sequence[Attention] | None = jobs
        self._results = results
        _outstanding.add(self)

    def wait(self) -> list[Partial]:
        """One partial per job. The calling thread helps; may be called again."""
        if self._jobs is not None:
            jobs, self._jobs = self._jobs, None
            check(lib.hgca_wait(self._ticket))
            del jobs
        return self._results

    def __del__(self) -> None:
        if self._jobs is not None:
            lib.hgca_wait(self._ticket)


_outstanding: weakref.WeakSet[Pending] = weakref.WeakSet()


@atexit.register
def _finish() -> None:
    """The interpreter may not take memory away that a thread still reads."""
    for pending in list(_outstanding):
        pending.wait()


def check(status: int) -> None:
    """Raises NativeError (OutOfMemoryError) for a status that is not HGCA_OK."""
    if status == lib.HGCA_OK:
        return
    text = ffi.string(lib.hgca_status_text(status)).decode()
    kind = OutOfMemoryError if status == lib.HGCA_NO_MEMORY else NativeError
    raise kind(f"the C library refused a call: {text}.")


def start(jobs: Sequence[Attention]) -> Pending:
    """Hand jobs to the worker threads; the GIL is free while they work.

    Raises NativeError for shapes, dtypes or rows that do not fit together; nothing was started then.
    """
    described = ffi.new("hgca_attention[]", len(jobs))
    results = [_describe(job, described[index]) for index, job in enumerate(jobs)]
    ticket = ffi.new("int64_t *")
    check(lib.hgca_start(described, len(jobs), ticket))
    return Pending(ticket[0], jobs, results)


def attend(job: Attention) -> Partial:
    """Start one job and wait for it."""
    return start([job]).wait()[0]


def _describe(job: Attention, to: Any) -> Partial:
    query, key, value = job.query, job.key, job.value
    heads, key_dim = query.shape
    kv_heads, rows, value_dim = value.shape
    if (
        key.shape != (kv_heads, rows, key_dim)
        or key.dtype != value.dtype
        or key.dtype not in _DTYPES
        or query.dtype != torch.float32
        or not query.is_contiguous()
        or (rows > 0 and not (_packed(key) and _packed(value)))
        or not (query.device.type == key.device.type == value.device.type == "cpu")
    ):
        raise NativeError(f"attention over {_say(query)}, {_say(key)}, {_say(value)} does not fit together.")
    size = key.element_size()
    result = torch.empty(heads * (value_dim + 1))
    to.key, to.value, to.query = _at(key), _at(value), _at(query)
    to.key_head_stride, to.key_row_stride = key.stride(0) * size, key.stride(1) * size
    to.value_head_stride, to.value_row_stride = value.stride(0) * size, value.stride(1) * size
    to.rows, to.kv_heads, to.heads = rows, kv_heads, heads
    to.key_dim, to.value_dim, to.dtype = key_dim, value_dim, _DTYPES[key.dtype]
    to.scale, to.softcap = job.scale, job.softcap
    if job.row_start is not None:
        start_, row = job.row_start, job.row
        if row is None or start_.dtype != torch.int64 or row.dtype != torch.int32 or not row.is_contiguous():
            raise NativeError("row lists are i64 starts and contiguous i32 rows.")
        to.lists, to.row_start, to.row = len(start_) - 1, _at(start_, "int64_t *"), _at(row, "int32_t *")
        if to.lists < 1 or not start_.is_contiguous() or int(start_[-1]) > len(row):
            raise NativeError("row lists end beyond their rows.")
    to.out = _at(result)
    to.lse = to.out + heads * value_dim
    return Partial(result[: heads * value_dim].view(heads, value_dim), result[heads * value_dim :])


def _packed(rows: Tensor) -> bool:
    return rows.shape[2] == 1 or rows.stride(2) == 1


def _at(tensor: Tensor, kind: str = "float *") -> Any:
    return ffi.cast(kind, tensor.data_ptr())


def _say(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def threads() -> int:
    """Threads that work on a job, the waiting one included."""
    return int(lib.hgca_threads())


def set_threads(count: int) -> None:
    """Raises UsageError outside 1 .. 1024."""
    if lib.hgca_set_threads(max(-1, min(count, 1 << 30))) != lib.HGCA_OK:
        raise UsageError(f"--threads: {count} is out of range.", "Give 1 to 1024.")


def share_openmp(on: bool) -> bool:
    """Work with torch's own threads instead of ours, in `wait`: for a device that is the CPU. False if torch has none."""
    return bool(lib.hgca_share_openmp(int(on)) == lib.HGCA_OK)


def isas() -> tuple[str, ...]:
    """Instruction sets this machine has, fastest first; the last is "scalar"."""
    return tuple(ffi.string(lib.hgca_isas()).decode().split(","))


def isa() -> str:
    """The instruction set in use."""
    return str(ffi.string(lib.hgca_isa()).decode())


def use_isa(name: str) -> None:
    """Choose one of `isas()`. Not while jobs run. Raises UsageError for another name."""
    if lib.hgca_use_isa(name.encode()) != lib.HGCA_OK:
        raise UsageError(
            f"HGCA_ISA: this machine has no instruction set {name!r}.", f"Choose from {', '.join(isas())}."
        )


class Reservation:
    """Address space that takes memory only as it is committed and touched. Units: bytes."""

    def __init__(self, size: int) -> None:
        base = ffi.new("void **")
        check(lib.hgca_reserve(size, base))
        # the finalizer lives as long as the last view: views hold the buffer, the buffer holds the memory
        self._base = ffi.gc(base[0], lambda at, size=size: lib.hgca_release(at, size), size=0)
        self._size = size

    def commit(self, offset: int, size: int) -> None:
        """Make bytes offset .. offset + size - 1 usable; they read as zeros. Raises OutOfMemoryError."""
        assert offset >= 0 and offset + size <= self._size
        check(lib.hgca_commit(self._base, offset, size))

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


if _wanted := os.environ.get("HGCA_ISA"):
    use_isa(_wanted)
