"""The rotation of queries and keys of a few tokens on a GPU in one kernel.

Attention calls its family's `apply_rotary_pos_emb` by name: ten kernels of a few numbers each. Something callable takes the function's
place in the family's module, for all models of the family; so what it gives is, by trial, what the function gives to the last bit, and
whatever was not tried, or is not of few tokens, is the function's.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hgca_cli.hf.norm_gpu import MOST_TOKENS
from hgca_cli.hf.trial import gives_the_same

NAME = "apply_rotary_pos_emb"
ANY_DIM = 64  # to try with


class Rotation:
    """A family's function, and in which cases a kernel does the same.

    original  the function
    steps     by device, dtype of queries and keys, and dtype of angles: whether products are rounded before they are added up
    """

    def __init__(self, original: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original, updated=())
        self.original = original
        self.steps: dict[tuple[torch.device, torch.dtype, torch.dtype], bool] = {}

    def __call__(self, *args: Any, **named: Any) -> Any:
        """As the function."""
        if len(args) == 4 and not named and _are_few(*args):
            q, k, cos, sin = args
            steps = self.steps.get((q.device, q.dtype, cos.dtype))
            if steps is not None:
                from hgca_cli.hf import token_triton

                return token_triton.rotate(q, k, cos, sin, steps)
        return self.original(*args, **named)

    def try_on(self, device: torch.device, dtype: torch.dtype, dim: int = ANY_DIM) -> bool:
        """Find out for queries and keys of this dtype; returns whether a kernel does anything there. Triton must work."""
        from hgca_cli.hf import token_triton

        for turns in {dtype, torch.float32}:
            if (device, dtype, turns) in self.steps:
                continue
            for steps in (True, False):
                kernel = functools.partial(token_triton.rotate, steps=steps)
                if _is_the_same(self.original, kernel, device, dtype, turns, dim):
                    self.steps[device, dtype, turns] = steps
                    break
        return any(tried[:2] == (device, dtype) for tried in self.steps)


def _are_few(q: Any, k: Any, cos: Any, sin: Any) -> bool:
    """Whether a kernel could take these: q, k [batch, heads, tokens, dim], cos, sin [batch or 1, tokens, dim]."""
    if not (type(q) is type(k) is type(cos) is type(sin) is Tensor) or q.dim() != 4 or k.dim() != 4 or cos.dim() != 3:
        return False
    batch, _, tokens, dim = q.shape
    return (
        0 < batch * tokens <= MOST_TOKENS
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and k.shape == (batch, k.size(1), tokens, dim)
        and cos.shape == sin.shape
        and cos.shape in ((batch, tokens, dim), (1, tokens, dim))
        and dim % 2 == 0 < q.numel()
        and k.numel() > 0
        and q.dtype is k.dtype
        and cos.dtype is sin.dtype
        and q.device == k.device == cos.device == sin.device
        and q.stride(3) == k.stride(3) == cos.stride(2) == 1
        and cos.stride() == sin.stride()
    )


def _is_the_same(
    original: Callable[..., Any],
    kernel: Callable[..., tuple[Tensor, Tensor]],
    device: torch.device,
    dtype: torch.dtype,
    turns: torch.dtype,
    dim: int,
) -> bool:
    """To the last bit, for random numbers; angles are not those of an angle twice, as a kernel reads each half."""
    batch, tokens, heads, kv_heads = 2, 3, 5, 2
    draw = torch.Generator().manual_seed(2)
    inputs = [torch.randn(tokens, batch, heads + kv_heads + 2, dim, generator=draw).to(device) for _ in "abc"]

    def of(rotate: Callable[..., Any], numbers: Tensor) -> Tensor:
        q, k, cos, sin = numbers.transpose(0, 1).split([heads, kv_heads, 1, 1], dim=2)
        q, k = (one.to(dtype).transpose(1, 2) for one in (q, k))
        try:
            given = rotate(q, k, *(one.to(turns).squeeze(2) for one in (cos, sin)))
            q_turned, k_turned = given
        except (AttributeError, IndexError) as error:
            raise ValueError(str(error)) from error  # a function that takes something else
        if q_turned.shape != q.shape or k_turned.shape != k.shape or not q_turned.dtype == k_turned.dtype == dtype:
            raise ValueError("something else than queries and keys")
        return torch.cat([q_turned, k_turned], dim=1)

    own, ours = functools.partial(of, original), functools.partial(of, kernel)
    return gives_the_same(own, ours, inputs, tolerance=0.0)


def families(model: nn.Module) -> dict[str, ModuleType]:
    """Modules, by name, of a model's parts that have such a function."""
    named = {name: sys.modules.get(name) for name in sorted({type(one).__module__ for one in model.modules()})}
    return {name: one for name, one in named.items() if one is not None and callable(getattr(one, NAME, None))}


def quicken_rotary(family: ModuleType, device: torch.device, dtype: torch.dtype, dim: int = ANY_DIM) -> bool:
    """Put a Rotation in the place of a family's function, if a kernel does the same there; returns whether one does, now or before."""
    there = getattr(family, NAME)
    rotation = there if isinstance(there, Rotation) else Rotation(there)
    if not rotation.try_on(device, dtype, dim):
        return False
    setattr(family, NAME, rotation)
    return True


def unquicken_rotary(family: ModuleType) -> None:
    """The family's own function is in its place again; who took a Rotation from there has the function's results, too."""
    if isinstance(rotation := getattr(family, NAME), Rotation):
        setattr(family, NAME, rotation.original)
        rotation.steps.clear()
