"""A model whose weights are held in fewer bytes only: linear layers and experts on a grid of 8 or 4 bits, embeddings of 8 bits; or,
on the CPU, all in the 16 bits they were published in, where nothing is rounded.

transformers maps a model's files into memory and reads nothing, if its weights may stay what they are in there. Matrix by
matrix they are rounded (hf/grid.py) and given up, so that what is there at most is what is packed and one matrix. All else (norms,
biases) is float32 on the CPU, and so is what is computed; of a GPU's see hf/packed_gpu.py.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hgca_cli import native
from hgca_cli.errors import ModelError
from hgca_cli.hf.checks import FETCH_AGAIN
from hgca_cli.hf.elsewhere import Elsewhere
from hgca_cli.hf.embedded import Embedded
from hgca_cli.hf.experts import FIRST, LAST, Experts, Matrices, become_experts, biases_of, expert_weights, outputs_first
from hgca_cli.hf.grid import Grid, find_grid, readable, round_to_grid, takes, tiles_shape
from hgca_cli.hf.linear import QuickLinear, Weights
from hgca_cli.hf.mapped import nothing
from hgca_cli.hf.packed_files import PackedFiles
from hgca_cli.hf.pages import Pages
from hgca_cli.hf.published import LEAST_PACKED
from hgca_cli.hf.registry import Notify
from hgca_cli.hf.slowly import Slowly
from hgca_cli.hf.trial import gives_the_same, put_before

HALF = "half"  # nothing is rounded: what fp32 means on the CPU for a model of 16 bits
BITS = {"q8": 8, "q4": 4, "file": 8}  # at most; of a file's weights 4, if these hold them as they are
HEAD_BITS = 8  # of the output layer and the embedding, whatever the others have (docs/log.md); tied, they are one grid
SAMPLE = 64  # rows that are tried first
ON_GRID = 2**-7  # of the norm: rounding to bf16 takes .0017, 4 bits of numbers that lie anywhere .07
IDS, ROUNDED = 8, 3e-2  # of an embedding that are tried, and what rounding may change of them, of the norm


class Packing:
    """Packs the weights of a model just loaded from `path` on the CPU, in place.

    files    where they are read from, or kept; closed afterwards
    notify   told how far it is
    waiting  has the numbers of those that are not in the model's own files
    """

    gives = torch.float32  # what is computed
    takes_experts, packs = True, "linear layers and experts"

    def __init__(
        self, model: Any, path: Path, files: PackedFiles, notify: Notify, waiting: Elsewhere | None = None
    ) -> None:
        self._model, self._path, self._files = model, path, files
        self._pages, self._waiting = Pages(), waiting
        self._packed: set[nn.Module] = set()
        self._slowly = Slowly("loading the weights", sum(one.numel() for one in model.parameters()), notify)
        self._names = {id(module): name for name, module in model.named_modules()}
        self._users = Counter(
            one.data_ptr() for module in model.modules() for one in module._parameters.values() if one is not None
        )
        self._tied: dict[int, Grid | Tensor] = {}  # of weights that several modules have
        self._held: dict[int, nn.Parameter] = {}  # by where its tiles are
        self._ends = model.get_input_embeddings(), model.get_output_embeddings()

    def run(self, quant: str) -> None:
        """quant: of BITS, or HALF.

        Raises ModelError, naming it, for a weight that is not finite, and for a model of which little could be packed.
        """
        try:
            self._run(quant)
            self._files.finish()
        finally:
            self._files.close()

    def _run(self, quant: str) -> None:
        self._quant = quant
        modules = list(self._model.modules())
        packed = 0
        embedding = self._ends[0]
        held = readable if quant == HALF else takes
        if isinstance(embedding, nn.Embedding) and held(embedding.weight):
            self._embedding(embedding)
        for module in modules:
            if type(module) is nn.Linear and held(module.weight):
                packed += module.weight.numel() if module is not self._ends[1] else 0
                self._linear(module)
            elif self.takes_experts and (weights := expert_weights(module, held)):
                packed += sum(weight.numel() for weight in weights)
                self._experts(module)
        left = sum(
            one.numel()
            for module in modules
            if module not in self._ends and module not in self._packed
            for one in module._parameters.values()
            if one is not None and one.is_floating_point()
        )
        if packed < LEAST_PACKED * (packed + left):
            raise ModelError(
                f"--quant {quant}: {packed / max(1, packed + left):.0%} of the weights of family "
                f"{self._model.config.model_type!r} are {self.packs}, which is what is packed.",
                "Choose --quant none.",
            )
        for module in modules:
            self._rest(module)

    def _numbers(self, name: str, weight: Tensor) -> Tensor:
        """Those of a weight, wherever they are."""
        elsewhere = self._elsewhere(name)
        return weight if elsewhere is None else elsewhere.numbers(name).view(weight.shape)

    def _elsewhere(self, name: str) -> Elsewhere | None:
        """Who has the numbers of a weight, if the model has not."""
        return self._waiting if self._waiting is not None and name in self._waiting.names else None

    def _linear(self, module: nn.Linear) -> None:
        weight = module.weight.detach()
        bias = None if module.bias is None else module.bias.detach().float().clone()
        held = self._hold(module, weight)
        module._parameters["weight"] = self._weight(held)
        self._become(module, held, bias)
        self._packed.add(module)
        self._give_up(weight)

    def _experts(self, module: nn.Module) -> None:
        layers, where = [], []
        for name, bias in zip((FIRST, LAST), biases_of(module), strict=True):
            weight = module._parameters[name]
            assert weight is not None
            rows, known_as = outputs_first(module, name), f"{self._names[id(module)]}.{name}"
            count, outputs, inputs = rows.shape
            apart = self._elsewhere(known_as) is not None
            matrix = nothing(torch.Size((count * outputs, inputs)), weight.dtype) if apart else rows.flatten(0, 1)
            held = self._made(known_as, matrix, BITS.get(self._quant, 0))
            layers.append(Matrices.held(held, len(rows), bias := None if bias is None else bias.float().clone()))
            where.append(self._weight(held))
            module._parameters[name] = where[-1]
            if bias is not None:
                module._parameters[f"{name}_bias"] = nn.Parameter(bias, requires_grad=False)
            self._packed.add(module)
            self._give_up(weight.detach())
        become_experts(module, Experts(layers[0], layers[1], where))

    def _become(self, module: nn.Linear, held: Grid | Tensor, bias: Tensor | None) -> None:
        """A layer whose weights are held so, with its f32 bias."""
        if isinstance(held, Tensor):
            quick = Weights.in_halves(held, bias)
        else:
            quick = Weights.on_grid(held, module.out_features, bias)
        if bias is not None:
            module._parameters["bias"] = nn.Parameter(bias, requires_grad=False)
        module.__class__ = QuickLinear
        assert isinstance(module, QuickLinear)
        module.quick, module.siblings = quick, None

    def _hold(self, module: nn.Module, weight: Tensor) -> Grid | Tensor:
        """What a weight is from now on, the same for those that are tied."""
        if (known := self._tied.get(weight.data_ptr())) is not None:
            return known
        bits = HEAD_BITS if module in self._ends else BITS.get(self._quant, 0)
        held = self._made(f"{self._names[id(module)]}.weight", weight, bits)
        if self._users[weight.data_ptr()] > 1:
            self._tied[weight.data_ptr()] = held
        return held

    def _made(self, name: str, weight: Tensor, bits: int) -> Grid | Tensor:
        """What a weight [outputs, inputs] becomes; bits: of a grid, at most."""
        if self._quant == HALF:
            held: Grid | Tensor = self._pages.keep(self._numbers(name, weight))
        else:
            held = self._moved(self._grid(name, weight, bits))
        self._slowly.add(weight.numel())
        return held

    def _moved(self, grid: Grid) -> Grid:
        """To where it is to be."""
        return grid

    def _room(self, size: int) -> Tensor:
        """For so many bytes, uint8 [size], where they stay, or from where they are moved."""
        return self._pages.room(size)

    def _grid(self, name: str, weight: Tensor, bits: int) -> Grid:
        if (read := self._files.take(name, weight, bits, self._room)) is not None:
            return read
        elsewhere = self._elsewhere(name)
        if elsewhere is not None and (held := elsewhere.grid(name, self._room)) is not None:
            self._files.keep(name, held)
            return held
        weight = self._numbers(name, weight)
        grid = find_grid(weight)  # as of a GGUF file: nothing is rounded then
        if grid is not None and grid.bits <= bits:
            grid = grid._replace(tiles=self._room(grid.tiles.numel()).view(grid.tiles.shape).copy_(grid.tiles))
        else:
            grid, lost = self._rounded(weight, bits) if self._quant != "file" else self._as_in_file(weight)
            if lost == math.inf:
                raise ModelError(f"{self._path}: {name} holds NaN, infinite or enormous numbers.", FETCH_AGAIN)
        self._files.keep(name, grid)
        return grid

    def _as_in_file(self, weight: Tensor) -> tuple[Grid, float]:
        """4 bits, if the numbers were on such a grid before they were rounded to 16; else 8."""
        few = weight[:SAMPLE]
        if round_to_grid(few, 4, torch.empty(tiles_shape(few, 4), dtype=torch.uint8)) <= ON_GRID:
            grid, lost = self._rounded(weight, 4)
            if lost <= ON_GRID:
                return grid, lost
        return self._rounded(weight, 8)

    def _rounded(self, weight: Tensor, bits: int) -> tuple[Grid, float]:
        """And what that took, as of round_to_grid."""
        shape = tiles_shape(weight, bits)
        grid = Grid(self._room(shape[0] * shape[1] * shape[2]).view(shape), bits)
        return grid, round_to_grid(weight, bits, grid.tiles)

    def _weight(self, held: Grid | Tensor) -> nn.Parameter:
        """What stands for a module's weight: one for those that are tied."""
        one = held if isinstance(held, Tensor) else held.tiles
        return self._held.setdefault(one.data_ptr(), nn.Parameter(one, requires_grad=False))

    def _embedding(self, module: nn.Embedding) -> None:
        weight = module.weight.detach()
        ids = torch.arange(min(IDS, len(weight))).unsqueeze(0)
        with torch.inference_mode():
            own = module(ids).float()  # of a family's own class: scaled, as Gemma's is
        of, padding = type(module), module.padding_idx
        put_before(module, Embedded)
        assert isinstance(module, Embedded)
        module.held, module.gives = self._hold(module, weight), self.gives
        module._parameters["weight"] = self._weight(module.held)
        module.padding_idx = None  # which only training asks for, and which a few rows would not have
        self._buffers(module)
        if gives_the_same(
            lambda _: own, lambda ids: module(ids.to(module.weight.device)).float().cpu(), [ids], ROUNDED
        ):
            self._packed.add(module)
            self._give_up(weight)
        else:  # `_rest` makes it what is computed
            module.padding_idx = padding
            as_it_was: nn.Module = module
            as_it_was.__class__ = of
            numbers = self._numbers(f"{self._names[id(module)]}.weight", weight)
            module._parameters["weight"] = nn.Parameter(numbers, requires_grad=False)

    def _rest(self, module: nn.Module) -> None:
        """All else becomes what is computed, in memory of its own: no file stays mapped."""
        if module in self._packed:
            return
        for name, one in module._parameters.items():
            if one is not None and one.is_floating_point():
                module._parameters[name] = nn.Parameter(self._plain(one.detach()), requires_grad=False)
                self._give_up(one.detach())
        self._buffers(module)

    def _plain(self, numbers: Tensor) -> Tensor:
        """As what is computed, where it is computed, in memory of their own."""
        return numbers.to(self.gives, copy=True)

    def _buffers(self, module: nn.Module) -> None:
        for name, one in module._buffers.items():
            if one is not None and one.dtype in (torch.bfloat16, torch.float16):
                module._buffers[name] = one.float()
                exact = getattr(
                    module, f"scalar_{name}", None
                )  # what transformers made the buffer of, in its own dtype
                if isinstance(exact, float) and one.numel() == 1:
                    module._buffers[name] = torch.full_like(one, exact, dtype=torch.float32)

    def _give_up(self, weight: Tensor) -> None:
        """The pages of a file that were read for a weight are not needed any more, once nobody has it."""
        self._users[weight.data_ptr()] -= 1
        if not self._users[weight.data_ptr()] and weight.is_contiguous():
            native.check(native.lib.hgca_forget(weight.data_ptr(), weight.numel() * weight.element_size()))
