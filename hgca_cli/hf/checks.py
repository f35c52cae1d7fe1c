"""A model directory is looked at before anything is built from it: each bad file is one line naming it.

transformers warns and goes on where weights are missing, builds a million layers if a config says so, and names no file
when safetensors are damaged (docs/design.md, "Untrusted files").
"""

from __future__ import annotations

import errno
import json
from math import prod
from pathlib import Path
from typing import Any

from hgca_cli.errors import DoesNotFitError, ModelError
from hgca_cli.hf.shape import refuse_unsupported_model
from hgca_cli.units import format_bytes

# What a config may say at most: generous for any model there is, small enough that nothing is built for hours.
PLAUSIBLE = {
    "num_hidden_layers": 2048,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 4096,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 30,
}
FETCH_AGAIN = "Fetch the model again."
NO_MEMORY = f"(os error {errno.ENOMEM})"  # as safetensors tells it


def reason(error: BaseException, most: int = 160) -> str:
    """What an error of a library says, as the end of one of our lines."""
    said = " ".join(str(error).split())[:most].rstrip(" .")
    return f"{type(error).__name__} {said}".rstrip() if isinstance(error, KeyError) or not said else said


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model's file. Raises ModelError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing.", "Name the directory of a complete model.") from error
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or "it is not valid JSON"
        raise ModelError(f"{path} cannot be read: {why}.", FETCH_AGAIN) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object.", FETCH_AGAIN)
    return content


def check_config(path: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """config.json of a model directory, plausible and of a family transformers knows. Raises ModelError."""
    file = path / "config.json"
    config = read_json(file)
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise ModelError(f"{file} names no model_type.", FETCH_AGAIN)
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if kind not in CONFIG_MAPPING_NAMES and not (config.get("auto_map") and trust_remote_code):
        if config.get("auto_map"):
            raise ModelError(
                f"{path} brings its own code, which is not run.", "If you trust its author: --trust-remote-code."
            )
        raise ModelError(f"{file}: transformers knows no model family {kind!r}.", "A newer transformers may.")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name, most in PLAUSIBLE.items():
            values = part.get(name)
            for value in values if isinstance(values, list) else [values]:  # a list has one per layer
                if value is None:
                    continue
                if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
                    raise ModelError(
                        f"{file}: {name} = {str(value)[:40]} is not plausible (1 .. {most:,}).", FETCH_AGAIN
                    )
    return config


def check_weights(path: Path) -> list[Path]:
    """The safetensors files of a model directory, each with a sound header. Raises ModelError naming the file."""
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    files: list[Path] = []  # those transformers will read
    if whole.exists():
        files = [whole]
    elif index.exists():
        files = [path / name for name in _shards(index)]
    if not files:
        if others := sorted(p.name for p in path.glob("*.safetensors")):
            raise ModelError(
                f"{path} has {others[0]}, but neither model.safetensors nor an index of its parts.", FETCH_AGAIN
            )
        if any(any(path.glob(kind)) for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt")):
            raise ModelError(
                f"{path} has only pickle weights (.bin), which can run code when they are loaded: refused.",
                "Use a model with safetensors, or convert it with its author's tools.",
            )
        raise ModelError(f"{path} has no model.safetensors.", FETCH_AGAIN)
    for file in files:
        tensor_bytes(file)
    return files


def tensor_bytes(file: Path) -> dict[str, tuple[int, int]]:
    """Numbers and bytes of each tensor in a safetensors file. Raises ModelError naming the file."""
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        raise ModelError(f"{file} is missing.", FETCH_AGAIN)
    sizes: dict[str, tuple[int, int]] = {}
    try:
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no dict)
                part = tensors.get_slice(name)
                count = 1
                for size in part.get_shape():
                    count *= size
                sizes[name] = (count, count * _BITS.get(part.get_dtype(), 32) // 8)
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or NO_MEMORY in str(error):
            raise DoesNotFitError(
                f"{file} cannot be opened: no memory for its {format_bytes(file.stat().st_size)}.",
                "Free memory, raise the limit (ulimit -v), or choose a smaller model.",
            ) from error
        raise ModelError(f"{file} is damaged: {reason(error)}.", FETCH_AGAIN) from error
    return sizes


def tensor_dtypes(file: Path) -> dict[str, int]:
    """Numbers of each dtype, as safetensors calls it ("BF16"), in a file that `tensor_bytes` found sound."""
    from safetensors import safe_open

    counts: dict[str, int] = {}
    with safe_open(file, framework="np") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (safe_open is no dict)
            part = tensors.get_slice(name)
            counts[part.get_dtype()] = counts.get(part.get_dtype(), 0) + prod(part.get_shape())
    return counts


def weights_bytes(path: Path, itemsize: int) -> int:
    """Bytes of a model's weights once loaded with numbers of `itemsize` bytes."""
    return sum(count for file in check_weights(path) for count, _ in tensor_bytes(file).values()) * itemsize


def check_size(config: Any, path: Path, *, trust_remote_code: bool = False) -> None:
    """The model a config describes, built without memory, is one we can run and no larger than its files.

    Raises ModelError.

    Missing and mismatched weights are told by name once loaded, but only after room was made for all of them.
    """
    counts = [count for file in check_weights(path) for count, _ in tensor_bytes(file).values()]
    text = config.get_text_config(decoder=True)
    if text.num_hidden_layers > len(counts):
        raise ModelError(
            f"{path}: config.json wants {text.num_hidden_layers:,} layers, the files have {len(counts):,} tensors.",
            "config.json and weights are of different models.",
        )
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    refuse_unsupported_model(model)
    wanted = sum(p.numel() for p in model.parameters())
    packed = 8 if getattr(config, "quantization_config", None) else 2  # 4-bit codes in words; a head tied or not
    if wanted > packed * sum(counts):
        raise ModelError(
            f"{path}: config.json describes {wanted:,} weights, the files have {sum(counts):,}.",
            "config.json and weights are of different models.",
        )


def _shards(index: Path) -> list[str]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(f"{index} has no weight_map of file names.", FETCH_AGAIN)
    names = sorted(set(shards.values()))
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise ModelError(f"{index} points outside its directory: {name[:80]!r}.", "Do not trust this model.")
        if not (index.parent / name).exists():
            raise ModelError(f"{index} names {name}, which is missing.", FETCH_AGAIN)
    return names


_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
_BITS |= {"F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8}
