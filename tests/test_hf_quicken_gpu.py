"""Norms and rotations of a few tokens in one kernel each, held to the module's own: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, Gemma2Config, LlamaConfig, Qwen3Config
from transformers.models.cohere import modeling_cohere
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.glm import modeling_glm
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2 import modeling_olmo2
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

import hgca_cli.hf.quicken_gpu as quickening
from hgca_cli.hf.foresight import FIRST, Foresight
from hgca_cli.hf.load import forward
from hgca_cli.hf.norm import QuickNorm
from hgca_cli.hf.norm_gpu import MOST_TOKENS, QuickNormGpu, quicken_norm_gpu
from hgca_cli.hf.quicken_gpu import Quickened, quicken_gpu, unquicken_gpu
from hgca_cli.hf.rotary import NAME, Rotation, quicken_rotary, unquicken_rotary
from hgca_cli.hf.trial import put_before, take_away
from tests.test_hf_families import SMALL
from tests.test_hf_norm import Centred, Clamped, WithGate, norm_of

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None
DEVICE = torch.device("cpu" if INTERPRETED else "cuda", None if INTERPRETED else 0)
LONGEST = 7 if INTERPRETED else MOST_TOKENS  # an interpreter takes a while
NORMS = (LlamaRMSNorm, Qwen3RMSNorm, Gemma2RMSNorm, Olmo2RMSNorm)
FAMILIES = (modeling_llama, modeling_qwen3, modeling_gemma2, modeling_olmo2)
OTHERS = (modeling_cohere, modeling_glm, modeling_gpt_oss)  # pairs beside each other, half of a head, each angle once
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**SMALL | {"num_hidden_layers": 4}, head_dim=16),
    "qwen3": lambda: Qwen3Config(**SMALL | {"num_hidden_layers": 4}, head_dim=16),
    "gemma2": lambda: Gemma2Config(**SMALL | {"num_hidden_layers": 4}, head_dim=16),
}


def on_device(test: Any) -> Any:
    """A test that runs kernels."""
    return test if INTERPRETED else pytest.mark.gpu(test)


dtypes = pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float16,
        pytest.param(torch.bfloat16, marks=pytest.mark.skipif(INTERPRETED, reason="it cuts off where a GPU rounds")),
    ],
)


@pytest.fixture(autouse=True)
def _families_as_before() -> Iterator[None]:
    yield
    for family in (*FAMILIES, *OTHERS):
        unquicken_rotary(family)


def norms(family: Any, width: int, dtype: torch.dtype, rng: torch.Generator) -> tuple[Any, Any]:
    """One, and another that stays as it is."""
    own = norm_of(family, width, rng, 1e-6).to(DEVICE, dtype).requires_grad_(False)
    return copy.deepcopy(own), own


@on_device
@pytest.mark.parametrize("family", NORMS)
@pytest.mark.parametrize("width", [48, 128, 576, 3072])
@dtypes
@torch.inference_mode()
def test_norms_are_the_modules_own(family: Any, width: int, dtype: torch.dtype, rng: torch.Generator) -> None:
    module, own = norms(family, width, dtype, rng)
    with torch.inference_mode(False):
        assert quicken_norm_gpu(module) and isinstance(module, QuickNormGpu) and isinstance(module, family)
        assert not quicken_norm_gpu(module), "once"
    for rows in ((1, 1), (3,), (5, 1, 4), (1, LONGEST)):
        for size in (1e-3, 1.0, 50.0):
            x = (size * torch.randn(*rows, width, generator=rng)).to(DEVICE, dtype)
            assert module.at.serves(module.weight, x)
            got, wanted = module(x), own(x)
            assert got.shape == wanted.shape and got.dtype is dtype
            # sums are in another order: the last digit of a float, which once in a while is that of 16 bits, and again
            # of its product
            off, last = (got.float() - wanted.float()).abs(), torch.finfo(dtype).eps * wanted.float().abs()
            assert bool((off <= (8 if dtype is torch.float32 else 2) * last + 1e-7).all())
            if dtype is not torch.float32:
                assert int((off > 0).sum()) <= max(2, off.numel() // 100)


@on_device
@pytest.mark.parametrize(
    ("family", "shift", "steps"), [(LlamaRMSNorm, 0.0, True), (Gemma2RMSNorm, 1.0, False), (Olmo2RMSNorm, 0.0, False)]
)
def test_where_a_norm_rounds_is_found_before_it_is_trained(family: Any, shift: float, steps: bool) -> None:
    module = family(64).to(DEVICE, torch.float16)
    before = module.weight.clone()
    assert quicken_norm_gpu(module)
    assert (module.at._shift, module.at._steps) == (shift, steps) and torch.equal(module.weight, before)


@on_device
@pytest.mark.parametrize("family", [Centred, Clamped, WithGate])
def test_other_norms_are_left_alone(family: Any, rng: torch.Generator) -> None:
    module, _ = norms(family, 64, torch.float16, rng)
    assert not quicken_norm_gpu(module) and type(module) is family
    assert not quicken_norm_gpu(nn.LayerNorm(8, device=DEVICE))
    assert not quicken_norm_gpu(LlamaRMSNorm(8).to(DEVICE, torch.float64))


@on_device
def test_what_a_norm_does_not_serve_is_the_modules_own(rng: torch.Generator) -> None:
    module, own = norms(LlamaRMSNorm, 64, torch.float16, rng)
    assert quicken_norm_gpu(module)
    one = torch.randn(1, 1, 64, generator=rng).to(DEVICE, torch.float16)
    assert not module.at.serves(module.weight, one), "gradients"
    with torch.inference_mode():
        for x in (
            torch.randn(1, MOST_TOKENS + 1, 64, generator=rng),  # a prompt
            torch.randn(1, 64, 2, generator=rng).transpose(1, 2),
            torch.randn(1, 0, 64),
        ):
            x = x.to(DEVICE, torch.float16)
            assert not module.at.serves(module.weight, x) and torch.equal(module(x), own(x))
        for x in (one.float(), one.to("meta"), one[0, 0]):
            assert not module.at.serves(module.weight, x)
        module.weight = nn.Parameter(torch.full_like(own.weight, 2.0))  # another weight by now
        own.weight.fill_(2.0)
        assert not module.at.serves(module.weight, one) and torch.equal(module(one), own(one))


def turned(batch: int, tokens: int, dim: int, dtype: torch.dtype, rng: torch.Generator, *, alike: bool) -> list[Tensor]:
    """Queries and keys as attention has them, and angles; alike: the same for all of a batch."""
    q, k = (torch.randn(batch, tokens, heads, dim, generator=rng).to(DEVICE, dtype) for heads in (6, 2))
    angle = torch.randn(1 if alike else batch, tokens, dim // 2, generator=rng)
    angle = torch.cat([angle, angle], dim=-1)
    return [q.transpose(1, 2), k.transpose(1, 2), *(one.to(DEVICE, dtype) for one in (angle.cos(), angle.sin()))]


@on_device
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dim", [64, 48])
@dtypes
def test_rotations_are_the_familys_to_the_last_bit(
    family: Any, dim: int, dtype: torch.dtype, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hgca_cli.hf import token_triton

    assert quicken_rotary(family, DEVICE, dtype)
    rotation = getattr(family, NAME)
    assert isinstance(rotation, Rotation)
    calls, rotate = [], token_triton.rotate
    monkeypatch.setattr(token_triton, "rotate", lambda *args: calls.append(1) or rotate(*args))
    with torch.inference_mode():
        for batch, tokens, alike in ((1, 1, True), (4, 1, False), (2, 5, False), (3, 2, True), (1, LONGEST, True)):
            q, k, cos, sin = turned(batch, tokens, dim, dtype, rng, alike=alike)
            parts = torch.cat([q, k, k], dim=1)[:, :8].split([6, 2], dim=1)  # strides with gaps
            for args in ((q, k, cos, sin), (q, q[:, :1], cos, sin), (*parts, cos, sin), (q.contiguous(), k, cos, sin)):
                before = len(calls)
                for got, wanted in zip(rotation(*args), rotation.original(*args), strict=True):
                    assert torch.equal(got, wanted) and got.dtype is dtype
                    assert got.is_contiguous() or got.stride() == wanted.stride()
                assert len(calls) == before + 1


@on_device
def test_what_a_rotation_does_not_serve_is_the_familys(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    from hgca_cli.hf import token_triton

    assert quicken_rotary(modeling_llama, DEVICE, torch.float16)
    monkeypatch.setattr(token_triton, "rotate", lambda *_: pytest.fail("not to be served"))
    rotation = modeling_llama.apply_rotary_pos_emb
    q, k, cos, sin = turned(1, 1, 64, torch.float16, rng, alike=True)
    many = turned(1, MOST_TOKENS + 1, 64, torch.float16, rng, alike=True)
    rotation(q, k, cos, sin)  # gradients may be wanted
    with torch.inference_mode():
        every_other = torch.randn(1, 6, 1, 128, generator=rng).to(DEVICE, torch.float16)[..., ::2]
        for args in (many, [every_other, k, cos, sin], [q.float(), k, cos, sin], [q, k, cos.float(), sin.float()]):
            for got, wanted in zip(rotation(*args), rotation.original(*args), strict=True):
                assert torch.equal(got, wanted)
        assert torch.equal(rotation(q, k, cos, sin, unsqueeze_dim=1)[0], rotation.original(q, k, cos, sin)[0])
        sideways = [one.transpose(1, 2) for one in (q, k)]
        for got, wanted in zip(rotation(*sideways, cos, sin, 2), rotation.original(q, k, cos, sin), strict=True):
            assert torch.equal(got.transpose(1, 2), wanted)
        if not INTERPRETED:
            args = [one.cpu() for one in (q, k, cos, sin)]
            assert torch.equal(rotation(*args)[0], rotation.original(*args)[0])
        with pytest.raises((RuntimeError, TypeError)):
            rotation(q, k, cos[..., :32], sin[..., :32])  # as the family's own raises


@on_device
@pytest.mark.parametrize("family", OTHERS)
def test_rotations_of_another_kind_are_left_alone(family: Any) -> None:
    own = getattr(family, NAME)
    assert not quicken_rotary(family, DEVICE, torch.float16) and getattr(family, NAME) is own


@on_device
def test_a_familys_function_is_replaced_once_and_given_back() -> None:
    own = modeling_llama.apply_rotary_pos_emb
    assert quicken_rotary(modeling_llama, DEVICE, torch.float16)
    rotation: Any = modeling_llama.apply_rotary_pos_emb
    assert quicken_rotary(modeling_llama, DEVICE, torch.float32) and modeling_llama.apply_rotary_pos_emb is rotation
    assert rotation.original is own and {key[1] for key in rotation.steps} == {torch.float16, torch.float32}
    assert inspect.signature(rotation) == inspect.signature(own) and rotation.__name__ == NAME
    unquicken_rotary(modeling_llama)
    unquicken_rotary(modeling_llama)
    assert modeling_llama.apply_rotary_pos_emb is own and not rotation.steps


def test_a_rotation_that_was_tried_nowhere_is_the_function(rng: torch.Generator) -> None:
    rotation = Rotation(modeling_llama.apply_rotary_pos_emb)
    q, k, cos, sin = torch.randn(1, 2, 1, 8, generator=rng), *torch.randn(3, 1, 1, 8, generator=rng)
    with torch.inference_mode():
        for got, wanted in zip(rotation(q, k[None], cos, sin), rotation.original(q, k[None], cos, sin), strict=True):
            assert torch.equal(got, wanted)


def test_only_what_was_put_before_last_is_taken_away() -> None:
    module = LlamaRMSNorm(8)
    put_before(module, QuickNormGpu)
    assert isinstance(module, QuickNormGpu) and not take_away(module, QuickNorm)
    put_before(module, QuickNorm)
    assert not take_away(module, QuickNormGpu) and take_away(module, QuickNorm)
    assert take_away(module, QuickNormGpu) and type(module) is LlamaRMSNorm and not take_away(module, QuickNormGpu)


def test_nothing_is_done_on_the_cpu() -> None:
    own = modeling_llama.apply_rotary_pos_emb
    model = AutoModelForCausalLM.from_config(MODELS["llama"]())
    assert quicken_gpu(model) == Quickened() == quicken_gpu(nn.Module())
    assert not any(isinstance(one, QuickNormGpu) for one in model.modules())
    assert modeling_llama.apply_rotary_pos_emb is own
    unquicken_gpu(model)


@on_device
@pytest.mark.parametrize("family", MODELS)
def test_a_model_says_what_it_said(family: str, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    from hgca_cli.hf import token_triton

    monkeypatch.setattr(quickening, "works_on", lambda _: True)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(MODELS[family](), attn_implementation="eager").eval().to(DEVICE)
    kinds = [type(one) for one in model.modules()]
    ids = torch.randint(128, (2, 9), generator=rng).to(DEVICE)

    def logits() -> list[Tensor]:
        with torch.inference_mode():
            cache = DynamicCache(config=model.config)
            return [forward(model, one, cache).logits for one in (ids, ids[:, :1])]

    wanted = logits()
    done = quicken_gpu(model)
    assert done.norms == sum("RMSNorm" in kind.__name__ for kind in kinds) > 8
    assert done.rotations == (f"transformers.models.{family}.modeling_{family}",)
    assert quicken_gpu(model) == done, "as often as one likes"
    calls = {"rms_norm": 0, "rotate": 0}

    def counted(name: str, kernel: Any) -> Any:
        def run(*args: Any) -> Any:
            calls[name] += 1
            return kernel(*args)

        return run

    for name in calls:
        monkeypatch.setattr(token_triton, name, counted(name, getattr(token_triton, name)))
    for a, b in zip(logits(), wanted, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    assert calls == {"rms_norm": 2 * done.norms, "rotate": 2 * 4}, "each, by both passes"
    foresight = Foresight.of(model, 4)
    if family != "gemma2":  # whose layers norm what attention gives
        assert foresight is not None and foresight.indexes == list(range(FIRST, 4))
    unquicken_gpu(model)
    assert [type(one) for one in model.modules()] == kinds
    assert all(torch.equal(a, b) for a, b in zip(logits(), wanted, strict=True))


@pytest.mark.gpu
def test_kernels_are_captured(rng: torch.Generator) -> None:
    module, own = norms(LlamaRMSNorm, 576, torch.bfloat16, rng)
    assert quicken_norm_gpu(module) and quicken_rotary(modeling_llama, DEVICE, torch.bfloat16)
    rotation: Any = modeling_llama.apply_rotary_pos_emb
    x = torch.zeros(1, 1, 576, dtype=torch.bfloat16, device=DEVICE)
    _, k, cos, sin = turned(1, 1, 64, torch.bfloat16, rng, alike=True)

    def step(norm: Any, rotate: Any) -> Tensor:
        given: Tensor = rotate(norm(x).view(1, 1, 9, 64).transpose(1, 2), k, cos, sin)[0]
        return given

    with torch.inference_mode():
        step(module, rotation)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            got = step(module, rotation)
        for _ in range(2):
            x.copy_(torch.randn(1, 1, 576, generator=rng))
            graph.replay()
            wanted = step(own, rotation.original)
            assert (got.float() - wanted.float()).norm() <= 1e-2 * wanted.float().norm()
            assert (got != wanted).float().mean() <= 0.02
