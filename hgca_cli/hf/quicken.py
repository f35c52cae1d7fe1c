"""A loaded model on the CPU decodes faster: the C library does a token's linear layers, gated blocks, norms and whole layers."""

from __future__ import annotations

from torch import Tensor, nn

from hgca_cli.hf.decoder import parts_of, quicken_decoder
from hgca_cli.hf.gated import quicken_gated
from hgca_cli.hf.grid import Grid, find_grid, find_halves
from hgca_cli.hf.linear import QuickLinear, Weights
from hgca_cli.hf.norm import quicken_norm
from hgca_cli.hf.pages import Pages
from hgca_cli.hf.siblings import join
from hgca_cli.hf.stack import stack
from hgca_cli.hf.straight import straighten
from hgca_cli.hf.threads import one_thread

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names of a module's layers that share a vector


def quicken(model: nn.Module) -> int:
    """Let the modules of a model on the CPU do so; returns the bytes that second copies of weights take."""
    with one_thread():  # 210 matrices, 9 passes each
        taken = _quicken(model)
        for module in list(model.modules()):
            for names in TOGETHER:
                join([layer for name in names if isinstance(layer := module._modules.get(name), QuickLinear)])
            quicken_gated(module)
            quicken_norm(module)
        for module in list(model.modules()):  # once all their parts are quick
            quicken_decoder(module)
        stack(model, parts_of)
        straighten(model)
        return taken


def _quicken(model: nn.Module) -> int:
    taken = 0
    pages = Pages()
    seen: dict[int, Weights] = {}  # tied weights are packed once
    for module in model.modules():
        if type(module) is not nn.Linear or not Weights.takes(module.weight, module.bias):
            continue
        weight = module.weight
        if module.bias is None and weight.data_ptr() in seen:
            quick = seen[weight.data_ptr()]
        else:
            quick = Weights(weight, module.bias, copy_of(weight, pages))
            taken += quick.copied
            seen[weight.data_ptr()] = quick
        module.__class__ = QuickLinear
        assert isinstance(module, QuickLinear)
        module.quick = quick
        module.siblings = None
    return taken


def copy_of(weight: Tensor, pages: Pages) -> Tensor | Grid | None:
    """The same weights in fewer bytes, if there are such."""
    if (grid := find_grid(weight)) is not None:
        return grid._replace(tiles=pages.keep(grid.tiles))
    halves = find_halves(weight)
    return None if halves is None else pages.keep(halves)
