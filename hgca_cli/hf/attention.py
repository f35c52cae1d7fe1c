"""The attention function transformers calls: importing this module registers it under the name "hgca".

Use it with `model.set_attn_implementation("hgca")` and a HybridCache, in a loop of one's own or through `generate`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from hgca_cli.attention.step import decode_attention
from hgca_cli.attention.stream import prompt_attention
from hgca_cli.errors import ModelError, UsageError
from hgca_cli.hf.cache_layer import HybridLayer, updated_layer

NAME = "hgca"


def hybrid_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over all rows its HybridCache layer holds, the new ones included.

    query   [batch, heads, tokens, key_dim]; key, value [batch, kv_heads, tokens, dim]: the new rows only
    returns [batch, tokens, heads, value_dim]

    Raises UsageError without a HybridCache, ModelError for arguments that mean attention we do not do.
    """
    layer = updated_layer.get()
    updated_layer.set(None)
    if layer is None:
        raise UsageError(
            'attention "hgca" needs its cache.',
            "Pass cache=HybridCache(...) (before transformers 5.24: past_key_values) and use_cache=True.",
        )
    if attention_mask is not None or position_bias is not None or dropout:
        raise ModelError(
            f"layer {layer.index} of {type(module).__name__} wants a mask, a position bias or dropout.",
            "Hybrid attention does causal softmax attention only.",
        )
    return attend(layer, query, key, value, scaling, softcap, sliding_window, s_aux), None


def attend(
    layer: HybridLayer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    softcap: float | None,
    sliding_window: int | None,
    sink: Tensor | None = None,
) -> Tensor:
    """As hybrid_attention, of a layer that was just given these rows by `update`."""
    updated_layer.set(None)
    if sliding_window != layer.layout.sliding and (sliding_window or layer.layout.sliding):
        raise ModelError(
            f"layer {layer.index} slides over {sliding_window} rows, its config says {layer.layout.sliding}."
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    cap = softcap or 0.0
    if layer.recorder is not None:
        out = layer.recorder.attend(layer.index, query[:, :, 0], key, value, scale=scale, softcap=cap, sink=sink)
        return out.unsqueeze(1)
    if query.shape[2] == 1 and not _reads_prompt(layer):
        out = decode_attention(query[:, :, 0], key, value, layer.states, scale=scale, softcap=cap, sink=sink)
        return out.unsqueeze(1)
    parts = [
        prompt_attention(q, k, v, state, scale=scale, softcap=cap, sink=sink)
        for q, k, v, state in zip(query, key, value, layer.states, strict=True)
    ]
    whole = parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)
    return whole.transpose(1, 2)


def _reads_prompt(layer: HybridLayer) -> bool:
    return layer.states[0].prompt_left > 0


def refuse_padding(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> None:
    """The mask transformers asks for: none is needed, and rows that are padding cannot be hidden."""
    if attention_mask is not None and not bool(attention_mask.bool().all()):
        raise UsageError(
            "hybrid attention does not take padded batches.", "Pass prompts of equal length, or one at a time."
        )


AttentionInterface.register(NAME, hybrid_attention)
AttentionMaskInterface.register(NAME, refuse_padding)
