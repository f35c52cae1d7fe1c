"""Weights packed for a GPU: rounded, or read, in the host's memory, matrix by matrix, and held on the GPU as the CPU would hold them.

What is on no grid (norms, biases) is of the 16 bits that are computed there. The host needs room for one matrix, and for those that are
on their way to the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hgca_cli.attention.slots import trouble
from hgca_cli.events import Notice
from hgca_cli.hf.elsewhere import Elsewhere
from hgca_cli.hf.grid import Grid
from hgca_cli.hf.grid_gpu import GridLinear, hold_on_grid
from hgca_cli.hf.linear import QuickLinear
from hgca_cli.hf.packed import Packing
from hgca_cli.hf.packed_files import PackedFiles
from hgca_cli.hf.registry import Notify


class PackingGpu(Packing):
    """As Packing, for layers on a device (of any kind) that computes in `gives`."""

    takes_experts, packs = False, "linear layers"

    def __init__(
        self,
        model: Any,
        path: Path,
        files: PackedFiles,
        notify: Notify,
        waiting: Elsewhere | None = None,
        *,
        device: torch.device,
        gives: torch.dtype,
    ) -> None:
        super().__init__(model, path, files, notify, waiting)
        self._device, self.gives, self._notify = device, gives, notify

    def run(self, quant: str) -> None:
        """As of Packing."""
        super().run(quant)
        slow = any(isinstance(one, GridLinear) and not one.kernels for one in self._packed)
        if slow and self._device.type == "cuda":
            why = trouble(self._device) or "its kernels give wrong results for packed weights"
            self._notify(
                Notice(
                    f"packed weights are multiplied without Triton, many times slower ({why}). Install a C compiler and Python's "
                    "headers, or take --quant none if the weights fit so."
                )
            )

    def _room(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def _moved(self, grid: Grid) -> Grid:
        return grid._replace(tiles=grid.tiles.to(self._device))

    def _become(self, module: nn.Linear, held: Grid | Tensor, bias: Tensor | None) -> None:
        assert isinstance(held, Grid)
        hold_on_grid(module, held, None if bias is None else self._plain(bias), self.gives)

    def _plain(self, numbers: Tensor) -> Tensor:
        return numbers.to(self._device, self.gives, copy=True)

    def _buffers(self, module: nn.Module) -> None:
        for name, one in module._buffers.items():
            if one is not None:
                module._buffers[name] = one.to(self._device)


def packed_layers(model: nn.Module) -> Iterator[QuickLinear | GridLinear]:
    """Layers whose weights are held on a grid alone, wherever."""
    for module in model.modules():
        if isinstance(module, GridLinear) or (isinstance(module, QuickLinear) and module.quick.grid is not None):
            yield module
