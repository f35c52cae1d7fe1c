"""Linear layers that read their weights once a token at the rate of memory, in as few bytes as hold them exactly.

torch's product of a matrix and one vector reads weights on one thread here, at a third of the rate two threads reach.
A loaded model's linear layers hand single tokens to the C library (hf/quicken.py); everything else about them stays as
it is (name, parameters, what many tokens do, but on a grid). float32 weights that 16 bits hold exactly, as most models are
published, or a grid of 4 or 8 bits, as those of a converted GGUF file, get a second copy in that form: half or a sixth is read then.
Results differ by rounding alone; of a grid's that is what rounding a vector to 21 bits by blocks of 32 makes of them: 1e-6
of the result's norm in the default model's layers, 1.3e-5 where a vector has numbers a thousand times the others.

Weights may be held on a grid alone, or in 16 bits (hf/packed.py): whatever such a layer is given is multiplied with that.

A few vectors are multiplied by the library, too, which reads the weights once for all of them. Many, of a prompt or of a large batch,
are torch's, in float32 that of its two libraries which is faster here (hf/products.py); with a grid they are the library's where the
processor's whole numbers are faster than torch's floats: rounded to 16 bits by blocks of 32, which moves the default model's
distributions by 5e-8 (KL).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hgca_cli import native
from hgca_cli.hf.grid import BLOCK, FLOATS4, ROWS_AT_ONCE, Grid, floats, readable
from hgca_cli.hf.products import linear

if TYPE_CHECKING:
    from hgca_cli.hf.siblings import Siblings

AT_ONCE, FEWEST_ROWS = 1 << 21, 64  # numbers, at least so many rows, that are widened at once (docs/log.md)
FEW = 32  # vectors that rows of floats, or of 16 bits, are read once for; for more torch is faster (docs/log.md)
TURNS = 1024  # vectors that weights held on a grid alone are multiplied with before making floats of them can pay (docs/log.md)


class QuickLinear(nn.Linear):
    """A linear layer of a loaded model, whose weights do not change any more. Those held on a grid alone are its tiles, uint8."""

    quick: Weights
    siblings: Siblings | None
    rank: int  # among them

    def forward(self, input: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        quick = self.quick
        if quick.serves(self._parameters["weight"], input):
            if self.siblings is not None and not torch.is_grad_enabled():
                return self.siblings.product(self.rank, input)
            return quick.product(input)
        if quick.grid is not None or quick.halves is not None:
            return quick.any_product(input)
        return linear(input, self.weight, self.bias)


class Weights:
    """A linear layer's weights, to be multiplied with a vector or, on a grid, with several. They must not change or move.

    weight   f32, bf16 or f16 [outputs, inputs], on the CPU, numbers of a row next to each other; bias [outputs] or None
    copy     the same weights in fewer bytes, which are read then: bf16 or f16, or on a grid
    copied   bytes of the copy
    grid, halves  where there are no others (`on_grid`, `in_halves`)
    most     vectors at once, beyond which torch is faster
    """

    __slots__ = (
        "_at",
        "_described",
        "_held",
        "_kept",
        "copied",
        "dtype",
        "grid",
        "halves",
        "inputs",
        "most",
        "outputs",
    )

    def __init__(self, weight: Tensor, bias: Tensor | None = None, copy: Tensor | Grid | None = None) -> None:
        assert self.takes(weight, bias)
        self.grid: Grid | None = None
        self.halves: Tensor | None = None
        self._describe(weight, tuple(weight.shape), weight.dtype, bias, copy)

    @classmethod
    def on_grid(cls, grid: Grid, outputs: int, bias: Tensor | None = None) -> Weights:
        """Weights [outputs, inputs] that are held on a grid alone, for vectors of float32; the layer's own are its tiles."""
        one = cls.__new__(cls)
        one.grid, one.halves = grid, None
        one._describe(grid.tiles, (outputs, grid.tiles.shape[1] * BLOCK), torch.float32, bias, grid)
        one.copied = 0
        one.most = max(one.most, TURNS)
        return one

    @classmethod
    def in_halves(cls, weight: Tensor, bias: Tensor | None = None) -> Weights:
        """bf16 or f16 weights [outputs, inputs] for vectors of float32, which have no copy in float32."""
        one = cls.__new__(cls)
        one.grid, one.halves = None, weight
        one._describe(weight, tuple(weight.shape), torch.float32, bias, weight)
        one.copied = 0
        return one

    def _describe(
        self,
        weight: Tensor,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        bias: Tensor | None,
        copy: Tensor | Grid | None,
    ) -> None:
        to = self._described = native.ffi.new("hgca_weights *")
        read = weight if copy is None else copy.tiles if isinstance(copy, Grid) else copy
        to.weight, to.row_bytes = native.address(read), read.stride(0) * read.element_size()
        to.outputs, to.inputs = shape
        to.dtype = native.DTYPES[dtype]
        if isinstance(copy, Grid):
            assert copy.tiles.is_contiguous()
            kinds = {4: native.lib.HGCA_GRID4, 8: native.lib.HGCA_GRID8, FLOATS4: native.lib.HGCA_FLOAT4}
            to.kind = kinds[copy.bits]
        else:
            to.kind = native.DTYPES[read.dtype]
        if bias is not None:
            to.bias = native.address(bias)
        self._kept = (weight, bias, read)
        self.copied = 0 if copy is None else read.numel() * read.element_size()
        self._at, self._held, self.dtype = weight.data_ptr(), weight.dtype, dtype
        of_grid = max(1, native.lib.hgca_most_vectors()) if isinstance(copy, Grid) else FEW
        self.most = of_grid if dtype is torch.float32 else 1
        self.outputs, self.inputs = shape

    @staticmethod
    def takes(weight: Tensor, bias: Tensor | None = None) -> bool:
        """Whether weights and bias are of a kind and in a place the C library reads."""
        if bias is not None and not (bias.is_cpu and bias.is_contiguous() and bias.dtype == weight.dtype):
            return False
        return readable(weight)

    def serves(self, weight: Tensor | None, vector: Tensor) -> bool:
        """Whether `product` may stand for the product of these weights and vectors: they are still the same, and not too many."""
        return (
            vector.size(-1) == self.inputs
            and 1 <= vector.numel() // self.inputs <= self.most
            and weight is not None
            and not self.moved(weight)
            and vector.dtype is self.dtype
            and vector.is_cpu
            and vector.is_contiguous()
            and not (torch.is_grad_enabled() and (vector.requires_grad or weight.requires_grad))
        )

    def moved(self, weight: Tensor | None) -> bool:
        """Whether a layer's weight is another one by now."""
        return weight is None or weight.data_ptr() != self._at or weight.dtype is not self._held

    def product(self, vector: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]. Only if it `serves`."""
        out = torch.empty((*vector.shape[:-1], self.outputs), dtype=self.dtype)
        multiply(self._described, 1, vector, self.inputs, out)
        return out

    def any_product(self, vector: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs] with weights not held in float32, whatever the vectors are: as many, of any dtype."""
        _, bias, _ = self._kept
        plain = vector.to(self.dtype).contiguous()
        watched = torch.is_grad_enabled() and vector.requires_grad
        if not watched and vector.is_cpu and 1 <= plain.numel() // self.inputs <= self.most:
            return self.product(plain).to(vector.dtype)
        parts = [linear(plain, piece) for piece in self._floats()]
        out = torch.cat(parts, dim=-1)
        return (out if bias is None else out + bias).to(vector.dtype)

    def _floats(self) -> Iterator[Tensor]:
        """The weights in float32, some rows at a time: of halves few enough to stay in the cache until they are multiplied."""
        if self.halves is not None:
            yield from (piece.float() for piece in self.halves.split(max(FEWEST_ROWS, AT_ONCE // self.inputs)))
            return
        assert self.grid is not None
        yield from (floats(self.grid, rows) for rows in torch.arange(self.outputs).split(ROWS_AT_ONCE))

    @property
    def described(self) -> object:
        """What the C library reads, hgca_weights."""
        return self._described[0]

    @property
    def addressed(self) -> object:
        """Where that is."""
        return self._described


def multiply(described: object, layers: int, vector: Tensor, inputs: int, out: Tensor) -> None:
    """Products of layers that share [..., inputs]: of each all vectors', one layer after the other."""
    at, vectors = (vector.data_ptr(), out.data_ptr()), vector.numel() // inputs
    if vectors == 1:
        status = native.lib.hgca_linear(described, layers, *at)
    else:
        status = native.lib.hgca_linear_several(described, layers, vectors, *at)
    if status:
        native.check(status)


def described_all(weights: list[Weights]) -> object:
    """As the C library wants several; the weights must be kept."""
    described = native.ffi.new("hgca_weights[]", len(weights))
    for i, one in enumerate(weights):
        described[i] = one.described
    return described
