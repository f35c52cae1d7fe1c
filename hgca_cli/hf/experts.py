"""Experts of a mixture, multiplied by the library: each token meets the few that a router chose for it, and no other is read.

transformers holds a layer's experts in two tensors, whatever the family (its ExpertsInterface): of each expert gate and up one behind
the other (or in turns), and down. Whether a module does with them what is done here is found by trying it with small random ones. A
few tokens of experts gated by silu, and many whose weights are on a grid, are one call of the library; of others, and of other
gates, each expert is multiplied once with all vectors that have it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hgca_cli import native
from hgca_cli.hf.grid import BLOCK, TILE, Grid, readable
from hgca_cli.hf.linear import Weights, described_all, multiply
from hgca_cli.hf.products import linear
from hgca_cli.hf.trial import put_before

FIRST, LAST = "gate_up_proj", "down_proj"
BIASES = (f"{FIRST}_bias", f"{LAST}_bias")
TOLERANCE = 1e-5  # of the norm, float32
MANY = 1 << 15  # tokens of a call
AT_ONCE = 1 << 25  # numbers of vectors between an expert's layers: tokens beyond are taken in turns
SHARED = 64  # vectors of an expert, on the average, beyond which weights that are no grid's are torch's (docs/log.md)
TRIED, CHOSEN, WIDTH, INNER, TOKENS = 3, 2, 64, 32, 5  # experts of a trial, and what they are given


class QuickExperts(nn.Module):
    """What is put before a family's own class."""

    experts: Experts

    def forward(self, hidden_states: Tensor, *args: Any, **named: Any) -> Tensor:
        """[tokens, width], the experts of each token [tokens, count] and their shares -> [tokens, width]."""
        told = (*args, *(named[name] for name in self.experts.told[len(args) :] if name in named))
        if len(told) == 2 and self.experts.serves(self, hidden_states):
            return self.experts.product(self, hidden_states, *told)
        out: Tensor = super().forward(hidden_states, *args, **named)
        return out


class Matrices:
    """One layer of all experts, each [outputs, inputs] of the same kind; they must not change or move.

    weight  f32 [experts, outputs, inputs], or None where they are held in other ways alone
    ones    of each expert
    """

    def __init__(self, ones: list[Weights], weight: Tensor | None = None, bias: Tensor | None = None) -> None:
        self.ones, self._weight, self._bias = ones, weight, bias
        self.described = described_all(ones)
        self.outputs, self.inputs = ones[0].outputs, ones[0].inputs
        self.copied = sum(one.copied for one in ones)

    @classmethod
    def held(cls, held: Grid | Tensor, count: int, bias: Tensor | None = None) -> Matrices:
        """Held on a grid, or in 16 bits, as one matrix [count * outputs, inputs]; bias f32 [count, outputs]."""
        biases = [None] * count if bias is None else list(bias)
        if isinstance(held, Tensor):
            parts = held.chunk(count)
            return cls([Weights.in_halves(*pair) for pair in zip(parts, biases, strict=True)], bias=bias)
        grids, outputs = _parts(held, count), held.tiles.shape[0] * TILE // count
        return cls([Weights.on_grid(*pair) for pair in zip(grids, [outputs] * count, biases, strict=True)], bias=bias)

    @classmethod
    def beside(cls, weight: Tensor, held: Grid | Tensor | None, bias: Tensor | None = None) -> Matrices:
        """f32 [experts, outputs, inputs], and the same once more in fewer bytes, if there is such a copy."""
        count = len(weight)
        biases = [None] * count if bias is None else list(bias)
        copies = (
            [None] * count if held is None else held.chunk(count) if isinstance(held, Tensor) else _parts(held, count)
        )
        ones = [Weights(*three) for three in zip(weight, biases, copies, strict=True)]
        return cls(ones, weight, bias)

    def product(self, expert: int, vectors: Tensor, out: Tensor) -> None:
        """[n, inputs] -> out [n, outputs]."""
        one = self.ones[expert]
        if len(vectors) <= one.most:
            multiply(one.addressed, 1, vectors, self.inputs, out)
        elif self._weight is not None:
            out.copy_(linear(vectors, self._weight[expert], None if self._bias is None else self._bias[expert]))
        else:
            out.copy_(one.any_product(vectors))


class Experts:
    """What a layer's experts are multiplied with.

    where   the tensors that stand for the two layers' weights, as the module has them
    at_once  whether a few tokens may be one call of the library
    told     how the module's class calls a token's experts and their shares
    """

    def __init__(self, first: Matrices, last: Matrices, where: Sequence[Tensor]) -> None:
        self.first, self.last = first, last
        self.at_once = False
        self.told: list[str] = []
        self._count = len(first.ones)
        self._where = [one.data_ptr() for one in where]
        self._alone = first._weight is None

    def serves(self, module: nn.Module, vectors: Tensor) -> bool:
        """Whether `product` may stand for what the module's own class does. If the weights are held in other ways alone, it has to."""
        if self._alone:
            return True
        own = module._parameters
        return (
            not torch.is_grad_enabled()
            and vectors.dtype is torch.float32
            and vectors.is_cpu
            and [one.data_ptr() for one in (own[FIRST], own[LAST]) if one is not None] == self._where
        )

    def product(self, module: nn.Module, vectors: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """[tokens, width], i64 [tokens, count], [tokens, count] -> [tokens, width]."""
        with torch.no_grad():
            given = vectors.float().contiguous()
            chosen, shares = chosen.long().contiguous(), shares.float().contiguous()
            if self.at_once and len(given) <= self.most(chosen.shape[1]):
                return self._at_once(given, chosen, shares).to(vectors.dtype)
            each = max(1, AT_ONCE // (chosen.shape[1] * (2 * self.first.inputs + self.first.outputs)))
            several = zip(given.split(each), chosen.split(each), shares.split(each), strict=True)
            parts = [self._by_expert(module, *part) for part in several]
            return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(vectors.dtype)

    def most(self, chosen: int) -> int:
        """Tokens that one call of the library is best for, if each has so many experts."""
        grids = all(layer.ones[0].grid is not None for layer in (self.first, self.last))
        return MANY if grids else max(1, SHARED * self._count // chosen)

    def _at_once(self, vectors: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        out = torch.empty((len(vectors), self.last.outputs))
        layers = self.first.described, self.last.described, self._count
        told = native.address(chosen, "int64_t *"), native.address(shares, "float *"), chosen.shape[1], len(vectors)
        native.check(native.lib.hgca_experts(*layers, *told, vectors.data_ptr(), out.data_ptr()))
        return out

    def _by_expert(self, module: Any, vectors: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """Each expert with all vectors that have it."""
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=self._count).tolist()
        given = vectors[order // chosen.shape[1]]
        hidden = module._apply_gate(self._products(self.first, counts, given)).contiguous()
        out = self._products(self.last, counts, hidden).mul_(shares.flatten()[order].unsqueeze(1))
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        return out[back].view(*chosen.shape, -1).sum(1)

    def _products(self, layer: Matrices, counts: list[int], vectors: Tensor) -> Tensor:
        out, first = torch.empty((len(vectors), layer.outputs)), 0
        for expert, count in enumerate(counts):
            if count:
                layer.product(expert, vectors[first : first + count], out[first : first + count])
            first += count
        return out


def are_experts(module: nn.Module) -> bool:
    """Whether a module holds the experts of a layer as transformers' ExpertsInterface has them, and does with them what Experts do."""
    own = module._parameters
    biases = {name for name in BIASES if own.get(name) is not None}
    return (
        not isinstance(module, QuickExperts)
        and getattr(module, "has_gate", False) is True
        and not getattr(module, "has_post_expert_norm", False)
        and {name for name, one in own.items() if one is not None} == {FIRST, LAST, *biases}
        and len(biases) in (0, 2)
        and all(one is not None and one.dim() == 3 for one in (own[FIRST], own[LAST]))
        and not module._modules.keys() - {"act_fn"}
        and hasattr(module, "_apply_gate")
        and _tried(module, at_once=False)
    )


def biases_of(module: nn.Module) -> list[Tensor | None]:
    """Of both layers, [experts, outputs]."""
    return [None if (bias := module._parameters.get(name)) is None else bias.detach() for name in BIASES]


def outputs_first(module: nn.Module, name: str) -> Tensor:
    """A layer's weights of all experts, [experts, outputs, inputs]; where they are held the other way round, turned."""
    weight = module._parameters[name]
    assert weight is not None
    return weight.detach().transpose(1, 2) if getattr(module, "is_transposed", False) else weight.detach()


def expert_weights(module: nn.Module, held: Callable[[Tensor], bool] = readable) -> list[Tensor]:
    """The weights of experts that may be held in other ways, if each is `held` as [experts * outputs, inputs]; empty if not.

    Each expert's are whole tiles of a grid then, in numbers that are whole blocks.
    """
    weights: list[Tensor] = [
        one for name in (FIRST, LAST) if (one := module._parameters.get(name)) is not None and one.dim() == 3
    ]
    if len(weights) < 2 or not all(one.is_contiguous() and held(one.flatten(0, 1)) for one in weights):
        return []
    shapes = [outputs_first(module, name).shape for name in (FIRST, LAST)]
    whole = all(outputs % TILE == 0 and inputs % BLOCK == 0 for _, outputs, inputs in shapes)
    return weights if whole and are_experts(module) else []


def become_experts(module: nn.Module, experts: Experts) -> None:
    """Let a module that `are_experts` be multiplied so."""
    experts.at_once = experts.last.inputs % BLOCK == 0 and _tried(module, at_once=True)
    experts.told = list(inspect.signature(module.forward).parameters)[1:3]
    put_before(module, QuickExperts)
    assert isinstance(module, QuickExperts)
    module.experts = experts


def _tried(module: nn.Module, at_once: bool) -> bool:
    """Whether a module like this one, of a few small random experts, gives what Experts do."""
    rng = torch.Generator().manual_seed(1)
    like: Any = copy.copy(module)
    if isinstance(like, QuickExperts):
        return False
    shapes = {FIRST: (TRIED, 2 * INNER, WIDTH), LAST: (TRIED, WIDTH, INNER)}
    weights = {name: torch.randn(shape, generator=rng) * shape[2] ** -0.5 for name, shape in shapes.items()}
    biased = module._parameters.get(BIASES[0]) is not None
    biases = {name: torch.randn((TRIED, shape[1]), generator=rng) for name, shape in shapes.items() if biased}
    turned = getattr(module, "is_transposed", False)
    own = {name: one.transpose(1, 2).contiguous() if turned else one for name, one in weights.items()}
    own |= {f"{name}_bias": one for name, one in biases.items()}
    like.__dict__ = dict(module.__dict__)
    like._parameters = {name: nn.Parameter(one, requires_grad=False) for name, one in own.items()}
    like.num_experts = TRIED
    first, last = (Matrices.beside(one, None, biases.get(name)) for name, one in weights.items())
    ours = Experts(first, last, (like._parameters[FIRST], like._parameters[LAST]))
    shares = torch.rand((TOKENS, CHOSEN), generator=rng)
    chosen = torch.stack([torch.randperm(TRIED, generator=rng)[:CHOSEN] for _ in range(TOKENS)])
    with torch.inference_mode():
        for size in (0.1, 1.0, 30.0):
            x = size * torch.randn((TOKENS, WIDTH), generator=rng)
            try:
                want = like(x, chosen, shares)
            except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError):
                return False
            got = ours._at_once(x, chosen, shares) if at_once else ours._by_expert(like, x, chosen, shares)
            if not isinstance(want, Tensor) or want.shape != got.shape or want.dtype is not got.dtype:
                return False
            if not float((got - want).norm()) <= TOLERANCE * float(want.norm()):
                return False
    return True


def _parts(grid: Grid, count: int) -> list[Grid]:
    return [grid._replace(tiles=tiles) for tiles in grid.tiles.chunk(count)]
