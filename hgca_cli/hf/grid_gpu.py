"""Linear layers of a model on a GPU whose weights are held on a grid alone, in 8 or 4 bits (hf/grid.py), as the CPU's are.

A few vectors are multiplied with the grid as it lies, by one kernel (hf/grid_triton.py), exactly but for the rounding of float32 sums.
Of many, as a prompt's are, weights are made numbers of their 16 bits, some rows at a time, and multiplied by torch. Where Triton is
missing torch does all of it.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from hgca_cli.config import GRID_FEW, GRID_WIDE_BYTES
from hgca_cli.hf.grid import BLOCK, TILE, Grid, floats, round_to_grid, tiles_shape
from hgca_cli.hf.quicken_gpu import works_on

TORCH_BYTES = 12  # of a number, while torch makes it of its code
HALVES = (torch.bfloat16, torch.float16)


class GridLinear(nn.Linear):
    """A loaded model's linear layer whose weight is a grid's tiles, uint8, wherever that is."""

    grid: Grid
    kernels: bool  # whether Triton's are there for it

    def forward(self, input: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs] of its dtype."""
        vectors = input.reshape(-1, self.in_features)
        few = self.kernels and 0 < len(vectors) <= GRID_FEW and input.dtype in HALVES
        out = self._few(vectors) if few else self._many(vectors)
        return out.view(*input.shape[:-1], self.out_features)

    def _few(self, vectors: Tensor) -> Tensor:
        from hgca_cli.hf.grid_triton import product

        return product(self.grid, self.out_features, vectors.contiguous(), self.bias)

    def _many(self, vectors: Tensor) -> Tensor:
        rows = max(1, GRID_WIDE_BYTES // (2 if self.kernels else TORCH_BYTES) // self.in_features)
        if rows >= self.out_features:
            return nn.functional.linear(vectors, self._numbers(0, self.out_features, vectors.dtype), self.bias)
        out = vectors.new_empty(len(vectors), self.out_features)
        for first in range(0, self.out_features, rows):
            count = min(rows, self.out_features - first)
            bias = None if self.bias is None else self.bias[first : first + count]
            weight = self._numbers(first, count, vectors.dtype)
            out[:, first : first + count] = nn.functional.linear(vectors, weight, bias)
        return out

    def _numbers(self, first: int, count: int, dtype: torch.dtype) -> Tensor:
        """Of some rows, [count, inputs]."""
        if self.kernels:
            from hgca_cli.hf.grid_triton import widen

            return widen(self.grid, first, count, dtype)
        return floats(self.grid, torch.arange(first, first + count, device=self.grid.tiles.device)).to(dtype)


def hold_on_grid(module: nn.Linear, grid: Grid, bias: Tensor | None, gives: torch.dtype) -> None:
    """Make a layer one of these, for vectors of a dtype; grid and bias are where it is to be."""
    assert grid.tiles.shape[1] * BLOCK == module.in_features
    module.__class__ = GridLinear
    assert isinstance(module, GridLinear)
    module.grid, module.kernels = grid, kernels_work(grid.tiles.device, grid.bits, gives)
    if bias is not None:
        module._parameters["bias"] = nn.Parameter(bias, requires_grad=False)


@lru_cache
def kernels_work(device: torch.device, bits: int, dtype: torch.dtype) -> bool:
    """Whether Triton's kernels are there for such grids and 16-bit numbers, and give what torch does: found by trying."""
    if dtype not in HALVES or not works_on(device):
        return False
    weight = torch.linspace(-1.0, 1.0, TILE * 8 * BLOCK).view(TILE, -1).sin()
    grid = Grid(torch.empty(tiles_shape(weight, bits), dtype=torch.uint8), bits)
    round_to_grid(weight, bits, grid.tiles)
    grid = grid._replace(tiles=grid.tiles.to(device))
    few = torch.linspace(-1.0, 1.0, 3 * 8 * BLOCK, device=device).to(dtype).view(3, -1)
    try:
        from hgca_cli.hf.grid_triton import product, widen

        numbers = floats(grid, torch.arange(TILE, device=device))
        same = torch.equal(widen(grid, 0, TILE, dtype), numbers.to(dtype))
        want, got = few.float() @ numbers.T, product(grid, TILE, few, None).float()
        return same and bool((got - want).norm() <= 1e-2 * want.norm())
    except Exception:  # what Triton raises is of many kinds
        return False
