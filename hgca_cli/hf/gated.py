"""Gated feed-forward blocks in one call: down(silu(gate(x)) * up(x)) of one vector.

A block's own forward is five modules and seven operations; here threads are started once and what is in between stays in
their caches. Which modules are such blocks is found by trying: names and parts first, then their results.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from hgca_cli import native
from hgca_cli.hf.linear import QuickLinear, described_all
from hgca_cli.hf.trial import gives_the_same, put_before

PARTS = ("gate_proj", "up_proj", "down_proj")
TOLERANCE = {
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 3e-2,
}  # of the norm; own forward rounds in between


class Gated(nn.Module):
    """What is put before a block's own class: one vector is the C library's, all else as before."""

    gated: Block

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        if self.gated.serves(self._modules, x):
            return self.gated.product(x)
        return super().forward(x)


class Block:
    """The three layers of a gated block, as they were when it was found."""

    __slots__ = ("_described", "_layers", "_outputs", "layers")

    def __init__(self, layers: list[QuickLinear]) -> None:
        self.layers = layers
        self._layers = list(zip(PARTS, layers, strict=True))
        self._described = described_all([layer.quick for layer in layers])
        self._outputs = layers[2].quick.outputs

    def serves(self, modules: dict[str, nn.Module | None], vector: Tensor) -> bool:
        """Whether the layers are still the same, nobody listens to them, and the vector is one."""
        first = self._layers[0][1]
        if torch.is_grad_enabled() or vector.numel() != first.quick.inputs:
            return False
        for name, layer in self._layers:
            if modules[name] is not layer or layer._forward_hooks or layer._forward_pre_hooks:
                return False
            if layer.quick.moved(layer._parameters["weight"]):
                return False
        return first.quick.serves(first._parameters["weight"], vector)

    def product(self, vector: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]. Only if it `serves`."""
        out = torch.empty((*vector.shape[:-1], self._outputs), dtype=vector.dtype)
        if status := native.lib.hgca_gated(self._described, vector.data_ptr(), out.data_ptr()):
            native.check(status)
        return out


def quicken_gated(module: nn.Module) -> bool:
    """Let a module whose layers are quick be one call, if it is a gated block; returns whether it is."""
    layers = [module._modules.get(name) for name in PARTS]
    quick = [layer for layer in layers if isinstance(layer, QuickLinear)]
    if len(quick) < 3 or isinstance(module, Gated) or not _is_shaped(module, quick):
        return False
    block, gate = Block(quick), quick[0].quick
    rng = torch.Generator().manual_seed(1)
    # three sizes: silu's bend, where it is nearly straight, and what a clamp would cut
    inputs = [(size * torch.randn(1, 1, gate.inputs, generator=rng)).to(gate.dtype) for size in (0.1, 1.0, 30.0)]
    if not gives_the_same(module, block.product, inputs, TOLERANCE[gate.dtype]):
        return False
    put_before(module, Gated)
    assert isinstance(module, Gated)
    module.gated = block
    return True


def _is_shaped(module: nn.Module, layers: list[QuickLinear]) -> bool:
    gate, up, down = (layer.quick for layer in layers)
    return (
        set(module._modules) <= {*PARTS, "act_fn"}
        and not module._parameters
        and len(inspect.signature(module.forward).parameters) == 1
        and gate.inputs == up.inputs
        and gate.outputs == up.outputs == down.inputs
        and gate.dtype is up.dtype is down.dtype
    )
