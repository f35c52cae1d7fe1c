"""Tiny random models on disk, whole and damaged."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = "the cat sat on the mat. once upon a time there was a model, and it was small: żółć, 東京, 🙂 שלום"


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the control tokens of a chat model; every byte is a token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([TEXT] * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = template
    return fast


def tiny_config(**changes: Any) -> LlamaConfig:
    """A llama of a few thousand parameters."""
    options = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**options | changes)


def save_tiny(path: Path, *, template: str | None = TEMPLATE, seed: int = 0, **changes: Any) -> Path:
    """A tiny random model with tokenizer, saved to a directory."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(**changes))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(5.0)  # random weights this small say nothing otherwise
    model.save_pretrained(path)
    tokenizer(template).save_pretrained(path)
    return path


def edit_json(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def rewrite_header(file: Path, change: Any) -> None:
    """Change a safetensors header in place: `change` gets and returns the parsed header."""
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.dumps(change(json.loads(raw[8 : 8 + length]))).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])


def write_gguf(path: Path, *, with_tokenizer: bool = True, layers: int = 1) -> Path:
    """A tiny llama in GGUF, float32."""
    import numpy as np
    from gguf import GGUFWriter, TokenType

    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(400)
    if with_tokenizer:
        fast = tokenizer()
        vocabulary = sorted(fast.get_vocab().items(), key=lambda item: item[1])
        state = json.loads(fast.backend_tokenizer.to_str())
        words = [word for word, _ in vocabulary] + [f"<unused{i}>" for i in range(400 - len(vocabulary))]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(words)
        writer.add_token_types([TokenType.CONTROL if i < 3 else TokenType.NORMAL for i in range(400)])
        merges = [" ".join(m) if isinstance(m, list) else m for m in state["model"]["merges"]]
        writer.add_token_merges(merges)
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(2)
        writer.add_chat_template(TEMPLATE)

    def put(name: str, *shape: int) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape) * 0.2).astype(np.float32))

    put("token_embd.weight", 400, 32)
    put("output.weight", 400, 32)
    put("output_norm.weight", 32)
    for i in range(layers):
        put(f"blk.{i}.attn_norm.weight", 32)
        put(f"blk.{i}.ffn_norm.weight", 32)
        put(f"blk.{i}.attn_q.weight", 32, 32)
        put(f"blk.{i}.attn_k.weight", 16, 32)
        put(f"blk.{i}.attn_v.weight", 16, 32)
        put(f"blk.{i}.attn_output.weight", 32, 32)
        put(f"blk.{i}.ffn_gate.weight", 64, 32)
        put(f"blk.{i}.ffn_up.weight", 64, 32)
        put(f"blk.{i}.ffn_down.weight", 32, 64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
