"""Memory for what is read once a token: in huge pages, where the system has them for the asking."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

CHUNK = 32 << 20  # many layers: a huge page is 2 MB, most layers are smaller
LINE = 64


class Pages:
    """Copies of tensors, next to each other. A chunk is given back with the last tensor in it."""

    def __init__(self) -> None:
        self._left = torch.empty(0, dtype=torch.uint8)

    def keep(self, tensor: Tensor) -> Tensor:
        """The same numbers in here, contiguous, at a cache line's beginning."""
        here = self.room(tensor.numel() * tensor.element_size())
        here.copy_(tensor.contiguous().flatten().view(torch.uint8))
        return here.view(tensor.dtype).view(tensor.shape)

    def room(self, size: int) -> Tensor:
        """So many bytes in here, uint8 [size], at a cache line's beginning."""
        taken = -(-size // LINE) * LINE
        if taken > self._left.numel():
            chunk = mmap.mmap(-1, max(taken, CHUNK))  # pages nobody writes to take no memory
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with contextlib.suppress(OSError):  # a kernel without them
                    chunk.madvise(mmap.MADV_HUGEPAGE)
            self._left = torch.frombuffer(chunk, dtype=torch.uint8)
        here = self._left[:size]
        self._left = self._left[taken:]
        return here
