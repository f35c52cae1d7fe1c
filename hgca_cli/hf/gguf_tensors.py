"""Weights of a GGUF file by the names a model has for them, made numbers when they are asked for.

Which tensor is which weight, and what is to be done to it (rows that llama.cpp permutes, norms it keeps one larger), is asked of
transformers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hgca_cli.hf.experts import FIRST, LAST
from hgca_cli.hf.gguf_check import HEADS, Contents, Stored

LAYER = re.compile(r"\.layers\.(\d+)\.")  # in a module's name
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
        self._experts = _experts(model, self.wanted, contents)
        self._part_of = {part.name: name for name, parts in self._experts.items() for part in parts}
        self.known = set(self.wanted) <= {*self._names.values(), *self._experts}

    def stored(self) -> dict[str, Stored]:
        """Tensors of the file that are a weight of the model's, as it is there."""
        return {self._names[one.name]: one for one in self._contents.tensors if one.name in self._names}

    def has(self, name: str) -> bool:
        """Whether `numbers` gives a weight, of the shape that is wanted."""
        stored = self.stored()
        return name in self._experts or (name in stored and stored[name].shape == self.wanted.get(name))

    def each(self, but: Collection[str] = ()) -> Iterator[tuple[str, Tensor]]:
        """Name and numbers, f32, of all that are in the file, in its order."""
        for tensor in self._contents.tensors:
            if (of := self._part_of.get(tensor.name)) is not None:
                if of not in but and tensor is self._experts[of][0]:
                    yield of, self.numbers(of, torch.float32)
                continue
            if self._names.get(tensor.name) in but:
                continue
            name, weight = self._process(tensor, _floats(tensor))
            if name is not None:
                yield name, weight

    def numbers(self, name: str, dtype: torch.dtype, rows: int | None = None) -> Tensor:
        """A matrix of `stored`, or a layer's experts, as `each` has it; of an embedding, if that is asked for, the first rows.

        Raises what the libraries raise.
        """
        if (parts := self._experts.get(name)) is not None:
            return one_behind_the_other(
                _stacked(parts), dtype, lambda expert: (_rows_of(part, expert) for part in parts)
            )
        tensor = self.stored()[name]
        out = torch.empty((min(rows or tensor.shape[0], tensor.shape[0]), tensor.shape[1]), dtype=dtype)
        apart = tensor.name in HEADS or type(self._processor).process is self._plainly  # nothing is done to their rows

        def fill(part: slice) -> None:
            found, weight = self._process(tensor, _floats(tensor, part))
            if found != name or weight.shape != out[part].shape:
                raise ValueError(f"{tensor.name} is not the whole of {name}")
            out[part] = weight

        in_parts(fill, len(out), max(1, AT_ONCE // tensor.shape[1]) if apart else len(out))
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


def _experts(model: Any, wanted: dict[str, tuple[int, ...]], contents: Contents) -> dict[str, tuple[Stored, ...]]:
    """The tensors of a file that hold a layer's experts, of which the model has gate and up in one, by the model's names."""
    there, found = {one.name: one for one in contents.tensors}, {}
    for at, module in model.named_modules():
        layer = LAYER.search(at)
        if layer is None or getattr(module, "is_transposed", True) or not getattr(module, "is_concatenated", False):
            continue
        for own, choices in ((FIRST, (("gate_up",), ("gate", "up"))), (LAST, (("down",),))):
            for choice in choices:
                parts = [there.get(f"blk.{layer[1]}.ffn_{part}_exps.weight") for part in choice]
                held = tuple(one for one in parts if one is not None and len(one.shape) == 3)
                if len(held) < len(choice) or wanted.get(f"{at}.{own}") != _stacked(held):
                    continue
                found[f"{at}.{own}"] = held
                break
    return found


def _stacked(parts: Sequence[Stored]) -> tuple[int, ...]:
    """The shape of [experts, outputs, inputs] whose outputs are one behind the other."""
    experts, _, inputs = parts[0].shape
    return experts, sum(one.shape[1] for one in parts), inputs


def one_behind_the_other(
    shape: tuple[int, ...], dtype: torch.dtype, rows_of: Callable[[int], Iterable[Tensor]]
) -> Tensor:
    """[experts, outputs, inputs] of what `rows_of` an expert gives, whose rows are one behind the other; several threads ask it."""
    out = torch.empty(shape, dtype=dtype)

    def fill(experts: slice) -> None:
        for expert in range(experts.start, experts.stop):
            first = 0
            for rows in rows_of(expert):
                out[expert, first : first + len(rows)] = rows
                first += len(rows)

    in_parts(fill, len(out), 1)
    return out


def _rows_of(part: Stored, expert: int) -> Tensor:
    experts, rows, inputs = part.shape
    whole = part._replace(shape=(experts * rows, inputs))
    return torch.from_numpy(_floats(whole, slice(expert * rows, (expert + 1) * rows)))


def in_parts(fill: Callable[[slice], None], count: int, each: int) -> None:
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

    in_parts(fill, len(data), max(1, AT_ONCE // tensor.shape[-1]))
    return out if len(tensor.shape) == 2 else out.reshape(tensor.shape)
