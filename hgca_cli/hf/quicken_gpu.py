"""A loaded model on a GPU decodes faster: norms and rotations of a few tokens are one kernel each.

A decode step is a graph of kernels that take a microsecond or two each, whatever they compute: fewer of them are faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from hgca_cli.attention.slots import trouble
from hgca_cli.hf.norm_gpu import QuickNormGpu, quicken_norm_gpu
from hgca_cli.hf.rotary import ANY_DIM, families, quicken_rotary, unquicken_rotary
from hgca_cli.hf.trial import take_away


class Quickened(NamedTuple):
    """Of a model. norms: how many are one kernel, now or before; rotations: modules whose function is, by name."""

    norms: int = 0
    rotations: tuple[str, ...] = ()


def works_on(device: torch.device) -> bool:
    """Whether it is a GPU where Triton's kernels work."""
    return device.type == "cuda" and trouble(device) is None


def quicken_gpu(model: nn.Module) -> Quickened:
    """Let the modules of a model on a GPU do so; nothing where Triton is missing. Once or several times is the same."""
    weights = list(model.parameters())
    if not weights or not works_on(device := weights[0].device):
        return Quickened()
    for module in list(model.modules()):
        _tried(quicken_norm_gpu, module)
    dims = [dim for one in model.modules() if isinstance(dim := getattr(one, "head_dim", None), int) and dim % 2 == 0]
    turned: list[str] = []
    for dtype in sorted({one.dtype for one in weights if one.dtype.is_floating_point}, key=str):
        for name, family in families(model).items():
            if _tried(quicken_rotary, family, device, dtype, dims[0] if dims else ANY_DIM) and name not in turned:
                turned.append(name)
    return Quickened(sum(isinstance(one, QuickNormGpu) for one in model.modules()), tuple(turned))


def unquicken_gpu(model: nn.Module) -> None:
    """Undo it, and of its families for all models. Graphs that were recorded are as they were."""
    for module in model.modules():
        if isinstance(module, QuickNormGpu) and take_away(module, QuickNormGpu):
            del module.at
    for family in families(model).values():
        unquicken_rotary(family)


def _tried(quicken: Callable[..., bool], *args: Any) -> bool:
    """Whether it went well: a GPU may not know a dtype, and what Triton raises is of many kinds."""
    try:
        return quicken(*args)
    except Exception:
        return False
