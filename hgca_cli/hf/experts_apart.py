"""Experts of safetensors that have a tensor for each: put together layer by layer, when they are packed.

A model has one tensor for all experts of a layer, and transformers puts them together in memory before anything else is done with
them: a mixture of 30B parameters takes 61 GB so, whatever it is packed to. Here it is given tensors of which nothing is in memory in
their place, and all others as they are in the files.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hgca_cli.hf.experts import FIRST, LAST
from hgca_cli.hf.gguf_tensors import in_parts, without_memory
from hgca_cli.hf.published import KINDS

NAME = re.compile(r"(?P<at>.*\.layers\.(?P<layer>\d+)\..*experts)\.(?P<expert>\d+)\.(?P<part>\w+)\.weight$")
LAYER = re.compile(r"\.layers\.(\d+)\.")
PARTS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))  # what families call gate, up and down


class _Place(NamedTuple):
    file: Path
    name: str
    shape: tuple[int, ...]


class Apart:
    """The experts of a model's files, by the model's names of what they are put together to.

    names   of these tensors
    dtype   of all of them
    """

    def __init__(self, found: dict[str, list[list[_Place]]], dtype: torch.dtype, others: dict[str, Path]) -> None:
        self._found, self._others, self.dtype = found, others, dtype
        self.names = frozenset(found)

    @classmethod
    def of(cls, files: Iterable[Path], config: Any) -> Apart | None:
        """None if not all experts of the model that a config describes are in its files one by one. Raises what transformers raises."""
        from safetensors import safe_open

        there: dict[tuple[int, str, int], _Place] = {}
        others: dict[str, Path] = {}
        kinds = set()
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (safe_open is no dict)
                    if (match := NAME.match(name)) is None:
                        others[name] = file
                        continue
                    part = tensors.get_slice(name)
                    kinds.add(part.get_dtype())
                    key = int(match["layer"]), match["part"], int(match["expert"])
                    there[key] = _Place(file, name, tuple(part.get_shape()))
        dtype = KINDS.get(kinds.pop()) if len(kinds) == 1 else None
        if dtype is None:
            return None
        found = _put_together(without_memory(config, dtype), there)
        return cls(found, dtype, others) if found else None

    def load(self, path: Path, config: Any, **how: Any) -> Any:
        """What from_pretrained gives, of the directory `path`, but that these tensors hold nothing; how: of its options."""
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig

        kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model, info = kind.from_pretrained(None, config=config, state_dict=self.state(), dtype=self.dtype, **how)
        if (path / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
        return model, info

    def state(self) -> dict[str, Any]:
        """What transformers is to load in place of the files: tensors without memory, and of all others where they are."""
        from safetensors import safe_open

        opened = {file: safe_open(file, framework="pt") for file in {*self._others.values()}}
        state: dict[str, Any] = {name: opened[file].get_slice(name) for name, file in self._others.items()}
        return state | {name: self._without_memory(parts) for name, parts in self._found.items()}

    def numbers(self, name: str) -> Tensor:
        """All experts of a layer, [experts, outputs, inputs], in memory of their own."""
        from safetensors import safe_open

        parts = self._found[name]
        out = torch.empty(_shape(parts), dtype=self.dtype)
        files = {place.file for places in parts for place in places}
        opened = {file: safe_open(file, framework="pt") for file in files}

        def fill(experts: slice) -> None:
            for expert in range(experts.start, experts.stop):
                first = 0
                for place in parts[expert]:
                    rows = place.shape[0]
                    out[expert, first : first + rows] = opened[place.file].get_tensor(place.name)
                    first += rows

        in_parts(fill, len(parts), 1)
        return out

    def _without_memory(self, parts: list[list[_Place]]) -> Tensor:
        shape = _shape(parts)
        room = mmap.mmap(-1, shape.numel() * self.dtype.itemsize)  # pages nobody writes to take none
        return torch.frombuffer(room, dtype=self.dtype).view(shape)


def _shape(parts: list[list[_Place]]) -> torch.Size:
    return torch.Size((len(parts), sum(place.shape[0] for place in parts[0]), parts[0][0].shape[1]))


def _put_together(model: Any, there: dict[tuple[int, str, int], _Place]) -> dict[str, list[list[_Place]]]:
    """By the model's names, of each expert the tensors whose rows are one behind the other; nothing unless these are all there are."""
    found: dict[str, list[list[_Place]]] = {}
    for at, module in model.named_modules():
        own, layer = module._parameters, LAYER.search(at)
        if layer is None or own.get(FIRST) is None or own.get(LAST) is None or getattr(module, "is_transposed", True):
            continue
        for gate, up, down in PARTS:
            for name, wanted in ((FIRST, (gate, up)), (LAST, (down,))):
                shape = own[name].shape
                keys = [[(int(layer[1]), part, expert) for part in wanted] for expert in range(shape[0])]
                if all(key in there for one in keys for key in one):
                    parts = [[there[key] for key in one] for one in keys]
                    if len({tuple(place.shape for place in one) for one in parts}) == 1 and _shape(parts) == shape:
                        found[f"{at}.{name}"] = parts
    used = sum(len(one) for parts in found.values() for one in parts)
    return found if used == len(there) else {}
