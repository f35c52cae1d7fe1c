"""Linear layers that read their weights once a token at the rate of memory, in as few bytes as hold them exactly.

torch's product of a matrix and one vector reads weights on one thread here, at a third of the rate two threads reach.
`quicken` makes a loaded model's linear layers hand single tokens to the C library; everything else about them stays as
it is (name, parameters, what several tokens do). float32 weights that 16 bits hold exactly, as most models are published,
or a grid of 4 or 8 bits, as those of a converted GGUF file, get a second copy in that form: half or a sixth is read then.
Results differ by rounding alone; of a grid's that is what rounding a vector to 21 bits by blocks of 32 makes of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hgca_cli import native
from hgca_cli.hf.grid import Grid, find_grid, find_halves


def quicken(model: nn.Module) -> int:
    """Let the linear layers of a model on the CPU work as above; returns the bytes their second copies take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # 210 matrices, 9 passes each: beside busy neighbours threads wait longer than they work
    try:
        return _quicken(model)
    finally:
        torch.set_num_threads(threads)


def _quicken(model: nn.Module) -> int:
    taken = 0
    seen: dict[int, Weights] = {}  # tied weights are packed once
    for module in model.modules():
        if type(module) is not nn.Linear or not Weights.takes(module.weight, module.bias):
            continue
        weight = module.weight
        if module.bias is None and weight.data_ptr() in seen:
            quick = seen[weight.data_ptr()]
        else:
            quick = Weights(weight, module.bias, copy_of(weight))
            taken += quick.copied
            seen[weight.data_ptr()] = quick
        module.__class__ = QuickLinear
        assert isinstance(module, QuickLinear)
        module.quick = quick
    return taken


def copy_of(weight: Tensor) -> Tensor | Grid | None:
    """The same weights in fewer bytes, if there are such."""
    grid = find_grid(weight)
    return find_halves(weight) if grid is None else grid


class QuickLinear(nn.Linear):
    """A linear layer of a loaded model, whose weights do not change any more."""

    quick: Weights

    def forward(self, input: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        if input.numel() == self.in_features == input.shape[-1] and self.quick.serves(
            self._parameters["weight"], input
        ):
            return self.quick.product(input)
        return super().forward(input)


class Weights:
    """A linear layer's weights, to be multiplied with one vector at a time. They must not change or move.

    weight   f32, bf16 or f16 [outputs, inputs], on the CPU, numbers of a row next to each other; bias [outputs] or None
    copy     the same weights in fewer bytes, which are read then: bf16 or f16, or on a grid
    copied   bytes of the copy
    """

    __slots__ = ("_at", "_described", "_dtype", "_kept", "_outputs", "copied")

    def __init__(self, weight: Tensor, bias: Tensor | None = None, copy: Tensor | Grid | None = None) -> None:
        assert self.takes(weight, bias)
        to = self._described = native.ffi.new("hgca_weights *")
        read = weight if copy is None else copy.tiles if isinstance(copy, Grid) else copy
        to.weight, to.row_bytes = native.address(read), read.stride(0) * read.element_size()
        to.outputs, to.inputs = weight.shape
        to.dtype = native.DTYPES[weight.dtype]
        if isinstance(copy, Grid):
            assert copy.tiles.is_contiguous()
            to.kind = native.lib.HGCA_GRID4 if copy.bits == 4 else native.lib.HGCA_GRID8
        else:
            to.kind = native.DTYPES[read.dtype]
        if bias is not None:
            to.bias = native.address(bias)
        self._kept = (weight, bias, read)
        self.copied = 0 if copy is None else read.numel() * read.element_size()
        self._at, self._dtype, self._outputs = weight.data_ptr(), weight.dtype, weight.shape[0]

    @staticmethod
    def takes(weight: Tensor, bias: Tensor | None = None) -> bool:
        """Whether weights and bias are of a kind and in a place the C library reads."""
        if bias is not None and not (bias.is_cpu and bias.is_contiguous() and bias.dtype == weight.dtype):
            return False
        return (
            weight.dim() == 2
            and weight.is_cpu
            and weight.dtype in (torch.float32, torch.bfloat16, torch.float16)
            and weight.numel() > 0
            and weight.stride(1) == 1
        )

    def serves(self, weight: Tensor | None, vector: Tensor) -> bool:
        """Whether `product` may stand for the product of these weights and a vector: they are still the same."""
        return (
            weight is not None
            and weight.data_ptr() == self._at
            and vector.dtype is self._dtype is weight.dtype
            and vector.is_cpu
            and vector.is_contiguous()
            and not (torch.is_grad_enabled() and (vector.requires_grad or weight.requires_grad))
        )

    def product(self, vector: Tensor) -> Tensor:
        """[..., inputs], of all numbers one vector -> [..., outputs]. Only if it `serves`."""
        out = torch.empty((*vector.shape[:-1], self._outputs), dtype=self._dtype)
        if status := native.lib.hgca_linear(self._described, vector.data_ptr(), out.data_ptr()):
            native.check(status)
        return out
