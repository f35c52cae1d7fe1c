"""One layer, one token: the window is attended to here, the store over there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hgca_cli.attention import dense
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.merge import Partial, absorb_sink, merge
from hgca_cli.attention.sparse import start_store_attention


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layers: Sequence[LayerState],
    *,
    scale: float,
    softcap: float = 0.0,
    sink: Tensor | None = None,
) -> Tensor:
    """Attention of one new token of each sequence over all it may see.

    query   [sequences, heads, key_dim]; key [sequences, kv_heads, 1, key_dim]; value likewise
    layers  the layer's state, one per sequence
    sink    a learned logit per head that takes attention and gives nothing (gpt-oss)
    returns [sequences, heads, value_dim], in the query's dtype
    """
    for layer, new_key, new_value in zip(layers, key, value, strict=True):
        layer.settle()
        layer.make_room()
        layer.window.append(new_key, new_value)
    if query.device.type == "cpu":  # the same cores do both: first what tells the policy how much the window holds
        new = [_window_attention(q, layer, scale, softcap) for q, layer in zip(query, layers, strict=True)]
        old = start_store_attention(query, layers, scale=scale, softcap=softcap)
    else:
        old = start_store_attention(query, layers, scale=scale, softcap=softcap)  # CPU threads work ...
        new = [_window_attention(q, layer, scale, softcap) for q, layer in zip(query, layers, strict=True)]  # meanwhile
    out = []
    for q, layer, near, far in zip(query, layers, new, old.wait(), strict=True):
        whole = near if far is None else merge(near, _to(far, near))
        if sink is not None:
            whole = absorb_sink(whole, sink)
        if layer.selector.watches:
            layer.selector.see_step(_ring_weights(q, layer, whole.lse, scale, softcap))
        layer.evict_overflow()
        out.append(whole.out)
    return torch.stack(out).to(query.dtype)


def _window_attention(query: Tensor, layer: LayerState, scale: float, softcap: float) -> Partial:
    """query [heads, key_dim] over sinks and ring -> out [heads, value_dim], lse [heads]."""
    key, value, bias = layer.window.view()
    heads = query.shape[0]
    grouped = query.view(key.shape[0], -1, query.shape[-1])  # one read of a row serves the group
    part = dense.attend(grouped, key, value, scale=scale, softcap=softcap, bias=bias)
    layer.near_lse = part.lse.reshape(heads)
    return Partial(part.out.reshape(heads, -1), layer.near_lse)


def _ring_weights(query: Tensor, layer: LayerState, lse: Tensor, scale: float, softcap: float) -> Tensor:
    """Softmax weight f32 [heads, ring rows] the token gave each ring row, oldest first: shares of all it saw."""
    key, _, _ = layer.window.view()
    grouped = query.view(key.shape[0], -1, query.shape[-1])
    score = dense.scores(grouped, key, scale=scale, softcap=softcap).view(query.shape[0], -1)
    return layer.window.in_order(torch.exp(score - lse.unsqueeze(-1)))


def _to(partial: Partial, like: Partial) -> Partial:
    device = like.out.device
    return Partial(partial.out.to(device, non_blocking=True), partial.lse.to(device, non_blocking=True))
