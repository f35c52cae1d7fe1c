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

# Queries of a sliding layer that are attended to at once: as many as rows that one of them sees, but fewer where what hides other
# rows from them would have more numbers than about this, down to the least.
LEAST_SLICE, BIAS_NUMBERS = 128, 1 << 19


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
    window, n = layer.window, query.shape[1]
    before = window.ring_rows
    pieces = window.oldest(before)
    keys = torch.cat([*(piece for piece, _ in pieces), key], dim=1)
    values = torch.cat([*(piece for _, piece in pieces), value], dim=1)
    out = torch.empty(*query.shape[:2], value.shape[-1], device=query.device)
    whole = Partial(out, torch.empty(query.shape[:2], device=query.device))
    step, bias = max(LEAST_SLICE, min(sliding, BIAS_NUMBERS // sliding)), None
    for first in range(0, n, step):  # each slice over the rows that one of its queries sees
        part = slice(first, min(first + step, n))
        rows = slice(max(0, before + first - sliding + 1), before + part.stop)
        shape = part.stop - first, rows.stop - rows.start
        if bias is None or bias.shape != shape:  # most slices are alike
            bias = _sliding_bias(*shape, sliding, query.device)
        asked = query[:, part]
        folded = asked.reshape(key.shape[0], -1, query.shape[-1])
        found = dense.attend(folded, keys[:, rows], values[:, rows], scale=scale, softcap=softcap, bias=bias)
        whole.out[:, part], whole.lse[:, part] = _unfold(found, asked)
    return whole


def _sliding_bias(queries: int, rows: int, sliding: int, device: torch.device) -> Tensor:
    """f32 [queries, rows]: -inf where the last `queries` of the rows do not see one."""
    hidden = torch.full((queries, rows), float("-inf"), device=device)
    itself = rows - queries  # of the first query
    return hidden.triu(itself + 1).add_(hidden.tril_(itself - sliding))


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
        keys=[*(piece for piece, _ in window.oldest(window.ring_rows)), key[:, into_sinks:]],
        lse=lse,
        scale=scale,
        softcap=softcap,
        length=layer.length + n,
        last=layer.prompt_left == 0,
        first=layer.first_turn,
    )
    layer.selector.see_chunk(turn, layer.store)
