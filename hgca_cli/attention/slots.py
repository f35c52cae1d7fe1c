"""Attention of a token of each sequence to its window's slots, of which a tensor on the device says at run time which are in use.

So nothing in it changes from token to token but memory, as a CUDA graph needs it. On a GPU three Triton kernels: the new rows' way
into their slots, parts of the slots, and their merge, which takes in the store's part too (split-KV decoding, as FlashAttention's;
the slots' keys and values are read once). Elsewhere torch does the same.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from hgca_cli.attention import dense
from hgca_cli.attention.merge import Partial, merge
from hgca_cli.attention.scoring import Guessed, merged
from hgca_cli.attention.tables import Places, placed


class SlotAttention:
    """Of layers of one shape, one after another.

    taken  i64 [sequences, 5] on the device: the slot of the new row (-1: there is none), and slots [1] .. [2] - 1 and [3] .. [4] - 1,
           which are in use, the new row's among them
    slots  there are in the largest window
    """

    def __init__(self, taken: Tensor, heads: int, slots: int, value_dim: int) -> None:
        self._taken, self._value_dim = taken, value_dim
        self._kernels = None
        if taken.device.type == "cuda":
            from hgca_cli.attention import slots_triton

            self._kernels = slots_triton.Kernels(len(taken), heads, slots, value_dim, taken.device)

    def put(self, key: Tensor, value: Tensor, places: Places) -> None:
        """key, value [sequences, kv_heads, 1, dim], any dtype, into their slots."""
        if self._kernels is not None:
            self._kernels.put(key, value, places, self._taken)
            return
        for slot, window, *new in zip(self._taken[:, 0].tolist(), places.windows, key, value, strict=True):
            if slot >= 0 and window is not None:
                for rows, row in zip(window, new, strict=True):
                    rows[:, slot : slot + 1] = row

    def near(self, query: Tensor, places: Places, *, scale: float, softcap: float) -> Near:
        """query [sequences, heads, key_dim] over the windows; `finish` has the result."""
        if self._kernels is not None:
            return self._kernels.near(query, places, self._taken, scale=scale, softcap=softcap)
        each = []
        for one, (_, *spans), window in zip(query, self._taken.tolist(), places.windows, strict=True):
            if window is None:
                each.append(Partial(torch.zeros(len(one), self._value_dim), torch.full((len(one),), float("-inf"))))
                continue
            keys, values = window
            grouped = one.view(keys.shape[0], -1, one.shape[-1])
            whole: Partial | None = None
            for first, end in (spans[:2], spans[2:]):
                part = dense.attend(grouped, keys[:, first:end], values[:, first:end], scale=scale, softcap=softcap)
                whole = part if whole is None else merge(whole, part)
            assert whole is not None
            each.append(Partial(whole.out.reshape(one.shape[0], -1), whole.lse.reshape(-1)))
        return Plain(Partial(*(torch.stack(parts) for parts in zip(*each, strict=True))))


@lru_cache
def trouble(device: torch.device) -> str | None:
    """Why the kernels do not work on a device, found by trying; None: they do. Triton is not everywhere, and needs a C
    compiler and Python's headers where it is.
    """
    if device.type != "cuda":
        return None
    query, keys, values = torch.ones(1, 2, 16), torch.ones(1, 8, 16), torch.arange(128.0).view(1, 8, 16)
    new = torch.ones(2, 1, 1, 1, 16)
    results = []
    try:
        for there, dtype in ((torch.device("cpu"), torch.float32), (device, torch.float16)):
            q, k, v, key, value = (one.to(there, dtype) for one in (query, keys, values, *new))
            attention = SlotAttention(torch.tensor([[5, 0, 2, 5, 8]], device=there), heads=2, slots=8, value_dim=16)
            places = placed([(k, v)])
            attention.put(key, value, places)
            whole = attention.near(q, places, scale=0.25, softcap=0.0).finish(None, torch.zeros(1, 2, device=there))
            results.append(whole.out.float().cpu())
    except Exception as error:
        told = str(error).strip().splitlines()
        return f"Triton: {told[0] if told else type(error).__name__}"
    wanted, got = results
    return None if torch.allclose(wanted, got, rtol=1e-2) else "Triton's kernels give wrong results"


class Near(Protocol):
    """Attention to the slots on its way."""

    def finish(
        self, far: Partial | None, near_lse: Tensor, guessed: Guessed | None = None, told: Tensor | None = None
    ) -> Partial:
        """The attention to slots, `far` and `guessed` together: out [sequences, heads, value_dim], lse f32 [sequences, heads].

        near_lse, told  f32 [sequences, heads] on the device, and in memory both see: written, the slots' own log-sum-exp
        """


class Plain:
    """Done already."""

    def __init__(self, near: Partial) -> None:
        self._near = near

    def finish(
        self, far: Partial | None, near_lse: Tensor, guessed: Guessed | None = None, told: Tensor | None = None
    ) -> Partial:
        whole = self._near
        for more in (far, None if guessed is None else merged(guessed)):
            whole = whole if more is None else merge(whole, more)
        for to in (near_lse, told):
            if to is not None:
                to.copy_(self._near.lse)
        return whole
