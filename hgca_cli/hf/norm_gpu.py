"""Root-mean-square norms of a few tokens on a GPU in one kernel each.

A family's own norm is eight kernels there, each of which takes longer to start and end than to compute. Which modules are such norms,
and where they round, is found by trying, as for those of a token on the CPU (hf/norm.py).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hgca_cli.hf.norm import parts_of_norm
from hgca_cli.hf.trial import gives_the_same, put_before

MOST_TOKENS = 64  # at once: more are a prompt's, whose time is not that of starting kernels
MOST_ROWS = 128 * MOST_TOKENS  # where a family norms each head
MOST_WIDTH = 16384  # of what one program adds up


class QuickNormGpu(nn.Module):
    """What is put before a norm's own class: a few tokens on its device are one kernel, all else as before."""

    at: DeviceScale

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        if self.at.serves(self._parameters["weight"], x):
            return self.at.product(x)
        return super().forward(x)


class DeviceScale:
    """The weight of a norm, as it was when it was found.

    shift  what is added to it; steps: the norm is rounded before it is multiplied, too
    """

    __slots__ = ("_at", "_eps", "_kept", "_shift", "_steps", "_width")

    def __init__(self, weight: Tensor, eps: float, shift: float, steps: bool) -> None:
        self._kept, self._at, self._width = weight, weight.data_ptr(), weight.numel()
        self._eps, self._shift, self._steps = eps, shift, steps

    def serves(self, weight: Tensor | None, x: Tensor) -> bool:
        """Whether the weight is still the same, and x [..., width] of few tokens."""
        return (
            weight is not None
            and weight.data_ptr() == self._at
            and x.dim() > 1
            and x.size(-1) == self._width
            and x.size(0) * (x.size(1) if x.dim() > 2 else 1) <= MOST_TOKENS  # [batch, tokens], heads behind
            and 0 < x.numel() <= MOST_ROWS * self._width
            and type(x) is Tensor
            and x.dtype is weight.dtype
            and x.device == weight.device
            and x.is_contiguous()
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
        )

    def product(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]. Only if it `serves`."""
        from hgca_cli.hf import token_triton

        return token_triton.rms_norm(x, self._kept, self._eps, self._shift, self._steps)


def tolerance(dtype: torch.dtype) -> float:
    """Of the norm of a result: sums in another order are within it, a rounding more or less is not."""
    return max(1e-6, torch.finfo(dtype).eps / 32)


def quicken_norm_gpu(module: nn.Module) -> bool:
    """Let a module be one kernel, if it is a root-mean-square norm; returns whether it is. Triton must work on its device."""
    parts = parts_of_norm(module)
    if parts is None or isinstance(module, QuickNormGpu) or "forward" in vars(module):
        return False
    weight, eps = parts
    width, dtype = len(weight), weight.dtype
    if not (dtype.is_floating_point and dtype.itemsize in (2, 4) and width <= MOST_WIDTH):
        return False
    draw = torch.Generator().manual_seed(1)

    def random(size: float, *rows: int) -> Tensor:
        # the mean is not zero: what is no root mean square shows, as eps does by the smallest
        return (size * (0.5 + torch.randn(*rows, width, generator=draw))).to(weight.device, dtype)

    inputs = [random(size, 1, 2) for size in (1e-4, 1e-2, 1.0, 100.0)]
    stand_in = copy.copy(module)  # whose weights say where it rounds: those of an untrained one are 1
    stand_in._parameters = {"weight": nn.Parameter(random(1.0), requires_grad=False)}
    for shift, steps in ((0.0, True), (0.0, False), (1.0, False), (1.0, True)):  # Gemma's weights are added to 1
        tried = DeviceScale(stand_in.weight, eps, shift, steps)  # type: ignore[arg-type]
        if gives_the_same(stand_in, tried.product, inputs, tolerance(dtype)):
            put_before(module, QuickNormGpu)
            assert isinstance(module, QuickNormGpu)
            module.at = DeviceScale(weight, eps, shift, steps)
            return True
    return False
