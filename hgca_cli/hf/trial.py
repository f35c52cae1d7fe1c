"""Modules of a loaded model whose work the C library does better: found by trying, and then put before their own class."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def gives_the_same(
    module: Callable[[Tensor], Any], product: Callable[[Tensor], Tensor], inputs: Iterable[Tensor], tolerance: float
) -> bool:
    """Whether `product` is what the module's own forward gives for all these inputs.

    tolerance  of the norm of a result; a module that refuses an input, or gives one that is not finite, differs
    """
    with torch.inference_mode():
        for x in inputs:
            try:
                want = module(x)
            except (RuntimeError, TypeError, ValueError):
                return False
            got = product(x)
            if not isinstance(want, Tensor) or want.shape != got.shape or want.dtype is not got.dtype:
                return False
            want = want.float()
            if not bool(want.isfinite().all()):
                return False
            if not float((got.float() - want).norm()) <= tolerance * float(want.norm()):
                return False
    return True


def put_before(module: nn.Module, kind: type[nn.Module]) -> None:
    """Make the module an instance of a class of `kind` and its own: `kind` is asked first, and may hand on."""
    of = type(module)
    module.__class__ = type(f"Quick{of.__name__}", (kind, of), {"__module__": of.__module__})


def take_away(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Undo `put_before`, if this is what was put before the module's class last; returns whether it was."""
    if (bases := type(module).__bases__)[0] is not kind:
        return False
    module.__class__ = bases[1]
    return True
