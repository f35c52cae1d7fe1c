"""A mixture's router and its experts in one call: a token's norms, products and choice wake no thread but the library's.

Which modules are such is found by trying: two parts, one of which is experts that are one call (hf/experts.py), and then what the block
gives: shares that are a softmax over all experts, as they are or made to add up to one.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from hgca_cli import native
from hgca_cli.hf.experts import QuickExperts
from hgca_cli.hf.grid import find_halves
from hgca_cli.hf.linear import Weights
from hgca_cli.hf.trial import gives_the_same, put_before
from hgca_cli.hf.watched import Watched

TOLERANCE = 1e-4  # of the norm, float32
TRIED = 3  # inputs of each size


class Mixed(nn.Module):
    """What is put before a block's own class: a few tokens are the C library's, all else as before."""

    mixture: Mixture

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        if self.mixture.serves(x):
            return self.mixture.product(x)
        return super().forward(x)


class Mixture:
    """A router and the experts it chooses from, as they were when they were found.

    most  tokens of a call
    """

    def __init__(self, block: nn.Module, router: nn.Module, experts: QuickExperts, chosen: int, whole: bool) -> None:
        weight = router._parameters["weight"]
        assert weight is not None
        self._router = Weights(weight.detach(), None, find_halves(weight))
        self._experts, self._held = experts, experts.experts
        self._watched = Watched([block])
        self.width, self.most = self._router.inputs, self._held.most(chosen)
        to = self.described = native.ffi.new("hgca_mixture *")
        to.router, to.first, to.last = self._router.described, self._held.first.described, self._held.last.described
        to.experts, to.chosen, to.whole = self._router.outputs, chosen, whole

    def serves(self, x: Tensor) -> bool:
        """Whether these are a few tokens, the parts are still the same and nobody listens to them."""
        return (
            not torch.is_grad_enabled()
            and x.dtype is torch.float32
            and x.is_cpu
            and x.is_contiguous()
            and x.size(-1) == self.width
            and 1 <= x.numel() // self.width <= self.most
            and self._watched.unchanged()
        )

    def product(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]. Only if it `serves`."""
        out = torch.empty_like(x)
        tokens = x.numel() // self.width
        if status := native.lib.hgca_mixed(self.described, tokens, x.data_ptr(), out.data_ptr()):
            native.check(status)
        return out


def quicken_mixture(module: nn.Module) -> bool:
    """Let a module be one call, if it is a router and quick experts and does with them what the library does; returns whether it is."""
    if isinstance(module, Mixed) or module._parameters or len(module._modules) != 2:
        return False
    if len(inspect.signature(module.forward).parameters) != 1:
        return False
    parts: list[Any] = sorted(module._modules.values(), key=lambda one: isinstance(one, QuickExperts))
    router, experts = parts
    if not isinstance(experts, QuickExperts) or not experts.experts.at_once or not _is_router(router, experts):
        return False
    chosen = getattr(router, "top_k", None) or getattr(module, "top_k", None)
    if not isinstance(chosen, int) or not 0 < chosen <= len(experts.experts.first.ones):
        return False
    rng = torch.Generator().manual_seed(1)
    width = experts.experts.first.inputs
    inputs = [size * torch.randn(1, 1, width, generator=rng) for size in (0.1, 1.0, 10.0) for _ in range(TRIED)]
    for whole in (True, False):
        mixture = Mixture(module, router, experts, chosen, whole)
        if gives_the_same(module, mixture.product, inputs, TOLERANCE):
            put_before(module, Mixed)
            assert isinstance(module, Mixed)
            module.mixture = mixture
            return True
    return False


def _is_router(module: Any, experts: QuickExperts) -> bool:
    """Whether a module has the weights of a router for these experts, and nothing else."""
    weight = module._parameters.get("weight")
    shape = (len(experts.experts.first.ones), experts.experts.first.inputs)
    return (
        weight is not None
        and tuple(weight.shape) == shape
        and weight.dtype is torch.float32
        and Weights.takes(weight)
        and {name for name, one in module._parameters.items() if one is not None} == {"weight"}
        and not module._modules
        and not module._buffers
    )
