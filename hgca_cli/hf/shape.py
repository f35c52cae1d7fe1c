"""What a model's config says about its KV cache, and whether hybrid attention can serve the model at all.

Nothing here loads weights: the planner asks before anything big is read.
"""

from __future__ import annotations

from typing import Any

from hgca_cli.errors import ModelError
from hgca_cli.kv.layout import KVLayout, LayerLayout

LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


def text_config(config: Any) -> Any:
    """The language model's part of a config (a multimodal model nests it)."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def refuse_unsupported(config: Any) -> None:
    """Raises ModelError, naming the family and the reason, for a model whose attention is not ours to replace."""
    name = getattr(config, "model_type", "?")
    text = text_config(config)
    reason = ""
    if getattr(config, "is_encoder_decoder", False):
        reason = "it is an encoder-decoder with cross-attention"
    elif getattr(text, "alibi", False) or getattr(text, "position_embedding_type", "") == "alibi":
        reason = "its attention adds ALiBi biases"
    elif getattr(text, "num_kv_shared_layers", 0):
        reason = "its layers share each other's keys and values"
    elif getattr(text, "kv_lora_rank", None):
        reason = "its cache holds compressed latents, not keys and values"
    elif odd := sorted(set(getattr(text, "layer_types", None) or ()) - LAYER_TYPES):
        reason = f"it has layers of type {', '.join(odd)}"
    elif not hasattr(text, "num_attention_heads") or not hasattr(text, "num_hidden_layers"):
        reason = "its config names no attention heads"
    if reason:
        raise ModelError(
            f"models of family {name!r} cannot run with hybrid attention: {reason}.",
            "Decoder-only models with full or sliding-window softmax attention can.",
        )


def refuse_unsupported_model(model: Any) -> None:
    """Raises ModelError for a model class whose attention cannot be replaced through transformers' interface."""
    if not getattr(model, "_supports_attention_backend", False):
        raise ModelError(
            f"models of family {model.config.model_type!r} cannot run with hybrid attention: "
            "their attention does not go through transformers' AttentionInterface.",
            "A newer version of transformers may have it.",
        )


def kv_layout(config: Any, device_itemsize: int = 4, store_itemsize: int = 4) -> KVLayout:
    """The KV cache of a model: heads, widths and sliding windows of every layer.

    device_itemsize, store_itemsize  bytes of a number in the window and in the store

    Raises ModelError where `refuse_unsupported` does, and where query heads do not divide into KV heads.
    """
    refuse_unsupported(config)
    text = text_config(config)
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    if heads % kv_heads:
        raise ModelError(f"config.json: {heads} query heads do not divide into {kv_heads} KV heads.")
    key_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    value_dim = getattr(text, "v_head_dim", None) or key_dim
    layers = tuple(LayerLayout(heads, kv_heads, key_dim, value_dim, sliding) for sliding in _sliding_windows(text))
    return KVLayout(layers, device_itemsize, store_itemsize)


def trained_context(config: Any) -> int:
    """Tokens the model was trained on; what the scaling was made for if it has one. 0 if the config does not say."""
    return int(getattr(text_config(config), "max_position_embeddings", 0) or 0)


def experts_share(text: Any, parameters: int) -> tuple[float, float]:
    """Of so many weights of layers, the share that is experts', and of these the share that a router chooses for a token: 1 where there
    are none.
    """
    experts = _first(text, "num_local_experts", "num_experts", "moe_num_experts")
    chosen = _first(text, "num_experts_per_tok", "moe_topk")
    if not experts or not 0 < chosen < experts or not parameters:
        return 0.0, 1.0
    inner = getattr(text, "moe_intermediate_size", None) or getattr(text, "intermediate_size", None) or 0
    in_experts = min(parameters, 3 * text.hidden_size * inner * experts * text.num_hidden_layers)
    return in_experts / parameters, chosen / experts


def _first(text: Any, *names: str) -> int:
    """What a config calls by one of these names; 0 if by none."""
    return next((int(found) for name in names if (found := getattr(text, name, None))), 0)


def _sliding_windows(text: Any) -> list[int | None]:
    """Per layer: rows a query may see, None for all."""
    layers = text.num_hidden_layers
    size = getattr(text, "sliding_window", None)
    if getattr(text, "use_sliding_window", True) is False:
        size = None
    types = getattr(text, "layer_types", None)
    if types is None:
        return [size] * layers
    return [size if kind == "sliding_attention" else None for kind in types]
