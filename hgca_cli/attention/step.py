"""One layer, one token: the window is attended to on the device, older rows in CPU memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hgca_cli.attention import dense
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.merge import Partial, absorb_sink, merge
from hgca_cli.attention.sparse import start_host_attention


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
    old = start_host_attention(query, layers, scale=scale, softcap=softcap)  # CPU threads work ...
    clock = layers[0].clock
    clock.start(query.device)
    new = [_window_attention(q, layer, scale, softcap) for q, layer in zip(query, layers, strict=True)]  # ... meanwhile
    clock.begin(query.device)
    waited_for = old.wait()
    clock.end(query.device)
    out = []
    for q, layer, near, far in zip(query, layers, new, waited_for, strict=True):
        if near is not None:
            layer.near_lse = near.lse  # what the window held this time tells the policy about the next
        whole = _merged(near, far)
        if sink is not None:
            whole = absorb_sink(whole, sink)
        if layer.selector.watches:
            layer.selector.see_step(_ring_weights(q, layer, whole.lse, scale, softcap))
        layer.evict_overflow()
        out.append(whole.out)
    return (torch.stack(out) if len(out) > 1 else out[0].unsqueeze(0)).to(query.dtype)


def _window_attention(query: Tensor, layer: LayerState, scale: float, softcap: float) -> Partial | None:
    """query [heads, key_dim] over sinks and ring -> out [heads, value_dim], lse [heads]; None if the CPU does that."""
    if layer.window.read is not None:
        return None
    grouped = query.view(layer.layout.kv_heads, -1, query.shape[-1])  # one read of a row serves the group
    whole: Partial | None = None
    for key, value in layer.window.pieces():
        part = dense.attend(grouped, key, value, scale=scale, softcap=softcap)
        whole = part if whole is None else merge(whole, part)
    assert whole is not None  # the new row is there
    return Partial(whole.out.reshape(query.shape[0], -1), whole.lse.reshape(query.shape[0]))


def _ring_weights(query: Tensor, layer: LayerState, lse: Tensor, scale: float, softcap: float) -> Tensor:
    """Softmax weight f32 [heads, ring rows] the token gave each ring row, oldest first: shares of all it saw."""
    key = layer.window.keys
    grouped = query.view(key.shape[0], -1, query.shape[-1])
    score = dense.scores(grouped, key, scale=scale, softcap=softcap).view(query.shape[0], -1)
    return layer.window.in_order(torch.exp(score - lse.unsqueeze(-1)))


def _merged(near: Partial | None, far: Partial | None) -> Partial:
    """The device's part and the CPU's, of which one may be all there is."""
    if near is None:
        assert far is not None
        return far
    if far is None:
        return near
    device = near.out.device
    return merge(near, Partial(far.out.to(device, non_blocking=True), far.lse.to(device, non_blocking=True)))
