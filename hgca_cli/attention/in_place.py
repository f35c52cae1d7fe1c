"""A chunk of a prompt over rows that are all in the processor's memory: one call of the C library, which reads them where they are.

torch's own attention takes rows in the queries' dtype alone, so a store would be converted for every chunk, and leaves merging
the parts to us. Where its matrix products were written for another maker's processors it is slower by half, too (docs/log.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.merge import Partial

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FASTER = ("avx512",)  # instruction sets; with AVX2 it takes as long as torch


def pays() -> bool:
    """Whether the library is faster than torch here."""
    return native.isa().startswith(FASTER)


def serves(query: Tensor, layer: LayerState) -> bool:
    """Whether `attend` may stand for attention of these queries over the layer's rows."""
    store, lib = layer.store, native.lib
    rounds = query.shape[1] <= lib.HGCA_FEW_TOKENS or max(query.shape[-1], layer.layout.value_dim) > lib.HGCA_MANY_DIM
    return (
        query.device.type == "cpu"
        and not layer.pieces.apart(query.device)
        and pays()
        and query.dtype in FLOATS
        and layer.window.keys.dtype in FLOATS
        and (store is None or store.rows == 0 or store.dtype in FLOATS or not rounds)  # queries over rows of int8
    )


def attend(query: Tensor, key: Tensor, value: Tensor, layer: LayerState, scale: float, softcap: float) -> Partial:
    """The chunk over itself, sinks and ring, and the store.

    query   [heads, n, key_dim]; key [kv_heads, n, key_dim]; value [kv_heads, n, value_dim]
    returns out f32 [heads, n, value_dim], lse f32 [heads, n]
    """
    asked = query.transpose(0, 1).float().contiguous()
    near, far = _beside(key, value, layer.window.pieces())
    itself = native.Attention(asked, *near, scale, softcap, causal=True)
    others = [native.Attention(asked, *both, scale=scale, softcap=softcap, joins=True) for both in far]
    if (store := layer.store) is not None and store.rows > 0:
        rows = slice(store.rows)
        scales = (None, None) if store.scales is None else store.scales[:, rows].unbind(-1)
        read = native.Attention(asked, store.keys[:, rows], store.values[:, rows], scale, softcap, joins=True)
        read.key_scale, read.value_scale = scales
        others.append(read)
    out, lse = native.start([itself, *others]).wait()[0]
    return Partial(out.transpose(0, 1), lse.transpose(0, 1))


def _beside(
    key: Tensor, value: Tensor, pieces: list[tuple[Tensor, Tensor]]
) -> tuple[tuple[Tensor, Tensor], list[tuple[Tensor, Tensor]]]:
    """The chunk's rows behind those of pieces that have no more, and the other pieces: to copy a few rows takes less than to merge
    what is found in them, for all queries."""
    few = [both[0].shape[1] <= key.shape[1] and both[0].dtype == key.dtype for both in pieces]
    if not any(few):
        return (_packed(key), _packed(value)), pieces
    keys, values = zip(*(both for both, small in zip(pieces, few, strict=True) if small), strict=True)
    near = torch.cat([*keys, key], dim=1), torch.cat([*values, value], dim=1)
    return near, [both for both, small in zip(pieces, few, strict=True) if not small]


def _packed(rows: Tensor) -> Tensor:
    """Numbers of a row next to each other."""
    return rows if native.packed(rows) else rows.contiguous()
