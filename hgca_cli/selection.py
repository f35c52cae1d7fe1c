"""Chosen rows: what hgca_start_selected of native/hgca.h takes, prepared once per layer and refreshed for every token."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.errors import NativeError
from hgca_cli.indexing import PAGES
from hgca_cli.native import DTYPES, Step, address, ffi, lib

GATES = {"none": lib.HGCA_GATE_NONE, "scan": lib.HGCA_GATE_SCAN, "read": lib.HGCA_GATE_READ}
EVERY = 1 << 40  # more rows than there are


@dataclass(frozen=True)
class Reads:
    """What one step touched, summed over KV heads. Times are seconds of threads."""

    scanned: int  # positions scored by code
    groups: int  # groups scored by their mean key
    read: int  # rows read exactly
    estimated: int  # groups that entered as an estimate
    bytes: int  # of the store and its index
    group_seconds: float
    scan_seconds: float
    choose_seconds: float
    read_seconds: float


class Selection:
    """The standing description of one layer's choice, whose tensors stay where they are while rows come and go.

    heads      query heads
    keys       [kv_heads, capacity, key_dim], values likewise; scales f32 [kv_heads, capacity, 2] of i8 rows
    codes      u8 [kv_heads, blocks, block_bytes(key_dim)]; None: rows are known by their pages only
    block_means  bf16 [kv_heads, blocks, value_dim], contiguous within a head: mean value of a block's rows, for those
               not read; None: they leave no trace
    mass       share of the attention mass to be kept; least, most: rows of a KV head
    """

    def __init__(
        self,
        heads: int,
        keys: Tensor,
        values: Tensor,
        codes: Tensor | None,
        *,
        scales: Tensor | None = None,
        block_means: Tensor | None = None,
        mass: float,
        least: int = 0,
        most: int = EVERY,
    ) -> None:
        self.heads = heads
        self.kv_heads, _, self.value_dim = values.shape
        self._keep: list[Tensor | None] = [codes, block_means]
        self._rows = native.Rows(keys, values, *(() if scales is None else scales.unbind(-1)))
        self._make_own()
        job = self.job
        job.rows = self._rows.described[0]
        job.rows.heads = heads
        if codes is not None:
            job.codes, job.codes_head_stride = address(codes), codes.stride(0)
        if block_means is not None:
            job.block_mean, job.block_mean_head_stride = address(block_means), block_means.stride(0) * 2
        job.mass, job.least, job.most = mass, least, most
        self._tell_own()

    def _make_own(self) -> None:
        self.job = ffi.new("hgca_selection *")
        self._stats = ffi.new("hgca_selection_stats *")
        self.rows_read = torch.zeros(self.kv_heads, dtype=torch.int64)
        self.read_lse = torch.zeros(self.heads)
        self._near = ffi.new("hgca_attention[1]")

    def _tell_own(self) -> None:
        job = self.job
        job.stats = self._stats
        job.rows_read, job.read_lse = address(self.rows_read, "int64_t *"), address(self.read_lse)

    def beside(self) -> Selection:
        """The same choice as it stands, for another query at the same time: its figures are its own."""
        one = copy(self)
        one._make_own()
        one.job[0] = self.job[0]
        one._tell_own()
        return one

    def hold(self, rows: int, indexed: int) -> None:
        """So many rows are in the store, and so many of them have codes."""
        self.job.rows.rows, self.job.indexed = rows, indexed

    def limit(self, mass: float, least: int, most: int) -> None:
        """Change what is to be kept."""
        self.job.mass, self.job.least, self.job.most = mass, least, most

    def cluster(
        self,
        clustered: int,
        order: Tensor,
        group_codes: Tensor,
        means: Tensor,
        apart: Tensor,
        *,
        spread_codes: Tensor | None = None,
        block_codes: tuple[Tensor, Tensor] | None = None,
        gate: str,
        mass: float,
        most: int = EVERY,
        open_mass: float = 1.0,
        shared: tuple[int, int] = (0, 0),
    ) -> None:
        """Positions 0 .. clustered - 1 stand in groups of 16.

        order        i32 [kv_heads, positions]; group_codes u8 [kv_heads, blocks, block_bytes(key_dim)]
        means        f32, bf16 or f16 [kv_heads, groups, key_dim + value_dim]; apart u8 [kv_heads, groups]
        spread_codes u8 like group_codes, of the variances of a group's keys; None: a group is judged by its mean alone
        block_codes  u8 [kv_heads, blocks of blocks, block_bytes(key_dim)], of the mean keys of blocks of 128 positions, and of
                     the variances of their keys: groups are looked at where blocks may hold `open_mass`; None: all are
        shared       every so many blocks of codes, a power of two, begin with so many that have the same scales
        gate         "none", "scan" or "read"; mass, most: what the gate lets through, as mass and in groups
        """
        job, size = self.job, means.element_size()
        self._keep[2:] = [order, group_codes, means, apart, spread_codes, *(block_codes or ())]
        job.clustered = clustered
        job.order, job.order_head_stride = address(order, "int32_t *"), order.stride(0)
        job.group_codes, job.group_codes_head_stride = address(group_codes), group_codes.stride(0)
        job.spread_codes = ffi.NULL
        if spread_codes is not None:
            job.spread_codes, job.spread_codes_head_stride = address(spread_codes), spread_codes.stride(0)
        job.block_codes = ffi.NULL
        if block_codes is not None:
            (codes, spreads), job.open_mass = block_codes, open_mass
            job.block_codes, job.block_codes_head_stride = address(codes), codes.stride(0)
            job.block_spread_codes, job.block_spread_codes_head_stride = address(spreads), spreads.stride(0)
        job.mean, job.mean_dtype = address(means), DTYPES[means.dtype]
        job.mean_head_stride, job.mean_row_stride = means.stride(0) * size, means.stride(1) * size
        job.apart, job.apart_head_stride = address(apart, "uint8_t *"), apart.stride(0)
        job.span, job.shared = shared
        job.gate, job.gate_mass, job.gate_most = GATES[gate], mass, most

    def page(self, pages: Tensor, *, kind: str, mass: float, most: int = EVERY) -> None:
        """All rows so far stand in pages of 16: those whose scores hold `mass` are read, at most `most` of them.

        pages, kind  as in `write_pages`
        """
        job = self.job
        self._keep[2:] = [pages]
        job.clustered = job.indexed
        job.pages, job.pages_head_stride, job.page_kind = address(pages), pages.stride(0), PAGES[kind]
        job.gate, job.gate_mass, job.gate_most = GATES["read"], mass, most

    def uncluster(self) -> None:
        """Every position is the row of its number again."""
        self.job.clustered, self.job.gate, self.job.block_codes = 0, GATES["none"], ffi.NULL

    @property
    def rows(self) -> int:
        """Rows of the store it is about."""
        return int(self.job.rows.rows)

    @property
    def read(self) -> int:
        """Rows the last step read, over all KV heads."""
        return int(self._stats.read)

    @property
    def bytes(self) -> int:
        """Bytes it touched."""
        return int(self._stats.bytes)

    @property
    def reads(self) -> Reads:
        """What the last step touched, and how long that took."""
        s = self._stats
        times = (s.group_ns * 1e-9, s.scan_ns * 1e-9, s.choose_ns * 1e-9, s.read_ns * 1e-9)
        return Reads(s.scanned, s.groups, s.read, s.estimated, s.bytes, *times)

    def aim(
        self, query: Tensor, scale: float, softcap: float, near: Step | None, beside: Tensor | None
    ) -> tuple[list[Any], native.Partial]:
        """One token's query, as of Aimed; returns what must stay alive, and where the result will be."""
        if query.dtype != torch.float32 or query.shape[0] != self.heads or not query.is_contiguous():
            raise NativeError(f"a query {list(query.shape)} does not fit a choice for {self.heads} heads.")
        rows = self.job.rows
        rows.query, rows.scale, rows.softcap = address(query), scale, softcap
        result, partial = native.result_of(rows, self.heads, self.value_dim)
        if beside is not None:
            assert beside.dtype == torch.float32 and beside.numel() == self.heads and beside.is_contiguous()
        self.job.beside = ffi.NULL if beside is None else address(beside)
        self.job.near = ffi.NULL
        if near is not None:
            native.describe_step(near, self._near, 0)
            self.job.near = self._near
        return [query, result, beside, near], partial


@dataclass
class Aimed:
    """A selection and one token's query.

    query   f32 [heads, key_dim], contiguous, not scaled
    near    more rows, all read, that the result is over too; they count as kept
    beside  f32 [heads], lse of rows that are read elsewhere; they count as kept too
    """

    selection: Selection
    query: Tensor
    scale: float
    softcap: float = 0.0
    near: Step | None = None
    beside: Tensor | None = None


def start(jobs: Sequence[Aimed]) -> native.Pending:
    """Hand jobs to the worker threads. Raises NativeError for what does not fit together; nothing was started then."""
    described: Any = ffi.new("hgca_selection[]", len(jobs)) if len(jobs) > 1 else jobs[0].selection.job
    kept: list[Any] = []
    results = []
    for index, job in enumerate(jobs):
        tensors, partial = job.selection.aim(job.query, job.scale, job.softcap, job.near, job.beside)
        kept += tensors
        results.append(partial)
        if len(jobs) > 1:
            described[index] = job.selection.job[0]
    pending = native.Pending(kept, results)
    native.check(lib.hgca_start_selected(described, len(jobs), pending.ticket))
    return pending
