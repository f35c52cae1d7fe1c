"""A .gguf file becomes a directory of safetensors, once, in the cache.

transformers keeps the weights of most GGUF files packed, which decodes at a few tokens a second here, or dequantises
them slowly at every start; the same weights open from safetensors in a tenth of a second.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
import time
from pathlib import Path

from hgca_cli.errors import DoesNotFitError, ModelError
from hgca_cli.events import Notice
from hgca_cli.hf.registry import Notify
from hgca_cli.units import format_bytes

DAMAGED = (ValueError, struct.error, KeyError, IndexError, MemoryError, OverflowError, TypeError, UnicodeDecodeError)
VERSIONS = (2, 3)
FULL_PRECISION_BYTES = 1 << 30  # larger models are kept in bf16


def converted(path: Path, found: os.stat_result, cache: Path, notify: Notify) -> Path:
    """The cached directory for a GGUF file, made now if it is not there. The file is known by path, size and time.

    Raises ModelError for a damaged or unsupported file.
    """
    identity = f"{path.resolve()}|{found.st_size}|{found.st_mtime_ns}"
    target = cache / "models" / f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if not (target / "config.json").exists():
        convert(path, target, notify)
    return target


def convert(path: Path, target: Path, notify: Notify) -> None:
    """Dequantise a GGUF file into `target`, which appears whole or not at all."""
    numbers = check_gguf(path)
    small = numbers * 4 <= FULL_PRECISION_BYTES
    notify(
        Notice(
            f"converting {path.name} to safetensors ({'fp32' if small else 'bf16'}), once; larger files take minutes"
        )
    )
    began = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    needed, free = numbers * (4 if small else 2), shutil.disk_usage(target.parent).free
    if needed > free:
        raise DoesNotFitError(
            f"converting {path.name} needs {format_bytes(needed)} in {target.parent}, {format_bytes(free)} are free.",
            "Make room, or set HGCA_CACHE_DIR.",
        )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as scratch:
        work = Path(scratch) / "model"
        _dequantise(path, work, small)
        try:
            work.rename(target)
        except OSError:
            if not (target / "config.json").exists():  # else another process was faster
                raise
    notify(Notice(f"converted in {time.monotonic() - began:.0f} s: {target}"))


def check_gguf(path: Path) -> int:
    """Numbers in all tensors of a GGUF file that is sound and has a tokenizer. Raises ModelError naming the file."""
    _check_header(path)
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        names = [tensor.name for tensor in reader.tensors]
        for tensor in reader.tensors:
            if int(tensor.data_offset) + int(tensor.n_bytes) > path.stat().st_size:
                raise ModelError(f"{path} is cut short: tensor {tensor.name} ends beyond the file.", "Fetch it again.")
        numbers = sum(int(tensor.n_elements) for tensor in reader.tensors)
        has_tokenizer = "tokenizer.ggml.tokens" in reader.fields
    except DAMAGED as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ModelError(f"{path} is damaged or of an unknown kind ({reason}).", "Fetch it again.") from error
    if len(set(names)) != len(names):
        raise ModelError(f"{path} names a tensor twice.", "Fetch it again.")
    if not has_tokenizer:
        raise ModelError(f"{path} has no tokenizer.", "Use a GGUF file made from a whole language model.")
    return numbers


def _check_header(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[:4] != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file.", "Its first bytes should be 'GGUF'.")
    version, tensors, pairs = struct.unpack("<IQQ", head[4:])
    if version not in VERSIONS:
        raise ModelError(f"{path} is GGUF version {version}; versions 2 and 3 are read.", "Convert it again.")
    if tensors == 0 or tensors * 32 > size or pairs * 12 > size:  # the fewest bytes one of each takes
        raise ModelError(
            f"{path} claims {tensors:,} tensors and {pairs:,} keys in {size:,} bytes: damaged.", "Fetch it again."
        )


def _dequantise(path: Path, target: Path, small: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from hgca_cli.hf.quiet import quiet

    folder, name = str(path.resolve().parent), path.name
    with quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32 if small else torch.bfloat16,
                trust_remote_code=False,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
        except (*DAMAGED, NotImplementedError, AttributeError, RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0][:150] if str(error) else type(error).__name__
            raise ModelError(f"{path} cannot be converted ({reason}).", "Try the model's safetensors.") from error
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
