"""Layers that share a vector: whatever is asked of them and in which order, each gives its own product."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread

import pytest
import torch
from torch import Tensor, nn

from hgca_cli import native
from hgca_cli.hf.linear import QuickLinear, Weights
from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.siblings import Siblings

INPUTS = 64


class Attention(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32, *, bias: bool = True) -> None:
        super().__init__()
        self.q_proj = nn.Linear(INPUTS, 48, bias=bias, dtype=dtype)
        self.k_proj = nn.Linear(INPUTS, 17, bias=bias, dtype=dtype)
        self.v_proj = nn.Linear(INPUTS, 16, bias=False, dtype=dtype)


@pytest.fixture
def layers(rng: torch.Generator) -> Iterator[list[QuickLinear]]:
    torch.manual_seed(3)
    module = Attention()
    quicken(module)
    found = [module.q_proj, module.k_proj, module.v_proj]
    assert all(isinstance(layer, QuickLinear) and layer.siblings is not None for layer in found)
    with torch.inference_mode():
        yield found  # type: ignore[misc]


def right(layer: QuickLinear, vector: Tensor, got: Tensor) -> bool:
    return torch.allclose(got, nn.functional.linear(vector, layer.weight, layer.bias), atol=1e-5)


def vector(rng: torch.Generator) -> Tensor:
    return torch.randn(1, 1, INPUTS, generator=rng)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_is_its_own_product(dtype: torch.dtype, isa: str, rng: torch.Generator) -> None:
    module = Attention(dtype)
    quicken(module)
    x = vector(rng).to(dtype)
    with torch.inference_mode():
        for layer in (module.q_proj, module.k_proj, module.v_proj):
            got = layer(x)
            assert got.shape == (1, 1, layer.out_features) and got.is_contiguous()
            assert torch.equal(got, layer.quick.product(x))


def test_the_others_take_what_the_first_computed(
    layers: list[QuickLinear], rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone: list[object] = []
    monkeypatch.setattr(Weights, "product", lambda self, x: alone.append(self))
    x = vector(rng)
    assert all(right(layer, x, layer(x)) for layer in layers)
    assert not alone


def test_what_changed_in_between_is_computed_anew(layers: list[QuickLinear], rng: torch.Generator) -> None:
    query, key, value = layers
    x = vector(rng)
    query(x)
    x.mul_(2)  # inference tensors count no versions: only the bytes tell
    assert right(key, x, key(x))
    other = x.clone()
    assert right(value, other, value(other))
    x[0, 0, 5] = -0.0
    assert right(key, x, key(x))


def test_a_result_is_given_once(layers: list[QuickLinear], rng: torch.Generator) -> None:
    query, key, _ = layers
    x = vector(rng)
    query(x)
    key(x).zero_()
    assert right(key, x, key(x))
    query(x).zero_()
    assert right(query, x, query(x)) and right(key, x, key(x))


def test_another_shape_and_several_vectors(layers: list[QuickLinear], rng: torch.Generator) -> None:
    query, key, _ = layers
    x = vector(rng)
    query(x)
    assert key(x.flatten()).shape == (17,)
    several = torch.randn(1, 3, INPUTS, generator=rng)
    query(several)
    assert right(key, several, key(several))


def test_with_gradients_each_computes_itself(layers: list[QuickLinear], rng: torch.Generator) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.randn(1, 1, INPUTS)
        assert all(layer(x).requires_grad for layer in layers)


def test_changed_weights_are_torchs(layers: list[QuickLinear], rng: torch.Generator) -> None:
    query, key, _ = layers
    x = vector(rng)
    query(x)
    key.weight = nn.Parameter(torch.ones(17, INPUTS))
    assert right(key, x, key(x))


def test_results_left_behind_end_it(layers: list[QuickLinear], rng: torch.Generator) -> None:
    query, key, value = layers
    for _ in range(Siblings.PATIENCE + 2):
        x = vector(rng)
        assert right(query, x, query(x))
    assert query.siblings is not None and query.siblings._left_behind == Siblings.PATIENCE
    assert right(key, x, key(x)) and right(value, x, value(x))


def test_threads_do_not_mix(layers: list[QuickLinear]) -> None:
    wrong: list[Tensor] = []

    def work(seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            for _ in range(200):
                x = vector(rng)
                wrong.extend(x for layer in layers if not right(layer, x, layer(x)))

    threads = [Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_layers_of_different_inputs_are_not_siblings() -> None:
    module = Attention()
    module.k_proj = nn.Linear(INPUTS + 1, 4)
    quicken(module)
    assert all(layer.siblings is None for layer in (module.q_proj, module.k_proj, module.v_proj))


def test_the_library_refuses_what_does_not_fit(rng: torch.Generator) -> None:
    weights = [Weights(torch.randn(4, inputs)) for inputs in (8, 9)]
    described = native.ffi.new("hgca_weights[5]")
    described[0], described[1] = weights[0].described, weights[1].described
    x, out = torch.randn(9), torch.empty(64)
    for count in (0, 2, 5):
        assert native.lib.hgca_linear(described, count, x.data_ptr(), out.data_ptr()) == native.lib.HGCA_BAD_ARGUMENT
