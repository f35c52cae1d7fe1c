"""The GPU's kernels of attention/signals.py. Importing this needs Triton.

Numbers in the CPU's memory are read past the device's caches (volatile); what was written before a flag is there before it (membar).
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

BLOCK = 1024
LOOKS = (
    1 << 26
)  # at a flag, a minute or more: a step that nobody can be about to answer goes on, and its results are nobody's


@triton.jit
def _send(query, to, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(to + at, tl.load(query + at, mask=at < count, other=0.0).to(tl.float32), mask=at < count)


@triton.jit
def _tell(flag, serial):  # type: ignore[no-untyped-def]
    number = (tl.load(serial) & 0x7FFFFFFF).to(tl.int32)
    told = tl.inline_asm_elementwise("membar.sys; mov.u32 $0, $1;", "=r,r", [number], tl.int32, is_pure=False, pack=1)
    tl.store(flag, told)


@triton.jit
def _await(flag, serial, LOOKS: tl.constexpr):  # type: ignore[no-untyped-def]
    number = (tl.load(serial) & 0x7FFFFFFF).to(tl.int32)
    told = tl.load(flag, volatile=True)
    looks = 0
    while (told != number) & (looks < LOOKS):
        told = tl.inline_asm_elementwise(
            "nanosleep.u32 64; mov.u32 $0, $1;", "=r,r", [told], tl.int32, is_pure=False, pack=1
        )
        told = tl.load(flag, volatile=True)
        looks += 1


def send(query: Tensor, to: Tensor) -> None:
    """As Signals.send."""
    count = query.numel()
    _send[(triton.cdiv(count, BLOCK),)](query.contiguous(), to, count, BLOCK=BLOCK)


def tell(flag: Tensor, serial: Tensor) -> None:
    """As Signals.ask and Signals.name."""
    _tell[(1,)](flag, serial, num_warps=1)


def wait(flag: Tensor, serial: Tensor) -> None:
    """As Signals.wait.

    A single warp watches: where every program of a copy did, so many looks were on the bus that all kernels beside it took two to
    ten times as long (docs/log.md).
    """
    _await[(1,)](flag, serial, LOOKS=LOOKS, num_warps=1)
