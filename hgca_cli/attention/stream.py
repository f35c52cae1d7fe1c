"""Prefill: a chunk of a prompt attends exactly to everything before it and to itself. Nothing is approximated here.

The store is brought to the device piece by piece (kv/pieces.py), so the device holds a bounded slice of one layer; on the
CPU rows are read in place (in_place.py), or as torch wants them. Parts of the window are attended to while pieces are on their way,
so that a device waits for few of them. The parts are merged by log-sum-exp.

One read of a row serves its group: query heads of a KV head stand behind each other as more queries (*folded*).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hgca_cli.attention import cudnn, dense, in_place
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.merge import Partial, absorb_sink, take_in
from hgca_cli.attention.select.contract import Turn


def prompt_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: LayerState,
    *,
    scale: float,
    softcap: float = 0.0,
    sink: Tensor | None = None,
) -> Tensor:
    """Attention of a chunk of one sequence; its rows are taken into the window and the store.

    query   [heads, n, key_dim]; key [kv_heads, n, key_dim]; value [kv_heads, n, value_dim]
    returns [heads, n, value_dim], in the query's dtype
    """
    layer.settle()
    layer.check_context(key.shape[1])
    if layer.layout.sliding is not None:
        whole = _sliding_attention(query, key, value, layer, layer.layout.sliding, scale, softcap)
    else:
        whole = _full_attention(query, key, value, layer, scale, softcap)
    if sink is not None:
        whole = absorb_sink(whole, sink)
    _account(query, key, layer, whole.lse, scale, softcap)
    layer.append_chunk(key, value)
    return whole.out.to(query.dtype)


def _full_attention(
    query: Tensor, key: Tensor, value: Tensor, layer: LayerState, scale: float, softcap: float
) -> Partial:
    """The chunk over itself, sinks and ring, and the store."""
    if in_place.serves(query, layer):
        return in_place.attend(query, key, value, layer, scale, softcap)
    planned = not softcap and cudnn.pays(query, value.shape[-1], layer.length)
    folded = query.reshape(key.shape[0], -1, query.shape[-1])
    near = Near(layer, folded, planned, scale, softcap)
    store = layer.store
    far = None
    if store is not None and store.rows > 0:  # its first pieces set out while the chunk is attended to
        far = layer.pieces.of(store, layer.layout, folded.device, folded.dtype, near.attend)
    whole = _itself(query, key, value, planned, scale, softcap)
    near.into = whole
    for piece in far or ():
        mine = Partial(whole.out[piece.heads], whole.lse[piece.heads])
        for rows in cudnn.blocks(piece.key, piece.value) if planned else [(piece.key, piece.value)]:
            take_in(mine, dense.attend(folded[piece.heads], *rows, scale=scale, softcap=softcap, planned=planned))
    near.attend(1.0)
    return _unfold(whole, query)


def _itself(query: Tensor, key: Tensor, value: Tensor, planned: bool, scale: float, softcap: float) -> Partial:
    """The chunk over itself; folded."""
    part = dense.attend_causal(query, key, value, scale=scale, softcap=softcap, planned=planned)
    out = part.out
    if out.dtype != torch.float32:  # packed and wide in one pass
        out = torch.empty(out.shape, dtype=torch.float32, device=out.device).copy_(out)
    return Partial(out.reshape(key.shape[0], -1, value.shape[-1]), part.lse.reshape(key.shape[0], -1))


class Near:
    """The chunk over the window, part by part, while pieces of the store are on their way; folded.

    into  what it is taken into
    """

    into: Partial

    def __init__(self, layer: LayerState, folded: Tensor, planned: bool, scale: float, softcap: float) -> None:
        self._folded, self._planned, self._scale, self._softcap = folded, planned, scale, softcap
        self._parts = layer.window.pieces()
        if planned or folded.device.type != "cpu":
            self._parts = [part for piece in self._parts for part in cudnn.blocks(*piece)]
        self._rows = sum(key.shape[1] for key, _ in self._parts)
        self._done = 0

    def attend(self, share: float) -> None:
        """Go on until this share of the window, at least, has been attended to."""
        while self._parts and self._done < share * self._rows:
            key, value = self._parts.pop(0)
            rows = key.to(self._folded.dtype), value.to(self._folded.dtype)
            more = dense.attend(self._folded, *rows, scale=self._scale, softcap=self._softcap, planned=self._planned)
            take_in(self.into, more)
            self._done += key.shape[1]


def _sliding_attention(
    query: Tensor, key: Tensor, value: Tensor, layer: LayerState, sliding: int, scale: float, softcap: float
) -> Partial:
    """The chunk over the ring and itself, each query over its newest `sliding` rows."""
    window = layer.window
    rows = torch.arange(window.start, window.end + key.shape[1], device=query.device)
    distance = rows[window.ring_rows :, None] - rows
    hidden = (distance < 0) | (distance >= sliding)
    bias = torch.zeros(hidden.shape, device=query.device).masked_fill_(hidden, float("-inf"))
    pieces = window.oldest(window.ring_rows)
    whole_key = torch.cat([*(piece for piece, _ in pieces), key], dim=1)
    whole_value = torch.cat([*(piece for _, piece in pieces), value], dim=1)
    folded = query.reshape(key.shape[0], -1, query.shape[-1])
    bias = bias.repeat(query.shape[0] // key.shape[0], 1)
    return _unfold(dense.attend(folded, whole_key, whole_value, scale=scale, softcap=softcap, bias=bias), query)


def _unfold(part: Partial, query: Tensor) -> Partial:
    heads, n = query.shape[:2]
    return Partial(part.out.reshape(heads, n, -1), part.lse.reshape(heads, n))


def _account(query: Tensor, key: Tensor, layer: LayerState, lse: Tensor, scale: float, softcap: float) -> None:
    """Count the turn down and show the chunk to a policy that watches."""
    n = key.shape[1]
    layer.read_on(n)
    if not layer.selector.watches or layer.store is None:
        return
    window = layer.window
    into_sinks = max(0, min(n, window.sinks - window.end))
    turn = Turn(
        query=query,
        key=torch.cat([*(piece for piece, _ in window.oldest(window.ring_rows)), key[:, into_sinks:]], dim=1),
        lse=lse,
        scale=scale,
        softcap=softcap,
        length=layer.length + n,
        last=layer.prompt_left == 0,
        first=layer.first_turn,
    )
    layer.selector.see_chunk(turn, layer.store)
