"""A GGUF file's weights into safetensors, one tensor after the other: in memory is one of them, and a file that is written.

transformers reads such a file whole, in floats: an 8B model of 4 bits takes 20 GB so. Which tensor is which weight, and what is to be
done to it (rows that llama.cpp permutes, norms it keeps one larger), is asked of transformers; if its answers are not all the
weights the model has, or it has become another, nothing is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hgca_cli.hf.gguf_check import Contents, Stored

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 1 << 29
AT_ONCE = 1 << 23  # numbers a thread dequantises, in several arrays of floats


def write_weights(path: Path, contents: Contents, target: Path, dtype: torch.dtype) -> bool:
    """Write config.json, generation_config.json and the weights of a sound GGUF file into `target`, as numbers of `dtype`.

    False, and no weights are left there, if transformers does not name every weight. Raises what the libraries raise.
    """
    model = _without_memory(path, dtype)
    wanted = _names_and_shapes(model)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    shards = _Shards(target)
    try:
        for name, weight in _weights(path, contents, model, list(wanted)):
            if wanted.pop(name, None) != tuple(weight.shape):
                return False
            shards.add(name, weight.to(dtype))
        if not wanted:
            shards.finish()
        return not wanted
    finally:
        shards.close()


def _without_memory(path: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(
        str(path.parent), gguf_file=path.name, trust_remote_code=False, local_files_only=True
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def _names_and_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Of what belongs in the files: tied weights once, buffers if they are kept."""
    state = model.state_dict()
    named = dict(model.named_parameters()) | dict(model.named_buffers())  # each by its first name
    return {name: tuple(one.shape) for name, one in state.items() if name in named}


def _weights(path: Path, contents: Contents, model: Any, wanted: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor that is one of the model's weights, by its name there, in f32; none if some that are wanted have no name."""
    from transformers import modeling_gguf_pytorch_utils as theirs

    config = model.config.to_dict()
    processor = theirs.TENSOR_PROCESSORS.get(contents.architecture, theirs.TensorProcessor)(config=config)
    names = _names_by_theirs(model, contents.architecture, processor)
    if not set(wanted) <= set(names.values()):
        return
    told: dict[str, Any] = {"config": config, "tensors": {}}
    with ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0)))) as pool:
        for tensor in contents.tensors:
            made = processor.process(
                weights=_floats(path, tensor, pool), name=tensor.name, tensor_key_mapping=names, parsed_parameters=told
            )
            if made.name in names:
                yield names[made.name], torch.from_numpy(np.ascontiguousarray(made.weights, dtype=np.float32))


def _names_by_theirs(model: Any, architecture: str, processor: Any) -> dict[str, str]:
    """The model's names of its weights, by those in a file."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    known = get_tensor_name_map(arch, model.config.num_hidden_layers)
    found = {}
    for name in model.state_dict():
        stem, dot, end = processor.preprocess_name(name).rpartition(".")
        if end in ("weight", "bias") and (theirs := known.get_name(stem)):
            found[theirs + dot + end] = name
        elif theirs := known.get_name(name):
            found[theirs] = name
    return found


def _floats(path: Path, tensor: Stored, pool: ThreadPoolExecutor) -> NDArray[np.float32]:
    """The numbers of a tensor of a GGUF file, f32."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    data = np.memmap(path, np.uint8, "r", tensor.at, (tensor.bytes,)).reshape(prod(tensor.shape[:-1]), -1)
    out = np.empty((len(data), tensor.shape[-1]), dtype=np.float32)
    rows = max(1, AT_ONCE // tensor.shape[-1])

    def fill(first: int) -> None:
        out[first : first + rows] = dequantize(data[first : first + rows], GGMLQuantizationType(tensor.kind))

    for _ in pool.map(fill, range(0, len(data), rows)):
        pass
    return out.reshape(tensor.shape)


class _Shards:
    """Files of weights, each written once there is enough for it; a small model has one."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._waiting: dict[str, Tensor] = {}
        self._places: dict[str, str] = {}
        self._bytes = self._whole = 0
        self._files: list[Path] = []

    def add(self, name: str, weight: Tensor) -> None:
        if self._bytes >= SHARD_BYTES:
            self._write(f"model-{len(self._files) + 1:05}.safetensors")
        self._waiting[name] = weight.contiguous()
        self._bytes += weight.numel() * weight.element_size()

    def finish(self) -> None:
        """All are there: the index of the files is written, last."""
        if not self._files:
            self._write("model.safetensors")
        else:
            self._write(f"model-{len(self._files) + 1:05}.safetensors")
            text = json.dumps({"metadata": {"total_size": self._whole}, "weight_map": self._places}, indent=2)
            (self._target / INDEX).write_text(text + "\n", encoding="utf-8")
        self._files = []

    def close(self) -> None:
        """Nothing is left of files that were not finished."""
        for file in self._files:
            file.unlink(missing_ok=True)

    def _write(self, name: str) -> None:
        from safetensors.torch import save_file

        self._files.append(self._target / name)
        save_file(self._waiting, self._files[-1], metadata={"format": "pt"})
        self._places.update(dict.fromkeys(self._waiting, name))
        self._whole += self._bytes
        self._waiting, self._bytes = {}, 0
