"""Gated feed-forward blocks in one call: against float64, and only where the module's own forward says the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hgca_cli.hf.gated import Block, Gated
from hgca_cli.hf.quicken import quicken
from tests.test_hf_linear import on_grid

SIZES = ((8, 5, 8), (33, 70, 9), (64, 96, 40), (96, 160, 33))  # inputs, hidden, outputs


class Mlp(nn.Module):
    def __init__(self, inputs: int = 64, hidden: int = 96, outputs: int = 64, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(inputs, hidden, bias=bias)
        self.up_proj = nn.Linear(inputs, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, outputs, bias=bias)
        self.act_fn: nn.Module = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Clamped(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-1.5, 1.5)


class Scaled(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.ones(64))


def exact(module: Mlp, x: Tensor) -> Tensor:
    """By float64."""
    twin = Mlp(
        x.shape[-1], module.up_proj.out_features, module.down_proj.out_features, bias=module.up_proj.bias is not None
    )
    twin.load_state_dict(module.state_dict())
    return twin.double()(x.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
@torch.no_grad()
def test_matches_float64(
    dtype: torch.dtype, bias: bool, sizes: tuple[int, int, int], isa: str, rng: torch.Generator
) -> None:
    torch.manual_seed(1)
    module = Mlp(*sizes, bias=bias).to(dtype)
    quicken(module)
    assert isinstance(module, Gated) and isinstance(module, Mlp)
    for size in (0.1, 1.0, 20.0):
        x = (size * torch.randn(1, 1, sizes[0], generator=rng)).to(dtype)
        want = exact(module, x)
        bound = 1e-6 * max(1.0, size / 4) if dtype == torch.float32 else torch.finfo(dtype).eps / 2
        assert float((module(x).double() - want).norm() / want.norm()) < bound


@pytest.mark.parametrize("bits", [(4, 4, 4), (8, 4, 8), (0, 4, 0), (4, 0, 8)])  # 0: floats
@torch.no_grad()
def test_grids_match_float64(bits: tuple[int, int, int], isa: str, rng: torch.Generator) -> None:
    module = Mlp(96, 1056, 40)
    for layer, kind in zip((module.gate_proj, module.up_proj, module.down_proj), bits, strict=True):
        if kind:
            layer.weight.copy_(on_grid(kind, *layer.weight.shape, rng) / 64)
    quicken(module)
    assert isinstance(module, Gated)
    for _ in range(5):
        x = torch.randn(96, generator=rng)
        want = exact(module, x)
        assert float((module(x).double() - want).norm() / want.norm()) < 5e-6


@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
@torch.no_grad()
def test_what_is_not_finite_stays_so(strange: float, isa: str) -> None:
    module = Mlp()
    quicken(module)
    x = torch.ones(64)
    x[3] = strange
    assert not module(x).isfinite().any()


@torch.no_grad()
def test_what_is_another_function_is_left_alone() -> None:
    other = Mlp()
    other.act_fn = nn.GELU()
    for module in (other, Clamped(), Scaled()):
        quicken(module)
        assert not isinstance(module, Gated)
        assert module.gate_proj.siblings is not None  # still computed together


def test_anything_but_one_vector_is_the_modules_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Mlp()
    plain = Mlp()
    plain.load_state_dict(module.state_dict())
    quicken(module)
    x = torch.randn(1, 64)
    with torch.no_grad():
        assert torch.allclose(module(x), plain(x), atol=1e-6)
    monkeypatch.setattr(Block, "product", lambda *_: pytest.fail("not its case"))
    assert module(x).requires_grad
    with torch.no_grad():
        assert torch.allclose(module(torch.ones(3, 64)), plain(torch.ones(3, 64)), atol=1e-6)
        heard: list[object] = []
        handle = module.up_proj.register_forward_hook(lambda *_: heard.append(1))
        module(x)
        assert heard
        handle.remove()
        module.up_proj.weight = nn.Parameter(torch.ones(96, 64))
        plain.up_proj.weight = module.up_proj.weight
        assert torch.allclose(module(x), plain(x), atol=1e-5)
        module.down_proj = plain.down_proj = nn.Linear(96, 7)
        assert torch.allclose(module(x), plain(x), atol=1e-5)
