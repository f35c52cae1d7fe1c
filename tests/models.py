"""Tiny random models on disk, as safetensors and as GGUF, and the ways to damage them."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.hf.load import LoadedModel, load_model
from hgca_cli.hf.registry import ModelFiles
from tests.tiny_engine import TEMPLATE, tiny_model, tiny_tokenizer

LAYERS, HEADS, KV_HEADS = 2, 4, 2


def write_model(path: Path, template: str | None = TEMPLATE, model: Any = None) -> Path:
    """A whole model directory: config, generation config, tokenizer, model.safetensors. model: in place of the tiny one."""
    (tiny_model() if model is None else model).save_pretrained(path)
    tiny_tokenizer(template).hf.save_pretrained(path)
    return path


def in_floats(files: ModelFiles) -> LoadedModel:
    """A model as transformers loads it, all in float32."""
    model = AutoModelForCausalLM.from_pretrained(files.path, dtype=torch.float32).eval().requires_grad_(False)
    return replace(load_model(files), model=model)


def written(loaded: LoadedModel) -> list[int]:
    """A prompt's tokens, and those a model writes after it, greedily."""
    engine = Engine(loaded, CacheSettings(window=16, sinks=2, context=128, select="exact"), prefill_chunk=8)
    sequence = engine.new_sequence()
    ids = tiny_tokenizer().encode("the cat sat on the mat and looked at naïve people")
    list(engine.answer(sequence, ids, SamplingSettings(temperature=0.0, max_tokens=30), threading.Event()))
    tokens = list(sequence.tokens)
    sequence.close()
    return tokens


def change_config(path: Path, **changes: Any) -> None:
    """Set keys of config.json; None takes one away."""
    file = path / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Rewrite model.safetensors with what `change` makes of its tensors."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def shard(path: Path, name: str = "model-00002-of-00002.safetensors") -> Path:
    """Split model.safetensors in two; the second is called `name` in the index. Returns the index."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    first, second = names[: len(names) // 2], names[len(names) // 2 :]
    one = "model-00001-of-00002.safetensors"
    save_file({n: tensors[n] for n in first}, path / one, metadata={"format": "pt"})
    save_file({n: tensors[n] for n in second}, path / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    index = path / "model.safetensors.index.json"
    places = dict.fromkeys(first, one) | dict.fromkeys(second, name)
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def raw_safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header: an object written as JSON, or bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def write_gguf(
    path: Path,
    *,
    tokenizer: bool = True,
    quant: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    leave_out: str = "",
    arch: str = "llama",
    each: int = 0,
) -> Path:
    """The tiny model as a GGUF file, named and ordered as llama.cpp's converter does it.

    quant  of the matrices (their rows are 32 or 48 numbers: a block is 32, so only some take Q8_0)
    each   tensors of a file, if there are to be several; the first of them is returned
    """
    model, fast = tiny_model(), tiny_tokenizer().hf
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=each)
    config = model.config
    add_shape(writer, config)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    if tokenizer:
        add_tokenizer(writer, fast, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, tensor in model.state_dict().items():
        if name == leave_out:
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = _permuted(tensor, HEADS if "q_proj" in name else KV_HEADS)
        data = tensor.numpy().copy()
        fits = data.ndim == 2 and data.shape[1] % gguf.GGML_QUANT_SIZES[quant][0] == 0
        kind = quant if fits else gguf.GGMLQuantizationType.F32
        packed = data if kind == gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(data, kind)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), packed, raw_dtype=kind)
    finish(writer)
    return min(path.parent.glob(f"{path.stem}-00001-of-*.gguf")) if each else path


def add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    """The keys that files of all families have."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)


def finish(writer: gguf.GGUFWriter) -> None:
    """Everything was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_bytes(
    pairs: list[bytes] = (), tensors: list[bytes] = (), *, version: int = 3,  # type: ignore[assignment]
    counts: tuple[int, int] | None = None, data: bytes = b"",
) -> bytes:  # fmt: skip
    """A GGUF file put together by hand."""
    count = counts or (len(tensors), len(pairs))
    return b"GGUF" + struct.pack("<IQQ", version, *count) + b"".join(pairs) + b"".join(tensors) + data


def gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf_tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return gguf_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def add_tokenizer(writer: gguf.GGUFWriter, fast: Any, rows: int) -> None:
    spec = json.loads(fast.backend_tokenizer.to_str())
    by_id = {index: token for token, index in fast.get_vocab().items()}
    control = set(fast.all_special_tokens)
    tokens = [by_id.get(index, f"<unused{index}>") for index in range(rows)]
    kinds = [3 if token in control else 1 if index in by_id else 5 for index, token in enumerate(tokens)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]])
    writer.add_bos_token_id(fast.convert_tokens_to_ids("<|end|>"))
    writer.add_eos_token_id(fast.convert_tokens_to_ids("<|end|>"))
    writer.add_chat_template(TEMPLATE)


def _permuted(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key matrix as GGUF orders them for llama: rotary pairs are neighbours."""
    rows, columns = tensor.shape
    return tensor.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def same_numbers(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the last bit, NaN included."""
    return bool(numpy.array_equal(a.numpy(), b.numpy(), equal_nan=True))
