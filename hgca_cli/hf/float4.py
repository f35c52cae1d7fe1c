"""Experts published as floats of 4 bits (MXFP4; gpt-oss), which stay what they are.

transformers multiplies these on some GPUs, and makes numbers of 16 bits of them elsewhere: of 21B parameters 42 GB. Of each 32 numbers
of a row there are a scale, a power of two, and 16 bytes of codes (OCP Microscaling Formats, MX 1.0); a model's file has of each expert

    NAME_blocks  uint8 [experts, outputs, inputs / 32, 16]: number 2 j in the lower half of byte j, number 2 j + 1 in the upper
    NAME_scales  uint8 [experts, outputs, inputs / 32]: the exponent, and 127
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hgca_cli.errors import ModelError
from hgca_cli.hf.elsewhere import Elsewhere
from hgca_cli.hf.experts import FIRST, LAST, expert_weights
from hgca_cli.hf.gguf_tensors import without_memory
from hgca_cli.hf.grid import BLOCK, BYTES, FLOATS4, TILE, Grid, float4_tiles, floats
from hgca_cli.hf.mapped import all_tensors, nothing

METHOD = "mxfp4"
BLOCKS, SCALES = "_blocks", "_scales"
LEAST, MOST = 127 - 22, 127 + 11  # exponents of which half a scale is a half float, and so are its numbers


def published_so(config: Any) -> bool:
    """Whether a config says that experts are such floats."""
    quantization = getattr(config, "quantization_config", None)
    method = (
        quantization.get("quant_method")
        if isinstance(quantization, dict)
        else getattr(quantization, "quant_method", None)
    )
    return str(getattr(method, "value", method)) == METHOD


def as_plain(config: Any) -> Any:
    """The config, which forgets that: the model it describes is of plain numbers."""
    del config.quantization_config
    return config


def numbers_by_kind(config: Any) -> tuple[int, dict[str, int]]:
    """Of the model that such a config describes: all its parameters, and those of its matrices by what holds them packed."""
    model = without_memory(as_plain(copy.deepcopy(config)), torch.bfloat16)
    experts = sum(one.numel() for module in model.modules() for one in expert_weights(module, lambda _: True))
    others = sum(one.weight.numel() for one in model.modules() if type(one) is nn.Linear)
    return sum(one.numel() for one in model.parameters()), {"float4": experts, "grid8": others}


class Floats4(Elsewhere):
    """The experts of a model's files. Raises ModelError for files that have others than these."""

    def __init__(self, path: Path, files: Iterable[Path]) -> None:
        self._path = path
        self._tensors = all_tensors(files)
        found = {name.removesuffix(BLOCKS) for name in self._tensors if name.endswith(BLOCKS)}
        self.names = frozenset(name for name in found if self._sound(name))
        if not found or found != self.names:
            raise ModelError(f"{path}: its experts are no MXFP4 that is known here.", "Fetch the model again.")

    def _sound(self, name: str) -> bool:
        blocks, scales = self._tensors[name + BLOCKS], self._tensors.get(name + SCALES)
        return (
            name.endswith((FIRST, LAST))
            and scales is not None
            and blocks.dtype is scales.dtype is torch.uint8
            and blocks.dim() == 4
            and blocks.shape[:-1] == scales.shape
            and blocks.shape[-1] == 16
            and blocks.shape[1] % TILE == 0
        )

    def state(self) -> dict[str, Tensor]:
        """What is to be loaded in place of the files' tensors: experts without memory, the way a model has them, and all others."""
        state = {name: one for name, one in self._tensors.items() if not name.endswith((BLOCKS, SCALES))}
        for name in self.names:
            experts, outputs, blocks, _ = self._tensors[name + BLOCKS].shape
            state[name] = nothing(torch.Size((experts, BLOCK * blocks, outputs)), torch.bfloat16)
        return state

    def grid(self, name: str, room: Callable[[int], Tensor]) -> Grid | None:
        """As of Elsewhere. Raises ModelError for a scale that is no number, or beyond those of half floats."""
        blocks, scales = (self._tensors[name + part].flatten(0, 1) for part in (BLOCKS, SCALES))
        smallest, largest = (int(one) for one in scales.aminmax())
        if largest > MOST or smallest < LEAST:
            raise ModelError(
                f"{self._path}: {name} has scales beyond 2^{LEAST - 127} .. 2^{MOST - 127}.", "Fetch the model again."
            )
        shape = len(blocks) // TILE, blocks.shape[1], TILE * BYTES[FLOATS4]
        tiles = room(shape[0] * shape[1] * shape[2]).view(shape)
        each = max(TILE, (1 << 20) // blocks.shape[1] // TILE * TILE)  # rows at once: bounds what is copied on the way
        for first in range(0, len(blocks), each):
            some = blocks[first : first + each]
            codes = torch.stack((some & 15, some >> 4), dim=-1).flatten(2)
            half = torch.ldexp(torch.tensor(0.5), scales[first : first + each].int() - 127)
            tiles[first // TILE : first // TILE + -(-len(some) // TILE)] = float4_tiles(half.unsqueeze(-1), codes)
        return Grid(tiles, FLOATS4)

    def numbers(self, name: str) -> Tensor:
        """Float32, [experts * outputs, inputs]."""
        grid = self.grid(name, lambda size: torch.empty(size, dtype=torch.uint8))
        assert grid is not None
        return floats(grid, torch.arange(len(grid.tiles) * TILE))
