"""Weights' files mapped into memory, to be read only, and a model that has its weights there.

torch maps a file as if it were going to write to it, which a system grants for no more than it has memory: a file of 30 GB, of which
nearly nothing is read (hf/gguf_waiting.py) or a matrix at a time (hf/packed.py), could not be opened with 24.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGE = 0.5  # of the memory
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def tensors_of(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file with a sound header, where they are; nothing may write to them.

    Raises KeyError for a kind of numbers that torch has no name for here.
    """
    with file.open("rb") as opened:
        length = struct.unpack("<Q", opened.read(8))[0]
        header = json.loads(opened.read(length))
    data = np.memmap(file, np.uint8, "r")
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that they must not be written to
        for name, one in header.items():
            if name != "__metadata__":
                first, end = (8 + length + at for at in one["data_offsets"])
                found[name] = torch.from_numpy(data[first:end]).view(DTYPES[one["dtype"]]).view(one["shape"])
    return found


def all_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """Those of a model's files, as of tensors_of."""
    return {name: tensor for file in files for name, tensor in tensors_of(file).items()}


def too_large(files: Iterable[Path]) -> bool:
    """Whether one of these is so large that torch might not be granted it."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return any(file.stat().st_size > LARGE * memory for file in files)


def nothing(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Zeros that take no memory; nothing may write to them."""
    size = shape.numel() * dtype.itemsize
    if hasattr(mmap, "PROT_READ"):
        room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    else:
        room = mmap.mmap(-1, size)  # taken once something is written
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(room, dtype=dtype).view(shape)


def load(path: Path, config: Any, state: dict[str, Tensor], dtype: torch.dtype, **how: Any) -> Any:
    """What AutoModelForCausalLM.from_pretrained gives of the directory `path`, with these weights in place of its files'.

    how  of its options. The model's code is transformers' own.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig

    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model, info = kind.from_pretrained(None, config=config, state_dict=state, dtype=dtype, **how)
    if (path / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return model, info
