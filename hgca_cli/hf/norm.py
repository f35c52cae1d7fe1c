"""Root-mean-square norms of one token in one call of the C library.

A family's own norm is six operations of torch on a few hundred numbers: what they cost is being called. Which modules
are such norms is found by trying, as for gated blocks (hf/gated.py).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from hgca_cli import native
from hgca_cli.hf.trial import gives_the_same, put_before

MOST_ROWS = 128  # heads of one token, where a family norms each: more are a prompt's
TOLERANCE = 1e-5  # of the norm, float32
EPSILONS = ("variance_epsilon", "eps")  # how families call it


class QuickNorm(nn.Module):
    """What is put before a norm's own class: one token is the C library's, all else as before."""

    scale: Scale

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        if self.scale.serves(self._parameters["weight"], x):
            return self.scale.product(x)
        return super().forward(x)


class Scale:
    """The weight of a norm, as it was when it was found. shift: what is added to it."""

    __slots__ = ("_at", "_eps", "_kept", "_shift", "_width")

    def __init__(self, weight: Tensor, eps: float, shift: float) -> None:
        self._kept, self._at, self._width = weight, weight.data_ptr(), weight.numel()
        self._eps, self._shift = eps, shift

    def serves(self, weight: Tensor | None, x: Tensor) -> bool:
        """Whether the weight is still the same, and x [..., width] one token's."""
        return (
            weight is not None
            and weight.data_ptr() == self._at
            and x.size(-1) == self._width
            and 0 < x.numel() <= MOST_ROWS * self._width
            and x.dtype is torch.float32 is weight.dtype
            and x.is_cpu
            and x.is_contiguous()
            and not torch.is_grad_enabled()
        )

    def describe(self, to: Any) -> None:
        """Fill in an hgca_norm."""
        to.weight, to.eps, to.shift = native.address(self._kept), self._eps, self._shift

    def product(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]. Only if it `serves`."""
        out = torch.empty(x.shape)
        rows = x.numel() // self._width
        at = x.data_ptr(), self._at, rows, self._width, self._eps, self._shift, out.data_ptr()
        if status := native.lib.hgca_rms_norm(*at):
            native.check(status)
        return out


def parts_of_norm(module: nn.Module) -> tuple[Tensor, float] | None:
    """Weight [width] and eps of a module that may be a root-mean-square norm: these are all it has."""
    weight = module._parameters.get("weight")
    eps = next((getattr(module, name) for name in EPSILONS if isinstance(getattr(module, name, None), float)), None)
    if (
        weight is None
        or eps is None
        or len(module._parameters) > 1
        or module._modules
        or module._buffers
        or weight.dim() != 1
        or not weight.is_contiguous()
        or len(inspect.signature(module.forward).parameters) != 1
    ):
        return None
    return weight, eps


def quicken_norm(module: nn.Module) -> bool:
    """Let a module be one call, if it is a root-mean-square norm of float32 on the CPU; returns whether it is."""
    parts = parts_of_norm(module)
    if parts is None or isinstance(module, QuickNorm):
        return False
    weight, eps = parts
    if not (weight.is_cpu and weight.dtype is torch.float32):
        return False
    rng = torch.Generator().manual_seed(1)
    # four sizes, with a mean that is not zero: eps, and what is no root mean square, show
    inputs = [size * (0.5 + torch.randn(1, 2, weight.numel(), generator=rng)) for size in (1e-4, 1e-2, 1.0, 100.0)]
    for shift in (0.0, 1.0):  # Gemma's weights are what is added to 1
        scale = Scale(weight, eps, shift)
        if gives_the_same(module, scale.product, inputs, TOLERANCE):
            put_before(module, QuickNorm)
            assert isinstance(module, QuickNorm)
            module.scale = scale
            return True
    return False
