"""An embedding whose rows are on a grid, or in 16 bits: those that are asked for become numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hgca_cli.hf.grid import Grid, floats


class Embedded(nn.Module):
    """What is put before an embedding's own class: its weights are on a grid or in 16 bits, what it gives is of `gives`."""

    held: Grid | Tensor
    gives: torch.dtype

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., width]."""
        weight, few = self._parameters["weight"], ids.flatten()
        rows = self.held[few] if isinstance(self.held, Tensor) else floats(self.held, few)
        self._parameters["weight"] = nn.Parameter(rows.to(self.gives), requires_grad=False)
        try:
            out: Tensor = super().forward(torch.arange(len(rows), device=ids.device).view(ids.shape))
            return out
        finally:
            self._parameters["weight"] = weight
