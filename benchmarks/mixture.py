"""A GGUF file of a mixture of experts with random weights, shaped as Qwen3-30B-A3B but with fewer layers and experts; for gguf_file.py.

    python benchmarks/mixture.py mixture.gguf [--layers 6] [--experts 64] [--chosen 8]

Matrices are Q4_K, an expert's second one Q6_K in half of the layers, as in files called Q4_K_M; the output layer is Q6_K. The
vocabulary is the default model's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
from decode import default_gguf
from numpy.typing import NDArray

from hgca_cli.hf import model_cache

KINDS = gguf.GGMLQuantizationType
HIDDEN, INNER, HEADS, KV_HEADS, DIM, CONTEXT = 2048, 768, 32, 4, 128, 40960


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--chosen", type=int, default=8)
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    vocabulary = gguf.GGUFReader(default_gguf(model_cache.cache_dir(print) / "benchmarks"))
    writer = gguf.GGUFWriter(options.file, "qwen3moe", use_temp_file=True)
    for key, field in vocabulary.fields.items():
        if key.startswith("tokenizer."):
            array = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if array else None)
    words = len(vocabulary.fields["tokenizer.ggml.tokens"].data)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(options.layers)
    writer.add_feed_forward_length(3 * HIDDEN)
    writer.add_expert_feed_forward_length(INNER)
    writer.add_expert_count(options.experts)
    writer.add_expert_used_count(options.chosen)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(DIM)
    writer.add_value_length(DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_vocab_size(words)

    def add(name: str, *shape: int, kind: KINDS = KINDS.Q4_K) -> None:
        writer.add_tensor(f"{name}.weight", made(shape, kind, rng), raw_dtype=kind)

    add("token_embd", words, HIDDEN)
    add("output", words, HIDDEN, kind=KINDS.Q6_K)
    add("output_norm", HIDDEN, kind=KINDS.F32)
    for layer in range(options.layers):
        block = f"blk.{layer}"
        for norm, width in (("attn_norm", HIDDEN), ("ffn_norm", HIDDEN), ("attn_q_norm", DIM), ("attn_k_norm", DIM)):
            add(f"{block}.{norm}", width, kind=KINDS.F32)
        add(f"{block}.attn_q", HEADS * DIM, HIDDEN)
        add(f"{block}.attn_k", KV_HEADS * DIM, HIDDEN)
        add(f"{block}.attn_v", KV_HEADS * DIM, HIDDEN)
        add(f"{block}.attn_output", HIDDEN, HEADS * DIM)
        add(f"{block}.ffn_gate_inp", options.experts, HIDDEN, kind=KINDS.F32)
        add(f"{block}.ffn_gate_exps", options.experts, INNER, HIDDEN)
        add(f"{block}.ffn_up_exps", options.experts, INNER, HIDDEN)
        add(f"{block}.ffn_down_exps", options.experts, HIDDEN, INNER, kind=KINDS.Q6_K if layer % 2 else KINDS.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def made(shape: tuple[int, ...], kind: KINDS, rng: np.random.Generator) -> NDArray[np.uint8] | NDArray[np.float32]:
    """A tensor's bytes: norms are ones, matrices of a variance that keeps vectors as long as they are."""
    if kind is KINDS.F32:
        return (
            np.ones(shape, np.float32)
            if len(shape) == 1
            else rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
        )
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (*shape[:-1], shape[-1] // block, size), dtype=np.uint8)
    if kind is KINDS.Q4_K:  # scale, least; six bits of each for 32 numbers, 16 codes: their mean is about zero
        scale = np.array([1.0, 7.5], np.float16) * np.float16(shape[-1] ** -0.5 / 250)
        data[..., :4] = scale.astype(np.float16).view(np.uint8)
    else:  # Q6_K: codes, whole scales of 16 numbers, and one for all
        data[..., -2:] = np.array([shape[-1] ** -0.5 / 1400], np.float16).view(np.uint8)
    return data.reshape(*shape[:-1], -1)


if __name__ == "__main__":
    main()
