"""Attention of one token to the window's slots, of which a tensor on the device says at run time which are in use.

So nothing in it changes from token to token but memory, as a CUDA graph needs it. On a GPU two Triton kernels: parts of the
slots, and their merge, which takes in the store's part too (split-KV decoding, as FlashAttention's; the slots' keys and values
are read once). Elsewhere torch does the same.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hgca_cli.attention import dense
from hgca_cli.attention.merge import Partial, merge


class SlotAttention:
    """Of layers of one shape, one after another.

    spans  i64 [4] on the device: slots [0] .. [1] - 1 and [2] .. [3] - 1 are in use
    slots  there are
    """

    def __init__(self, spans: Tensor, heads: int, slots: int, value_dim: int) -> None:
        self._spans = spans
        self._kernels = None
        if spans.device.type == "cuda":
            from hgca_cli.attention import slots_triton

            self._kernels = slots_triton.Kernels(heads, slots, value_dim, spans.device)

    @staticmethod
    def serves(device: torch.device, key_dim: int, value_dim: int) -> bool:
        """Whether there are kernels for such rows."""
        if device.type != "cuda":
            return True
        try:
            import triton  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
        except ImportError:  # torch brings it where it can be
            return False
        return all(dim >= 16 and dim & (dim - 1) == 0 for dim in (key_dim, value_dim))

    def near(self, query: Tensor, keys: Tensor, values: Tensor, *, scale: float, softcap: float) -> Near:
        """query [heads, key_dim] over keys, values [kv_heads, slots, dim]; `finish` has the result."""
        if self._kernels is not None:
            return self._kernels.near(query, keys, values, self._spans, scale=scale, softcap=softcap)
        a, b, c, d = self._spans.tolist()
        grouped = query.view(keys.shape[0], -1, query.shape[-1])
        whole: Partial | None = None
        for first, end in ((a, b), (c, d)):
            part = dense.attend(grouped, keys[:, first:end], values[:, first:end], scale=scale, softcap=softcap)
            whole = part if whole is None else merge(whole, part)
        assert whole is not None
        return Plain(Partial(whole.out.reshape(query.shape[0], -1), whole.lse.reshape(-1)))


class Near(Protocol):
    """Attention to the slots on its way."""

    def finish(self, far: Partial | None) -> tuple[Partial, Tensor]:
        """The attention to slots and `far` together, and the slots' own log-sum-exp f32 [heads]."""


class Plain:
    """Done already."""

    def __init__(self, near: Partial) -> None:
        self._near = near

    def finish(self, far: Partial | None) -> tuple[Partial, Tensor]:
        return (self._near if far is None else merge(self._near, far)), self._near.lse
