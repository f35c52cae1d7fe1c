"""Norms of one token in one call: against float64, and only where the module's own forward says the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from hgca_cli.hf.norm import MOST_ROWS, QuickNorm, quicken_norm

FAMILIES = (LlamaRMSNorm, Qwen3RMSNorm, Gemma2RMSNorm)


def norm_of(family: type[nn.Module], width: int, rng: torch.Generator, eps: float = 1e-5) -> nn.Module:
    module = family(width, eps=eps)
    with torch.no_grad():
        module.weight.copy_(torch.randn(width, generator=rng))
    return module


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("width", [1, 15, 64, 577])
@pytest.mark.parametrize("rows", [(1, 1), (1, 1, 9), (2, MOST_ROWS // 2)])
def test_matches_float64(family: type[nn.Module], width: int, rows: tuple[int, ...], rng: torch.Generator) -> None:
    module = norm_of(family, width, rng)
    weight = module.weight.detach().double() + (1.0 if family is Gemma2RMSNorm else 0.0)
    assert quicken_norm(module) and isinstance(module, QuickNorm) and isinstance(module, family)
    for size in (1e-3, 1.0, 50.0):
        x = size * torch.randn(*rows, width, generator=rng)
        exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
        with torch.inference_mode():
            assert module.scale.serves(module.weight, x)
            got = module(x)
        assert got.shape == x.shape and (got.double() - exact).norm() <= 1e-6 * exact.norm()


def test_eps_counts(rng: torch.Generator) -> None:
    small, large = norm_of(LlamaRMSNorm, 32, rng, 1e-6), norm_of(LlamaRMSNorm, 32, rng, 1.0)
    x = 0.01 * torch.randn(1, 32, generator=rng)
    for module in (small, large):
        want = module(x).detach()
        assert quicken_norm(module)
        with torch.inference_mode():
            assert torch.allclose(module(x), want, rtol=1e-5, atol=0)


class Centred(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states - hidden_states.mean(-1, keepdim=True))


class Clamped(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states).clamp(-1.0, 1.0)


class WithGate(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(hidden_states if gate is None else hidden_states * gate)


@pytest.mark.parametrize("family", [Centred, Clamped, WithGate])
def test_others_are_left_alone(family: type[nn.Module], rng: torch.Generator) -> None:
    module = norm_of(family, 32, rng)
    assert not quicken_norm(module) and type(module) is family
    assert not quicken_norm(nn.LayerNorm(8)) and not quicken_norm(LlamaRMSNorm(8).bfloat16())


@torch.inference_mode()
def test_what_is_not_served_is_the_modules_own(rng: torch.Generator) -> None:
    module = norm_of(LlamaRMSNorm, 16, rng)
    plain = LlamaRMSNorm(16, eps=1e-5)
    plain.load_state_dict(module.state_dict())
    assert quicken_norm(module) and not quicken_norm(module)  # once
    for x in (
        torch.randn(1, MOST_ROWS + 1, 16, generator=rng),  # a prompt
        torch.randn(1, 16, 2, generator=rng).transpose(1, 2),
        torch.randn(1, 1, 16, generator=rng).bfloat16(),
    ):
        assert not module.scale.serves(module.weight, x)
        assert torch.equal(module(x), plain(x))
    module.weight = nn.Parameter(torch.full((16,), 2.0))  # another weight by now
    one = torch.randn(1, 1, 16, generator=rng)
    assert torch.allclose(module(one), 2.0 * one * (one.square().mean() + 1e-5).rsqrt())


def test_gradients_are_the_modules_own(rng: torch.Generator) -> None:
    module = norm_of(LlamaRMSNorm, 16, rng)
    assert quicken_norm(module)
    module(torch.randn(1, 1, 16, generator=rng)).sum().backward()
    assert module.weight.grad is not None
