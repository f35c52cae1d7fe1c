"""The GPU's kernels of hf/norm_gpu.py and hf/rotary.py: what a few tokens pass through in a launch each. Importing this needs Triton.

Products and sums are not fused, and rounded where torch's operations round, so that results are those of the operations they replace.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

STRIDES = [f"{of}_{along}" for of in ("q", "k", "qt", "kt") for along in ("next", "head", "token")]


@triton.jit
def _rms_norm(  # type: ignore[no-untyped-def]
    x, weight, to, eps, shift, WIDTH: tl.constexpr, PADDED: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """One row of WIDTH, packed; STEPS: rounded before the weight, too."""
    own, at = tl.program_id(0).to(tl.int64) * WIDTH, tl.arange(0, PADDED)
    real = at < WIDTH
    number = tl.load(x + own + at, mask=real, other=0.0).to(tl.float32)
    scale = tl.load(weight + at, mask=real, other=0.0).to(tl.float32) + shift
    number = number * tl.rsqrt(tl.sum(number * number, 0) * (1.0 / WIDTH) + eps)
    if STEPS:
        number = number.to(to.dtype.element_ty).to(tl.float32)
    tl.store(to + own + at, (number * scale).to(to.dtype.element_ty), mask=real)


@triton.jit
def _turn(x, cos, sin, to, DIM: tl.constexpr, PADDED: tl.constexpr, STEPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """One head: [a, b] * cos + [-b, a] * sin."""
    HALF: tl.constexpr = DIM // 2
    at = tl.arange(0, PADDED)
    real = at < HALF
    a = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
    b = tl.load(x + HALF + at, mask=real, other=0.0).to(tl.float32)
    first = a * tl.load(cos + at, mask=real, other=0.0).to(tl.float32)
    first_more = -b * tl.load(sin + at, mask=real, other=0.0).to(tl.float32)
    second = b * tl.load(cos + HALF + at, mask=real, other=0.0).to(tl.float32)
    second_more = a * tl.load(sin + HALF + at, mask=real, other=0.0).to(tl.float32)
    if STEPS:
        kind = to.dtype.element_ty
        first, first_more = first.to(kind).to(tl.float32), first_more.to(kind).to(tl.float32)
        second, second_more = second.to(kind).to(tl.float32), second_more.to(kind).to(tl.float32)
    tl.store(to + at, (first + first_more).to(to.dtype.element_ty), mask=real)
    tl.store(to + HALF + at, (second + second_more).to(to.dtype.element_ty), mask=real)


# one kernel for any numbers of heads and tokens: none is compiled while answers are written
@triton.jit(do_not_specialize=["q_heads", "turn_next", "turn_token", *STRIDES])
def _rotate(  # type: ignore[no-untyped-def]
    q, k, cos, sin, q_to, k_to, q_heads, turn_next, turn_token,
    q_next, q_head, q_token, k_next, k_head, k_token, qt_next, qt_head, qt_token, kt_next, kt_head, kt_token,
    DIM: tl.constexpr, PADDED: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """A head of a token: of the queries, then of the keys."""
    head, token, one = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    turn = one * turn_next + token * turn_token
    if head < q_heads:
        at, to = one * q_next + head * q_head + token * q_token, one * qt_next + head * qt_head + token * qt_token
        _turn(q + at, cos + turn, sin + turn, q_to + to, DIM, PADDED, STEPS)
    else:
        head -= q_heads
        at, to = one * k_next + head * k_head + token * k_token, one * kt_next + head * kt_head + token * kt_token
        _turn(k + at, cos + turn, sin + turn, k_to + to, DIM, PADDED, STEPS)


def rms_norm(x: Tensor, weight: Tensor, eps: float, shift: float, steps: bool) -> Tensor:
    """x [..., width], packed, weight [width] -> [..., width], x / sqrt(mean(x^2) + eps) * (weight + shift).

    steps  rounded to x's dtype before it is multiplied by the weight as well as after
    """
    to, width = torch.empty_like(x), len(weight)
    padded = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        _rms_norm[(x.numel() // width,)](
            x, weight, to, eps, shift, WIDTH=width, PADDED=padded, STEPS=steps,
            num_warps=min(16, max(1, padded // 256)), enable_fp_fusion=False,
        )  # fmt: skip
    return to


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, steps: bool) -> tuple[Tensor, Tensor]:
    """q, k [batch, heads, tokens, dim], cos, sin [batch or 1, tokens, dim], of the same strides; last dimensions are packed.

    steps  products are rounded to q's dtype before they are added up
    """
    batch, heads, tokens, dim = q.shape
    q_to, k_to = torch.empty_like(q), torch.empty_like(k)
    with torch.cuda.device_of(q):
        _rotate[(heads + k.shape[1], tokens, batch)](
            q, k, cos, sin, q_to, k_to, heads, cos.stride(0) if len(cos) > 1 else 0, cos.stride(1),
            *q.stride()[:3], *k.stride()[:3], *q_to.stride()[:3], *k_to.stride()[:3],
            DIM=dim, PADDED=triton.next_power_of_2(dim // 2), STEPS=steps, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return q_to, k_to
