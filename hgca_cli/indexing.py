"""What an index of rows is made of, by the C library: codes of keys, means, groups of like keys, pages (native/hgca.h)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.errors import NativeError
from hgca_cli.native import DTYPES, address, ffi, lib

BLOCK = 128  # positions whose codes lie behind scales
GROUP = 16  # positions that a clustering keeps together
PAGES = {"box": lib.HGCA_PAGE_BOX, "centre": lib.HGCA_PAGE_CENTRE, "mean": lib.HGCA_PAGE_MEAN}


def block_bytes(dim: int) -> int:
    """Bytes of the codes of 128 rows of a KV head."""
    return int(lib.hgca_block_bytes(dim))


def encode(
    rows: Tensor,
    codes: Tensor,
    first: int,
    *,
    scale: Tensor | None = None,
    order: Tensor | None = None,
    shared: int = 0,
) -> None:
    """Write the codes of positions `first` .. of all there are, whole blocks.

    rows   [heads, rows, dim] f32, bf16, f16 or i8, numbers of a row next to each other
    codes  u8 [heads, blocks, block_bytes(dim)]
    first  a multiple of 128
    scale  f32 [heads, rows] of i8 rows
    order  i32 [heads, positions]: position p of head h is row order[h, p]; None: row p
    shared  so many blocks at a time, from `first` on, have the same scales; 0: each has its own

    Raises NativeError for shapes that do not fit together.
    """
    count = rows.shape[1] if order is None else order.shape[1]
    blocks = -(-count // BLOCK)
    if (
        rows.dim() != 3
        or rows.dtype not in DTYPES
        or (rows.stride(2) != 1 and rows.shape[2] > 1)
        or codes.dtype != torch.uint8
        or codes.dim() != 3
        or codes.shape[0] != rows.shape[0]
        or codes.shape[1] < blocks
        or (codes.shape[1] > 0 and (codes.shape[2] != block_bytes(rows.shape[2]) or codes.stride(2) != 1))
        or (codes.shape[1] > 1 and codes.stride(1) != codes.shape[2])
        or (order is not None and (order.dtype != torch.int32 or order.stride(1) != 1))
        or (rows.dtype == torch.int8) != (scale is not None)
        or not (rows.is_cpu and codes.is_cpu)
        or first > count
    ):
        raise NativeError(f"codes {list(codes.shape)} cannot be those of {list(rows.shape)} rows of {rows.dtype}.")
    if first == count:
        return
    job = ffi.new("hgca_codes *")
    _describe_rows(job.of, rows, scale)
    _describe_order(job, order)
    job.codes, job.codes_head_stride = address(codes), codes.stride(0)
    job.of.first, job.of.count, job.shared = first, count - first, shared
    native.check(lib.hgca_encode(job))


def average(
    rows: Tensor,
    means: Tensor,
    first: int,
    *,
    each: int,
    scale: Tensor | None = None,
    order: Tensor | None = None,
    spread: bool = False,
) -> None:
    """Write the means of every `each` positions, from position `first` (a multiple of each) on.

    means   bf16 [heads, groups, dim], numbers of a group next to each other; the rest as in `encode`
    spread  write the mean squared distances from the mean in their place

    Raises NativeError for shapes that do not fit together.
    """
    count = rows.shape[1] if order is None else order.shape[1]
    if (
        rows.dtype not in DTYPES
        or means.dtype != torch.bfloat16
        or means.shape[0] != rows.shape[0]
        or means.shape[1] < -(-count // each)
        or means.shape[2] != rows.shape[2]
        or (rows.stride(2) != 1 and rows.shape[2] > 1)
        or (means.stride(2) != 1 and means.shape[2] > 1)
        or (order is not None and (order.dtype != torch.int32 or order.stride(1) != 1))
        or (rows.dtype == torch.int8) != (scale is not None)
        or first > count
    ):
        raise NativeError(f"means {list(means.shape)} cannot be those of {list(rows.shape)} rows of {rows.dtype}.")
    job = ffi.new("hgca_means *")
    _describe_rows(job.of, rows, scale)
    _describe_order(job, order)
    job.mean, job.mean_head_stride, job.mean_row_stride = address(means), means.stride(0) * 2, means.stride(1) * 2
    job.of.first, job.of.count, job.each, job.spread = first, count - first, each, spread
    native.check(lib.hgca_average(job))


def cluster(rows: Tensor, order: Tensor, first: int, *, apart: int, scale: Tensor | None = None) -> None:
    """Put rows `first` .. into groups of 16 that are alike.

    rows   keys [heads, rows, dim]; scale f32 [heads, rows] of i8 rows
    order  i32 [heads, n], written: rows first .. first + n - 1 in their groups; n is a multiple of 16
    apart  groups, the last ones, of rows that are unlike all others

    Raises NativeError for shapes that do not fit together.
    """
    if (
        rows.dtype not in DTYPES
        or order.dtype != torch.int32
        or order.shape[0] != rows.shape[0]
        or first + order.shape[1] > rows.shape[1]
        or order.stride(1) != 1
        or (rows.dtype == torch.int8) != (scale is not None)
    ):
        raise NativeError(f"rows {list(rows.shape)} cannot be ordered into {list(order.shape)}.")
    job = ffi.new("hgca_clustering *")
    _describe_rows(job.of, rows, scale)
    job.of.first, job.of.count, job.apart = first, order.shape[1], apart
    _describe_order(job, order)
    native.check(lib.hgca_cluster(job))


def page_bytes(dim: int, kind: str) -> int:
    """Bytes of what is known of 16 pages of a KV head."""
    return int(lib.hgca_page_bytes(dim, PAGES[kind]))


def write_pages(rows: Tensor, pages: Tensor, first: int, *, kind: str, scale: Tensor | None = None) -> None:
    """Write what is known of the pages of 16 rows from row `first`, a multiple of 16, on; the last may lack rows.

    rows   keys [heads, rows, dim]; scale f32 [heads, rows] of i8 rows
    pages  u8 [heads, blocks of 16 pages, page_bytes(dim, kind)]
    kind   "box": smallest and largest numbers; "centre": the middle of these; "mean"

    Raises NativeError for shapes that do not fit together.
    """
    blocks = -(-rows.shape[1] // (GROUP * GROUP))
    if (
        rows.dtype not in DTYPES
        or (rows.stride(2) != 1 and rows.shape[2] > 1)
        or pages.dtype != torch.uint8
        or pages.shape[0] != rows.shape[0]
        or pages.shape[1] < blocks
        or pages.shape[2] != page_bytes(rows.shape[2], kind)
        or pages.stride()[1:] != (pages.shape[2], 1)
        or (rows.dtype == torch.int8) != (scale is not None)
        or first > rows.shape[1]
    ):
        raise NativeError(f"pages {list(pages.shape)} cannot be those of {list(rows.shape)} rows of {rows.dtype}.")
    job = ffi.new("hgca_pages *")
    _describe_rows(job.of, rows, scale)
    job.pages, job.pages_head_stride, job.kind = address(pages), pages.stride(0), PAGES[kind]
    job.of.first, job.of.count = first, rows.shape[1] - first
    native.check(lib.hgca_page(job))


def _describe_rows(of: Any, rows: Tensor, scale: Tensor | None) -> None:
    size = rows.element_size()
    of.rows, of.head_stride, of.row_stride = address(rows), rows.stride(0) * size, rows.stride(1) * size
    of.heads, of.dim, of.dtype = rows.shape[0], rows.shape[2], DTYPES[rows.dtype]
    if scale is not None:
        of.scale, of.scale_head_stride, of.scale_row_stride = address(scale), scale.stride(0) * 4, scale.stride(1) * 4


def _describe_order(job: Any, order: Tensor | None) -> None:
    if order is not None:
        job.order, job.order_head_stride = address(order, "int32_t *"), order.stride(0)
