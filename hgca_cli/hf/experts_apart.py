"""Experts of safetensors that have a tensor for each: put together layer by layer, when they are packed.

A model has one tensor for all experts of a layer, and transformers puts them together in memory before anything else is done with
them: a mixture of 30B parameters takes 61 GB so, whatever it is packed to. Here it is given tensors of which nothing is in memory in
their place, and all others as they are in the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hgca_cli.hf.elsewhere import Elsewhere
from hgca_cli.hf.experts import FIRST, LAST
from hgca_cli.hf.gguf_tensors import LAYER, one_behind_the_other, without_memory
from hgca_cli.hf.mapped import nothing, tensors_of
from hgca_cli.hf.published import KINDS

NAME = re.compile(r"(?P<at>.*\.layers\.(?P<layer>\d+)\..*experts)\.(?P<expert>\d+)\.(?P<part>\w+)\.weight$")
PARTS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))  # what families call gate, up and down


class _Place(NamedTuple):
    file: Path
    name: str
    shape: tuple[int, ...]


class Apart(Elsewhere):
    """The experts of a model's files, by the model's names of what they are put together to.

    names   of these tensors
    """

    def __init__(self, found: dict[str, list[list[_Place]]], dtype: torch.dtype, others: dict[str, Path]) -> None:
        self._found, self._others, self._dtype = found, others, dtype
        self.names = frozenset(found)

    @classmethod
    def of(cls, files: Iterable[Path], config: Any, dtype: torch.dtype) -> Apart | None:
        """None if not all experts of the model that a config describes are in its files one by one, as numbers of `dtype`.

        Raises what transformers raises.
        """
        from safetensors import safe_open

        there: dict[tuple[int, str, int], _Place] = {}
        others: dict[str, Path] = {}
        kinds = set()
        for file in files:
            with safe_open(file, framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (safe_open is no dict)
                    if (match := NAME.match(name)) is None:
                        others[name] = file
                        continue
                    part = tensors.get_slice(name)
                    kinds.add(part.get_dtype())
                    key = int(match["layer"]), match["part"], int(match["expert"])
                    there[key] = _Place(file, name, tuple(part.get_shape()))
        if len(kinds) != 1 or KINDS.get(kinds.pop()) is not dtype:
            return None
        found = _put_together(without_memory(config, dtype), there)
        return cls(found, dtype, others) if found else None

    def state(self) -> dict[str, Tensor]:
        """What is to be loaded in place of the files' tensors: tensors without memory, and all others where they are."""
        files = {file: tensors_of(file) for file in {*self._others.values()}}
        state = {name: files[file][name] for name, file in self._others.items()}
        return state | {name: nothing(_shape(parts), self._dtype) for name, parts in self._found.items()}

    def numbers(self, name: str) -> Tensor:
        """All experts of a layer, [experts, outputs, inputs], in memory of their own."""
        parts = self._found[name]
        files = {file: tensors_of(file) for file in {place.file for places in parts for place in places}}
        return one_behind_the_other(
            _shape(parts), self._dtype, lambda expert: (files[place.file][place.name] for place in parts[expert])
        )


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
