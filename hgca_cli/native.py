"""Torch tensors in, C kernels out: the only importer of the compiled module. The contract is native/hgca.h."""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hgca_cli.errors import ModelError, NativeError, UsageError

try:
    from hgca_cli._native import ffi as ffi
    from hgca_cli._native import lib as lib
except ImportError as error:  # a source tree without the built module
    raise ModelError(
        f"the C library is not built ({error}).", "Install the package: pip install -c constraints.txt -e ."
    ) from error

DTYPES = {
    torch.float32: lib.HGCA_F32,
    torch.bfloat16: lib.HGCA_BF16,
    torch.float16: lib.HGCA_F16,
    torch.int8: lib.HGCA_I8,
}


class OutOfMemoryError(NativeError):
    """malloc, mmap or mprotect said no."""


class NoSpaceError(NativeError):
    """The file system has no room for a file to grow."""


class Partial(NamedTuple):
    """Attention over some rows of the store."""

    out: Tensor  # f32 [heads, value_dim] ([tokens, heads, value_dim] for several tokens), zeros over no rows
    lse: Tensor  # f32 [heads] ([tokens, heads]), natural; -inf over no rows


@dataclass(slots=True)
class Attention:
    """Query tokens of one sequence over rows of CPU memory.

    query      f32 [heads, key_dim], or [tokens, heads, key_dim] (each row is read once for all tokens); contiguous,
               not scaled
    key        [kv_heads, rows, key_dim]; value [kv_heads, rows, value_dim]: f32, bf16, f16 or i8, any head and row
               strides, numbers of a row next to each other
    row_start  i64 [lists + 1] and row i32: the rows each list of query heads reads; None reads every row
    run        i32, as long as row: row i stands for the run[i] rows from row[i] on; None: 1 each
    key_scale  f32 [kv_heads, rows], what the numbers of an i8 row are to be multiplied with; value_scale likewise, with
               the same strides
    causal     the last `tokens` rows are the tokens' own: token t sees rows 0 .. rows - tokens + t
    joins      as of a Step
    only_read  its rows are read and nothing is computed: the result is as over no rows
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    softcap: float = 0.0
    row_start: Tensor | None = None
    row: Tensor | None = None
    run: Tensor | None = None
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None
    causal: bool = False
    joins: bool = False
    only_read: bool = False


class Rows:
    """Rows that are read again and again, checked and described once; how many of them are in use changes.

    key, value, key_scale, value_scale  as in Attention, with all the rows there may ever be
    """

    def __init__(
        self, key: Tensor, value: Tensor, key_scale: Tensor | None = None, value_scale: Tensor | None = None
    ) -> None:
        self.kept = (key, value, key_scale, value_scale)
        self.described = ffi.new("hgca_attention *")
        anyone = torch.zeros(key.shape[0], key.shape[2])
        _describe(Attention(anyone, key, value, 1.0, key_scale=key_scale, value_scale=value_scale), self.described)
        self.capacity, self.key_dim, self.value_dim = key.shape[1], key.shape[2], value.shape[2]

    def of_heads(self, heads: slice) -> Rows:
        """The same rows, of some KV heads."""
        if heads == slice(0, len(self.kept[0])):
            return self
        key, value, *scales = (None if one is None else one[heads] for one in self.kept)
        assert key is not None and value is not None
        return Rows(key, value, *scales)

    def put(self, row: int, key: Tensor, value: Tensor) -> bool:
        """Write one row: key [kv_heads, 1, key_dim], value likewise. False, and nothing was, if their numbers lie apart."""
        if not (packed(key) and packed(value) and key.is_cpu and value.is_cpu and key.dtype is value.dtype in DTYPES):
            return False
        size, kind = key.element_size(), DTYPES[key.dtype]
        ends = key.data_ptr(), key.stride(0) * size, value.data_ptr(), value.stride(0) * size
        check(lib.hgca_put_row(self.described, row, kind, *ends))
        return True


class Lists:
    """Which rows each list of query heads reads, checked once. row_start, row, run as in Attention."""

    def __init__(self, row_start: Tensor, row: Tensor | None, run: Tensor | None = None) -> None:
        self.kept = (row_start, row, run)
        self.described = ffi.new("hgca_attention *")
        _describe_lists(row_start, row, run, self.described)


@dataclass(slots=True)
class Step:
    """One query token over the first `count` of some rows, or those of lists: an Attention that costs Python less.

    query   f32 [heads, key_dim], contiguous, not scaled
    joins   its rows are more rows of the job before it, for the same heads: that one's result is over both, and its own
    """

    query: Tensor
    rows: Rows
    count: int
    scale: float
    softcap: float = 0.0
    lists: Lists | None = None
    joins: bool = False


class Pending:
    """Jobs on their way. Their tensors stay alive until `wait` has returned; dropped without it, it waits."""

    def __init__(self, kept: list[Any], results: list[Partial]) -> None:
        self.ticket = ffi.new("int64_t *")  # written by hgca_start, so that Ctrl-C finds no gap; 0: nothing runs
        self._kept = kept
        self._results = results
        _outstanding.add(self)

    def wait(self) -> list[Partial]:
        """One partial per job. The calling thread helps; may be called again, by one thread at a time.

        Raises NativeError in a child process for jobs the parent started.
        """
        if self.ticket[0]:
            status = lib.hgca_wait(self.ticket[0])
            self.ticket[0] = 0
            self._kept.clear()
            check(status)
        return self._results

    def __del__(self) -> None:
        if self.ticket[0]:
            lib.hgca_wait(self.ticket[0])


_outstanding: weakref.WeakSet[Pending] = weakref.WeakSet()


@atexit.register
def _finish() -> None:
    """The interpreter may not take memory away that a thread still reads."""
    for pending in list(_outstanding):
        with contextlib.suppress(NativeError):  # a forked child: nothing of the parent's runs here
            pending.wait()


def check(status: int) -> None:
    """Raises NativeError (OutOfMemoryError) for a status that is not HGCA_OK."""
    if status == lib.HGCA_OK:
        return
    text = ffi.string(lib.hgca_status_text(status)).decode()
    kinds = {lib.HGCA_NO_MEMORY: OutOfMemoryError, lib.HGCA_NO_SPACE: NoSpaceError}
    raise kinds.get(status, NativeError)(f"the C library refused a call: {text}.")


def start(jobs: Sequence[Attention | Step]) -> Pending:
    """Hand jobs to the worker threads; the GIL is free while they work, and jobs may not be changed.

    Raises NativeError for shapes, dtypes or rows that do not fit together; nothing was started then.
    """
    described = ffi.new("hgca_attention[]", len(jobs))
    results: list[Partial] = []
    kept: list[Any] = [*jobs]
    for index, job in enumerate(jobs):
        if isinstance(job, Attention):
            partial = _describe(job, described[index])
            memory: Any = partial  # its views keep it
        else:
            memory, partial = result_of(describe_step(job, described, index), job.query.shape[0], job.rows.value_dim)
        kept.append(memory)
        results.append(results[-1] if job.joins and results else partial)
    pending = Pending(kept, results)
    check(lib.hgca_start(described, len(jobs), pending.ticket))
    return pending


def attend(job: Attention) -> Partial:
    """Start one job and wait for it."""
    return start([job]).wait()[0]


def _describe(job: Attention, to: Any) -> Partial:
    """Fills the C description; memory for the result is taken in one piece, as this runs once per layer and token."""
    query, key, value = job.query, job.key, job.value
    if (
        query.dim() not in (2, 3)
        or key.dim() != 3
        or value.dim() != 3
        or key.shape != (*value.shape[:2], query.shape[-1])
        or key.dtype != value.dtype
        or key.dtype not in DTYPES
        or query.dtype != torch.float32
        or not query.is_contiguous()
        or not (packed(key) and packed(value))
        or not (query.is_cpu and key.is_cpu and value.is_cpu)
    ):
        raise NativeError(f"attention over {say(query)}, {say(key)}, {say(value)} does not fit together.")
    heads, key_dim = query.shape[-2:]
    tokens = query.shape[0] if query.dim() == 3 else 1
    kv_heads, rows, value_dim = value.shape
    size = key.element_size()
    result = torch.empty(tokens * heads * (value_dim + 1), dtype=torch.float32, device="cpu")
    to.key, to.value, to.query = address(key), address(value), address(query)
    to.key_head_stride, to.key_row_stride = key.stride(0) * size, key.stride(1) * size
    to.value_head_stride, to.value_row_stride = value.stride(0) * size, value.stride(1) * size
    to.rows, to.kv_heads, to.heads = rows, kv_heads, heads
    to.key_dim, to.value_dim, to.dtype = key_dim, value_dim, DTYPES[key.dtype]
    to.scale, to.softcap = job.scale, job.softcap
    to.tokens, to.causal, to.joins, to.only_read = tokens, job.causal, job.joins, job.only_read
    if job.row_start is not None:
        _describe_lists(job.row_start, job.row, job.run, to)
    if key.dtype == torch.int8:
        _describe_scales(job.key_scale, job.value_scale, (kv_heads, rows), to)
    to.out = address(result)
    to.lse = to.out + tokens * heads * value_dim
    out, lse = result[: tokens * heads * value_dim], result[tokens * heads * value_dim :]
    return Partial(out.view(*query.shape[:-1], value_dim), lse.view(query.shape[:-1]))


def describe_step(job: Step, all_described: Any, index: int) -> Any:
    """As _describe, of what changes from token to token, but for the result's memory; the description it fills."""
    query, rows = job.query, job.rows
    heads, key_dim = query.shape
    fits = key_dim == rows.key_dim and query.dtype is torch.float32 and query.is_cpu and query.is_contiguous()
    if not (fits and 0 <= job.count <= rows.capacity):
        raise NativeError(f"attention of {say(query)} over {job.count} of {say(rows.kept[0])} does not fit together.")
    all_described[index] = rows.described[0]
    to = all_described[index]
    to.rows, to.heads, to.joins, to.scale, to.softcap = job.count, heads, job.joins, job.scale, job.softcap
    to.query = address(query)
    if job.lists is not None:
        lists = job.lists.described
        to.lists, to.row_start, to.row, to.run = lists.lists, lists.row_start, lists.row, lists.run
    return to


def result_of(to: Any, heads: int, value_dim: int) -> tuple[Tensor, Partial]:
    """Memory for one token's result, taken in one piece and named in a description; and the result in it."""
    floats = heads * value_dim
    result = torch.empty(floats + heads, dtype=torch.float32, device="cpu")
    to.out = address(result)
    to.lse = to.out + floats
    return result, Partial(result[:floats].view(heads, -1), result[floats:])


def _describe_scales(key: Tensor | None, value: Tensor | None, shape: tuple[int, int], to: Any) -> None:
    if (
        key is None
        or value is None
        or key.shape != shape
        or value.shape != shape
        or key.stride() != value.stride()
        or not (key.dtype == value.dtype == torch.float32)
        or not (key.is_cpu and value.is_cpu)
    ):
        raise NativeError("int8 rows need f32 scales [kv_heads, rows] of keys and of values, with the same strides.")
    to.key_scale, to.value_scale = address(key), address(value)
    to.scale_head_stride, to.scale_row_stride = key.stride(0) * 4, key.stride(1) * 4


def _describe_lists(row_start: Tensor, row: Tensor | None, run: Tensor | None, to: Any) -> None:
    if (
        row is None
        or row_start.dtype != torch.int64
        or row.dtype != torch.int32
        or not (row_start.is_contiguous() and row.is_contiguous())
        or not (row_start.is_cpu and row.is_cpu)
        or row_start.dim() != 1
        or len(row_start) < 2
    ):
        raise NativeError("row lists are two or more i64 starts and i32 rows, contiguous, on the CPU.")
    if int(row_start[-1]) > row.numel():
        raise NativeError("row lists end beyond their rows.")
    if run is not None:
        if run.shape != row.shape or run.dtype != torch.int32 or not (run.is_contiguous() and run.is_cpu):
            raise NativeError("runs are as many i32 lengths as there are rows, contiguous, on the CPU.")
        to.run = address(run, "int32_t *")
    to.lists, to.row_start, to.row = len(row_start) - 1, address(row_start, "int64_t *"), address(row, "int32_t *")


def packed(rows: Tensor) -> bool:
    """Whether the numbers of a row lie next to each other."""
    return rows.stride(2) == 1 or rows.shape[2] == 1 or rows.numel() == 0


def address(tensor: Tensor, kind: str = "float *") -> Any:
    """Where a tensor's numbers begin, for the C library."""
    return ffi.cast(kind, tensor.data_ptr())


def say(tensor: Tensor) -> str:
    """Dtype and shape, for an error."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def threads() -> int:
    """Threads that work on a job, the waiting one included."""
    return int(lib.hgca_threads())


def set_threads(count: int) -> None:
    """Raises UsageError outside 1 .. 1024."""
    if lib.hgca_set_threads(max(-1, min(count, 1 << 30))) != lib.HGCA_OK:
        raise UsageError(f"--threads: {count} is out of range.", "Give 1 to 1024.")


def usable_processors(root: str = "") -> int:
    """Threads this process can keep busy: physical cores of its affinity mask, within its cgroups' CPU quota.

    `root` stands before /proc and /sys (tests).
    """
    return int(lib.hgca_usable_processors(root.encode()))


def share_openmp(on: bool) -> bool:
    """Work with torch's own threads instead of ours, in `wait`: for a device that is the CPU. False if torch has none."""
    return bool(lib.hgca_share_openmp(int(on)) == lib.HGCA_OK)


def trim() -> None:
    """Give the system what malloc keeps of freed memory: torch's work on prompts leaves a hundred megabytes in pieces."""
    lib.hgca_trim()


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


if _wanted := os.environ.get("HGCA_ISA"):
    use_isa(_wanted)
