"""Attention of one token to the window's slots, of which a tensor on the device says at run time which are in use.

So nothing in it changes from token to token but memory, as a CUDA graph needs it. On a GPU two Triton kernels: parts of the
slots, and their merge, which takes in the store's part too (split-KV decoding, as FlashAttention's; the slots' keys and values
are read once). Elsewhere torch does the same.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from hgca_cli.attention import dense
from hgca_cli.attention.merge import Partial, merge
from hgca_cli.attention.scoring import Guessed, merged


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


@lru_cache
def trouble(device: torch.device) -> str | None:
    """Why the kernels do not work on a device, found by trying; None: they do. Triton is not everywhere, and needs a C
    compiler and Python's headers where it is.
    """
    if device.type != "cuda":
        return None
    query, keys, values = torch.ones(2, 16), torch.ones(1, 8, 16), torch.arange(128.0).view(1, 8, 16)
    spans = torch.tensor([0, 2, 5, 8])
    results = []
    try:
        for there, dtype in ((torch.device("cpu"), torch.float32), (device, torch.float16)):
            given = (one.to(there, dtype) for one in (query, keys, values))
            attention = SlotAttention(spans.to(there), heads=2, slots=8, value_dim=16)
            whole, _ = attention.near(*given, scale=0.25, softcap=0.0).finish(None)
            results.append(whole.out.float().cpu())
    except Exception as error:
        told = str(error).strip().splitlines()
        return f"Triton: {told[0] if told else type(error).__name__}"
    wanted, got = results
    return None if torch.allclose(wanted, got, rtol=1e-2) else "Triton's kernels give wrong results"


class Near(Protocol):
    """Attention to the slots on its way."""

    def finish(self, far: Partial | None, guessed: Guessed | None = None) -> tuple[Partial, Tensor]:
        """The attention to slots, `far` and `guessed` together, and the slots' own log-sum-exp f32 [heads]."""


class Plain:
    """Done already."""

    def __init__(self, near: Partial) -> None:
        self._near = near

    def finish(self, far: Partial | None, guessed: Guessed | None = None) -> tuple[Partial, Tensor]:
        whole = self._near
        for more in (far, None if guessed is None else merged(guessed)):
            whole = whole if more is None else merge(whole, more)
        return whole, self._near.lse
