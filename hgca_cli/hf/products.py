"""Many vectors times float32 weights, by oneDNN where torch's own product was written for another maker's processors.

torch hands float32 products to MKL, which on processors not made by Intel takes its code for AVX2. Where they have AVX-512, oneDNN,
which torch holds as well and gives bf16 to, takes half the time (docs/log.md). Results differ by rounding alone (4e-7 of the norm
beside 2.5e-7), and what oneDNN gives for a vector does not depend on how many others there are.

oneDNN makes code for each shape of a product and keeps it, 0.6 MB a time. Prompts have any length, so vectors of nothing are added up
to one of a few counts. What is called is private to torch: it is tried once, and given up for good once it fails.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hgca_cli import native

CPUINFO = Path("/proc/cpuinfo")
INTEL = "GenuineIntel"
LEAST = 1 << 22  # products of two numbers; of fewer, calling oneDNN takes as long as MKL's product
FEWEST = 16  # vectors: as many take hardly longer than two
TOLERANCE = 1e-5  # of the norm
FAILED = (AttributeError, RuntimeError, TypeError)  # no such operation, or another one by now


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., inputs], [outputs, inputs], [outputs] -> [..., outputs]: torch.nn.functional.linear, whoever computes it."""
    if takes(input, weight, bias) and (out := here().product(input, weight, bias)) is not None:
        return out
    return nn.functional.linear(input, weight, bias)


def takes(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether a product is one that oneDNN may compute, and is large enough for it."""
    parts = [input, weight] if bias is None else [input, weight, bias]
    return (
        all(one.dtype is torch.float32 and one.is_cpu and type(one) in (Tensor, nn.Parameter) for one in parts)
        and weight.dim() == 2
        and weight.is_contiguous()
        and (bias is None or (bias.is_contiguous() and bias.shape == weight.shape[:1]))
        and input.dim() > 0
        and input.size(-1) == weight.size(1)
        and input.numel() > input.size(-1)  # a single vector is memory's
        and input.numel() * weight.size(0) >= LEAST
        and not (torch.is_grad_enabled() and any(one.requires_grad for one in parts))
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
    )


def faster() -> bool:
    """Whether oneDNN's float32 is the faster one on this machine: AVX-512, of another maker than MKL's."""
    return (
        platform.machine() in ("x86_64", "AMD64")
        and maker() not in ("", INTEL)
        and native.isas()[0].startswith("avx512")  # limited to AVX2 it gains too little for vectors of nothing
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
    )


def maker(file: Path = CPUINFO) -> str:
    """Of the processor, as it calls itself; "" where the system does not tell."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id") and ":" in line), "")


def count_for(vectors: int) -> int:
    """To how many vectors so many are filled up: whole sixteens; beyond 64 four counts from a power of two to the next."""
    step = max(FEWEST, 1 << max(0, (vectors - 1).bit_length() - 3))
    return -(-vectors // step) * step


class OneDNN:
    """oneDNN's product as torch has it, until it fails.

    find  the operation; raises AttributeError where there is none
    """

    def __init__(self, find: Callable[[], Any]) -> None:
        self._find = find
        self._works: bool | None = None  # not tried yet

    def product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """As `linear`, of what it `takes`; None where torch is to be asked."""
        if self._works is None:
            self._works = self._same()
        if not self._works:
            return None
        try:
            return self._computed(input, weight, bias)
        except FAILED:
            self._works = False
            return None

    def _computed(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        vectors = input.reshape(-1, weight.size(1))
        count = len(vectors)
        filled = vectors.contiguous() if count == count_for(count) else _filled(vectors, count_for(count))
        out: Tensor = self._find()(filled, weight, bias, "none", [], "")
        return out[:count].view(*input.shape[:-1], weight.size(0))

    def _same(self) -> bool:
        """Whether it computes what torch does, of a few numbers."""
        draw = torch.Generator().manual_seed(6)
        input, weight, bias = (torch.randn(shape, generator=draw) for shape in ((3, 7, 100), (70, 100), (70,)))
        try:
            for one in (None, bias):
                want, got = nn.functional.linear(input, weight, one), self._computed(input, weight, one)
                if got.dtype is not want.dtype or not (got - want).norm() <= TOLERANCE * want.norm():
                    return False
        except FAILED:
            return False
        return True


def _filled(vectors: Tensor, count: int) -> Tensor:
    """Vectors of nothing after some. By one thread: beside busy neighbours others take longer to come than to copy."""
    out = torch.empty(count, vectors.size(1))
    numbers = out.numpy()
    numbers[: len(vectors)] = vectors.detach().numpy()
    numbers[len(vectors) :] = 0.0
    return out


@cache
def here() -> OneDNN:
    """This process's."""
    one = OneDNN(lambda: torch.ops.mkldnn._linear_pointwise)
    if not faster():
        one._works = False
    return one
