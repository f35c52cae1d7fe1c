"""Weights of a GGUF file by the names a model has for them, made numbers when they are asked for.

Which tensor is which weight, and what is to be done to it (rows that llama.cpp permutes, norms it keeps one larger), is asked of
transformers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hgca_cli.hf.gguf_check import HEADS, Contents, Stored

AT_ONCE = 1 << 20  # numbers a thread dequantises, in several arrays of floats (docs/log.md)


class Tensors:
    """A sound GGUF file's weights.

    wanted  names and shapes of what belongs in the model's files: tied weights once, buffers if they are kept
    known   whether the file has a tensor for each of them, as far as transformers says

    contents  of the file (hf/gguf_check.py); model: what its config describes, without memory (`without_memory`)
    """

    def __init__(self, contents: Contents, model: Any) -> None:
        from transformers import modeling_gguf_pytorch_utils as theirs

        self._contents, config = contents, model.config.to_dict()
        self._processor = theirs.TENSOR_PROCESSORS.get(contents.architecture, theirs.TensorProcessor)(config=config)
        self._names = _names_by_theirs(model, contents.architecture, self._processor)
        self._plainly = theirs.TensorProcessor.process
        self._told: dict[str, Any] = {"config": config, "tensors": {}}
        self.wanted = _names_and_shapes(model)
        self.known = set(self.wanted) <= set(self._names.values())

    def stored(self) -> dict[str, Stored]:
        """Tensors of the file that are a weight of the model's."""
        return {self._names[one.name]: one for one in self._contents.tensors if one.name in self._names}

    def each(self, but: Collection[str] = ()) -> Iterator[tuple[str, Tensor]]:
        """Name and numbers, f32, of all that are in the file, in its order."""
        for tensor in self._contents.tensors:
            if self._names.get(tensor.name) in but:
                continue
            name, weight = self._process(tensor, _floats(tensor))
            if name is not None:
                yield name, weight

    def numbers(self, name: str, dtype: torch.dtype, rows: int | None = None) -> Tensor:
        """A matrix of `stored`, as `each` has it; of an embedding, if that is asked for, the first rows.

        Raises what the libraries raise.
        """
        tensor = self.stored()[name]
        out = torch.empty((min(rows or tensor.shape[0], tensor.shape[0]), tensor.shape[1]), dtype=dtype)
        apart = tensor.name in HEADS or type(self._processor).process is self._plainly  # nothing is done to their rows

        def fill(part: slice) -> None:
            found, weight = self._process(tensor, _floats(tensor, part))
            if found != name or weight.shape != out[part].shape:
                raise ValueError(f"{tensor.name} is not the whole of {name}")
            out[part] = weight

        _in_parts(fill, len(out), max(1, AT_ONCE // tensor.shape[1]) if apart else len(out))
        return out

    def _process(self, tensor: Stored, numbers: NDArray[np.float32]) -> tuple[str | None, Tensor]:
        made = self._processor.process(
            weights=numbers, name=tensor.name, tensor_key_mapping=self._names, parsed_parameters=self._told
        )
        if made.name not in self._names:
            return None, torch.empty(0)
        return self._names[made.name], torch.from_numpy(np.ascontiguousarray(made.weights, dtype=np.float32))


def without_memory(config: Any, dtype: torch.dtype) -> Any:
    """The model that a config describes. Raises what transformers raises."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def _names_and_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    state = model.state_dict()
    named = dict(model.named_parameters()) | dict(model.named_buffers())  # each by its first name
    return {name: tuple(one.shape) for name, one in state.items() if name in named}


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


def _in_parts(fill: Callable[[slice], None], count: int, each: int) -> None:
    """`each` of 0 .. count - 1 at a time, by several threads."""
    parts = [slice(first, min(first + each, count)) for first in range(0, count, each)]
    if len(parts) == 1:
        fill(parts[0])
        return
    with ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0)))) as pool:
        for _ in pool.map(fill, parts):
            pass


def _floats(tensor: Stored, part: slice = slice(None)) -> NDArray[np.float32]:
    """The numbers of a tensor of a GGUF file, or of some rows of a matrix, f32."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    data = np.memmap(tensor.file, np.uint8, "r", tensor.at, (tensor.bytes,)).reshape(prod(tensor.shape[:-1]), -1)
    data = np.asarray(data[part] if len(tensor.shape) == 2 else data)
    out = np.empty((len(data), tensor.shape[-1]), dtype=np.float32)

    def fill(rows: slice) -> None:
        out[rows] = dequantize(data[rows], GGMLQuantizationType(tensor.kind))

    _in_parts(fill, len(data), max(1, AT_ONCE // tensor.shape[-1]))
    return out if len(tensor.shape) == 2 else out.reshape(tensor.shape)
