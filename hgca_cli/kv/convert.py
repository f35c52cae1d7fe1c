"""Rows as a model computes them become rows of a store, by the C library. The contract is hgca_copy_rows in native/hgca.h."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.errors import NativeError


@dataclass(slots=True)
class Copy:
    """Rows [heads, rows, dim] in CPU memory that become rows of another dtype, any head and row strides.

    source  f32, bf16 or f16
    target  f32, bf16, f16 (rounded to the nearest even) or i8
    scale   f32 [heads, rows], for i8: what the numbers are to be multiplied with is written there
    """

    source: Tensor
    target: Tensor
    scale: Tensor | None = None


def copy_rows(copies: Sequence[Copy]) -> None:
    """Convert rows; returns when all is written.

    Raises NativeError for shapes or dtypes that do not fit together; nothing was written then.
    """
    described = native.ffi.new("hgca_copy[]", len(copies))
    for index, copy in enumerate(copies):
        _describe_copy(copy, described[index])
    native.check(native.lib.hgca_copy_rows(described, len(copies)))


def _describe_copy(copy: Copy, to: Any) -> None:
    source, target, scale = copy.source, copy.target, copy.scale
    quantised = target.dtype == torch.int8
    if (
        source.dim() != 3
        or source.shape != target.shape
        or source.dtype not in native.DTYPES
        or target.dtype not in native.DTYPES
        or not (native.packed(source) and native.packed(target))
        or not (source.is_cpu and target.is_cpu)
        or quantised != (scale is not None)
    ):
        raise NativeError(f"rows {native.say(source)} cannot become {native.say(target)}.")
    if scale is not None:
        if scale.shape != source.shape[:2] or scale.dtype != torch.float32 or not scale.is_cpu:
            raise NativeError("int8 rows need f32 scales [heads, rows].")
        to.scale, to.scale_head_stride, to.scale_row_stride = (
            native.address(scale),
            scale.stride(0) * 4,
            scale.stride(1) * 4,
        )
    setattr(to, "from", native.address(source))
    to.to = native.address(target)
    to.from_head_stride, to.from_row_stride = (step * source.element_size() for step in source.stride()[:2])
    to.to_head_stride, to.to_row_stride = (step * target.element_size() for step in target.stride()[:2])
    to.heads, to.rows, to.dim = source.shape
    to.from_dtype, to.to_dtype = native.DTYPES[source.dtype], native.DTYPES[target.dtype]
