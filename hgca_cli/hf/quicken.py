"""A loaded model on the CPU decodes faster: the C library does a token's linear layers, gated blocks, norms and whole layers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from hgca_cli.hf.decoder import parts_of, quicken_decoder
from hgca_cli.hf.experts import FIRST, LAST, Experts, Matrices, QuickExperts, are_experts, become_experts, biases_of
from hgca_cli.hf.gated import quicken_gated
from hgca_cli.hf.grid import TILE, Grid, find_grid, find_halves
from hgca_cli.hf.linear import QuickLinear, Weights
from hgca_cli.hf.mixture import quicken_mixture
from hgca_cli.hf.norm import quicken_norm
from hgca_cli.hf.pages import Pages
from hgca_cli.hf.siblings import join
from hgca_cli.hf.stack import stack
from hgca_cli.hf.straight import straighten
from hgca_cli.hf.threads import NAME as ALONE
from hgca_cli.hf.threads import one_thread

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names of a module's layers that share a vector
LITTLE = 1 / 16  # of the weights
SEARCHERS = 4  # threads that look for copies, each with some 2^19 numbers in a few forms: memory gives no more


def quicken(model: nn.Module) -> int:
    """Let the modules of a model on the CPU do so; returns the bytes that second copies of weights take."""
    searchers = max(1, min(SEARCHERS, torch.get_num_threads()))
    with one_thread():  # 210 matrices, 9 passes each
        taken = _quicken(model, searchers)
        taken += sum(_quicken_experts(module) for module in list(model.modules()))
        for module in list(model.modules()):
            for names in TOGETHER:
                join([layer for name in names if isinstance(layer := module._modules.get(name), QuickLinear)])
            quicken_gated(module)
            quicken_mixture(module)
            quicken_norm(module)
        for module in list(model.modules()):  # once all their parts are quick
            quicken_decoder(module)
        stack(model, parts_of)
        straighten(model)
        setattr(model, ALONE, _does_nearly_all(model))
        return taken


def _does_nearly_all(model: nn.Module) -> bool:
    """Whether the library reads nearly all weights that a token does."""
    quick = {id(one.weight): one.weight.numel() for one in model.modules() if isinstance(one, QuickLinear)}
    experts = [one for one in model.modules() if isinstance(one, QuickExperts)]
    quick |= {id(one): one.numel() for module in experts for one in module.parameters()}
    looked_up = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
    others = sum(one.numel() for one in model.parameters() if id(one) not in quick and id(one) not in looked_up)
    return others <= LITTLE * sum(quick.values())


def _quicken(model: nn.Module, searchers: int) -> int:
    taken = 0
    pages = Pages()
    layers = [one for one in model.modules() if type(one) is nn.Linear and Weights.takes(one.weight, one.bias)]
    seen: dict[int, Weights] = {}  # tied weights are packed once
    first: dict[int, Tensor] = {}
    for one in layers:
        first.setdefault(one.weight.data_ptr(), one.weight.detach())
    threads = ThreadPoolExecutor(searchers, "copies")
    try:
        found = {at: threads.submit(copy_of, weight) for at, weight in first.items()}
        for module in layers:
            weight, at = module.weight, module.weight.data_ptr()
            if module.bias is None and at in seen:
                quick = seen[at]
            else:
                copy = _kept(found.pop(at).result() if at in found else copy_of(weight), pages)
                quick = Weights(weight, module.bias, copy)
                taken += quick.copied
                seen[at] = quick
            module.__class__ = QuickLinear
            assert isinstance(module, QuickLinear)
            module.quick = quick
            module.siblings = None
    finally:
        threads.shutdown(cancel_futures=True)  # Ctrl-C, too, waits for no more than is begun
    return taken


def _quicken_experts(module: nn.Module) -> int:
    """Let the library multiply experts that are float32; of what else there is, they are multiplied as they are held."""
    weights = [module._parameters.get(name) for name in (FIRST, LAST)]
    if not all(
        one is not None and one.dtype is torch.float32 and one.is_cpu and one.is_contiguous() for one in weights
    ):
        return 0
    if getattr(module, "is_transposed", False) or not are_experts(module):
        return 0
    layers, pages = [], Pages()
    for one, bias in zip(weights, biases_of(module), strict=True):
        assert one is not None
        copy = _kept(copy_of(one.detach().flatten(0, 1)) if one.shape[1] % TILE == 0 else None, pages)
        layers.append(Matrices.beside(one.detach(), copy, bias))
    become_experts(module, Experts(layers[0], layers[1], [one for one in weights if one is not None]))
    return sum(layer.copied for layer in layers)


def copy_of(weight: Tensor) -> Tensor | Grid | None:
    """The same weights in fewer bytes, if there are such."""
    grid = find_grid(weight)
    return find_halves(weight) if grid is None else grid


def _kept(copy: Tensor | Grid | None, pages: Pages) -> Tensor | Grid | None:
    if isinstance(copy, Grid):
        return copy._replace(tiles=pages.keep(copy.tiles))
    return None if copy is None else pages.keep(copy)
