"""Linear layers on the C library: the product against float64, kinds of weights found exactly, models unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hgca_cli import native
from hgca_cli.hf.grid import BLOCK, find_grid, find_halves
from hgca_cli.hf.linear import FEW, QuickLinear, Weights, multiply
from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.siblings import join
from tests.tiny_engine import tiny_model

UNITS = 63 * (128**2 + 128 + 1)  # of the largest number of a block
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def on_grid(bits: int, outputs: int, inputs: int, rng: torch.Generator) -> Tensor:
    """Weights as a GGUF file of Q4_1 or Q8_0 gives them: fp16 scales, and every block uses its whole range."""
    low, high = (0, 15) if bits == 4 else (-127, 127)
    numbers = torch.randint(low, high + 1, (outputs, inputs // BLOCK, BLOCK), generator=rng).float()
    numbers[..., 3], numbers[..., 20] = low, high
    scale = (torch.rand(outputs, inputs // BLOCK, 1, generator=rng) + 0.1).half().float()
    smallest = torch.randn(scale.shape, generator=rng).half().float() if bits == 4 else 0.0
    return (numbers * scale + smallest).flatten(1)


def product_errors(weight: Tensor, bias: Tensor | None, got: Tensor, vectors: Tensor) -> Tensor:
    want = vectors.double() @ weight.double().T + (0.0 if bias is None else bias.double())
    size = vectors.double().abs() @ weight.double().abs().T + 1.0
    return (got.double().view(want.shape) - want).abs() / size


def product_error(weight: Tensor, bias: Tensor | None, got: Tensor, vector: Tensor) -> float:
    return float(product_errors(weight, bias, got, vector.flatten()).max())


def rounded(vector: Tensor, units: int = UNITS) -> Tensor:
    """A vector as grids are multiplied with: 21 bits by blocks of 32; several: 16."""
    blocks = vector.unflatten(-1, (-1, BLOCK))
    top = blocks.abs().amax(-1, keepdim=True)
    return ((blocks * (units / top)).round().double() * (top / units).double()).flatten(-2)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("biased", [False, True])
def test_product_matches_float64(dtype: torch.dtype, biased: bool, isa: str, rng: torch.Generator) -> None:
    rounding = 1e-6 if dtype == torch.float32 else 1.01 * torch.finfo(dtype).eps / 2
    for outputs, inputs in ((1, 1), (3, 7), (4, 15), (5, 16), (9, 33), (64, 100), (257, 576)):
        weight = torch.randn(outputs, inputs + 3, generator=rng).to(dtype)[:, :inputs]
        bias = torch.randn(outputs, generator=rng).to(dtype) if biased else None
        vector = torch.randn(1, 1, inputs, generator=rng).to(dtype)
        got = Weights(weight, bias).product(vector)
        assert got.shape == (1, 1, outputs) and got.dtype == dtype
        assert product_error(weight, bias, got, vector) < rounding


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("blocks", [1, 2, 3, 17, 18])
@pytest.mark.parametrize("outputs", [1, 4, 6, 300])
def test_grid_is_found_and_multiplied(bits: int, blocks: int, outputs: int, isa: str, rng: torch.Generator) -> None:
    weight = on_grid(bits, outputs, blocks * BLOCK, rng)
    grid = find_grid(weight)
    assert grid is not None and grid.bits == bits
    assert grid.tiles.numel() == -(-outputs // 16) * blocks * 16 * (20 if bits == 4 else 34)
    bias, vector = torch.randn(outputs, generator=rng), torch.randn(blocks * BLOCK, generator=rng)
    got = Weights(weight, bias, grid).product(vector)
    assert product_error(weight, bias, got, vector) < 2e-6
    assert product_error(weight, bias, got, rounded(vector)) < 1e-6  # nothing else is rounded


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("outputs", "blocks"), [(1, 1), (16, 2), (40, 3), (300, 18)])
def test_several_vectors_of_a_grid(bits: int, outputs: int, blocks: int, isa: str, rng: torch.Generator) -> None:
    weight, bias = on_grid(bits, outputs, blocks * BLOCK, rng), torch.randn(outputs, generator=rng)
    quick = Weights(weight, bias, find_grid(weight))
    vectors = torch.randn(150, blocks * BLOCK, generator=rng)
    alone = None
    for count in (2, 3, 4, 9, 64, 65, 150):
        got = torch.full((1, count, outputs), float("nan"))
        multiply(quick._described, 1, vectors[:count], vectors.shape[1], got)
        assert product_errors(weight, bias, got, vectors[:count]).max() < 4e-5
        exact = rounded(vectors[:count], 127 * 257)  # two levels of 8 bits
        assert (
            product_errors(weight, bias, got, exact).max() < 1e-5
        )  # floats are, where scale * code and least nearly cancel
        alone = got[0, 0] if alone is None else alone
        assert torch.equal(got[0, 0], alone)  # whatever is beside it


def test_strange_vectors_beside_others(isa: str, rng: torch.Generator) -> None:
    weight = on_grid(4, 20, 96, rng)
    quick, vectors = Weights(weight, None, find_grid(weight)), torch.randn(6, 96, generator=rng)
    vectors[1, 40], vectors[2, 3], vectors[3] = float("nan"), -float("inf"), 0.0
    vectors[4, 32:64] *= 1e30
    vectors[5] = 1e-38
    got = torch.empty(6, 20)
    multiply(quick._described, 1, vectors, 96, got)
    assert not got[1:3].isfinite().any() and not got[3].any() and got[5].abs().max() < 1e-36
    for row in (0, 4):
        assert product_error(weight, None, got[row], rounded(vectors[row], 127 * 257)) < 1e-5


def test_several_layers_share_several_vectors(isa: str, rng: torch.Generator) -> None:
    layers = [QuickLinear(64, outputs, bias=outputs == 48) for outputs in (48, 16, 33)]
    for layer in layers:
        layer.weight.data = on_grid(4, layer.out_features, 64, rng)
        layer.quick, layer.siblings = Weights(layer.weight.data, layer.bias, find_grid(layer.weight.data)), None
    join(layers)
    vectors = torch.randn(2, 7, 64, generator=rng)
    with torch.inference_mode():
        for _ in range(3):
            for layer in layers:
                got = layer(vectors)
                assert got.shape == (2, 7, layer.out_features)
                flat = vectors.flatten(0, 1)
                assert product_errors(layer.weight, layer.bias, got.flatten(0, 1), flat).max() < 4e-5


def test_what_several_vectors_are_refused(rng: torch.Generator) -> None:
    weight, vectors = on_grid(8, 20, 64, rng), torch.randn(3, 64, generator=rng)
    floats, grid = Weights(weight), Weights(weight, None, find_grid(weight))
    halves = weight.half()
    assert floats.serves(weight, vectors) and not floats.serves(weight, vectors.repeat(11, 1))
    assert Weights(halves).serves(halves, vectors[0].half()) and not Weights(halves).serves(halves, vectors.half())
    assert grid.serves(weight, vectors) == (native.lib.hgca_most_vectors() >= 3)
    assert not grid.serves(weight, vectors.t()) and not grid.serves(weight, vectors[:0])
    for described, count in (
        (Weights(halves)._described, 3),
        (floats._described, 0),
        (grid._described, 0),
        (grid._described, -1),
    ):
        out = torch.empty(3, 20)
        status = native.lib.hgca_linear_several(described, 1, count, vectors.data_ptr(), out.data_ptr())
        assert status == native.lib.HGCA_BAD_ARGUMENT


@pytest.mark.parametrize("bits", [4, 8])
def test_strange_inputs_of_a_grid(bits: int, isa: str, rng: torch.Generator) -> None:
    weight = on_grid(bits, 20, 96, rng)
    quick = Weights(weight, None, find_grid(weight))
    assert torch.equal(quick.product(torch.zeros(96)), torch.zeros(20))
    for strange in (float("nan"), float("inf"), -float("inf")):
        vector = torch.randn(96, generator=rng)
        vector[40] = strange
        assert not quick.product(vector).isfinite().any()
    for size in (1e-30, 1e30):  # a block's scale is its own
        vector = torch.randn(96, generator=rng)
        vector[32:64] *= size
        assert product_error(weight / 40, None, quick.product(vector) / 40, rounded(vector)) < 1e-6
    assert quick.product(torch.full((96,), 1e-38)).abs().max() < 1e-36  # denormal numbers are zeros


def test_a_grid_that_is_not_exact_is_none(rng: torch.Generator) -> None:
    weight = on_grid(4, 8, 64, rng)
    assert find_grid(torch.randn(8, 64, generator=rng)) is None
    assert find_grid(torch.cat([weight, weight * (1 + 2**-12)])) is None  # smallest numbers that are no fp16
    for wrong in (weight[5, 40] * 1.0000002, float("nan"), float("inf")):
        changed = weight.clone()
        changed[5, 40] = wrong
        assert find_grid(changed) is None
    assert find_grid(weight[:, :40].contiguous()) is None  # no whole number of blocks
    assert find_grid(torch.zeros(4, 64)) is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_found_and_multiplied(dtype: torch.dtype, isa: str, rng: torch.Generator) -> None:
    weight = torch.randn(70, 90, generator=rng).to(dtype).float()
    halves = find_halves(weight)
    assert halves is not None and torch.equal(halves.float(), weight)
    vector = torch.randn(90, generator=rng)
    got = Weights(weight, None, halves).product(vector)
    assert got.dtype == torch.float32 and product_error(weight, None, got, vector) < 1e-6
    assert find_halves(torch.randn(70, 90, generator=rng)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (70, 90), (5, 16), (300, 257)])
def test_rows_are_read_once_for_several_vectors(
    outputs: int, inputs: int, dtype: torch.dtype, isa: str, rng: torch.Generator
) -> None:
    held = torch.randn(outputs, inputs, generator=rng).to(dtype)
    weight, bias = held.float(), torch.randn(outputs, generator=rng)
    quick = Weights(weight, bias, held)
    vectors = torch.randn(FEW, inputs, generator=rng)
    whole = quick.product(vectors)
    assert product_errors(weight, bias, whole, vectors).max() < 2e-6
    for count in (2, 3, 5, 8):  # who else is multiplied makes no difference
        assert torch.equal(quick.product(vectors[:count]), whole[:count])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_give_the_same(threads: int, rng: torch.Generator) -> None:
    before, weight, vector = native.threads(), torch.randn(3000, 576, generator=rng), torch.randn(576, generator=rng)
    want = Weights(weight).product(vector)
    try:
        native.set_threads(threads)
        assert all(torch.equal(Weights(weight).product(vector), want) for _ in range(20))
    finally:
        native.set_threads(before)


def test_a_quickened_model_gives_its_logits() -> None:
    model = tiny_model()
    ids = torch.tensor([[3]])
    with torch.inference_mode():
        want, several = model(ids).logits, model(torch.tensor([[3, 4, 5]])).logits
        assert quicken(model) >= 0
        assert any(type(module) is QuickLinear for module in model.modules())
        assert torch.allclose(model(ids).logits, want, atol=1e-5)
        assert torch.allclose(model(torch.tensor([[3, 4, 5]])).logits, several, atol=1e-5)


def test_other_weights_or_inputs_are_torchs(rng: torch.Generator) -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    quicken(model)
    vector = torch.randn(1, 8, generator=rng)
    assert model(vector).requires_grad  # training goes on as before
    with torch.no_grad():
        model[0].weight = nn.Parameter(torch.ones(4, 8))
        assert torch.allclose(model(vector), vector.sum() + model[0].bias)
        model.double()
        assert model(vector.double()).dtype == torch.float64
        with pytest.raises(RuntimeError):
            model(torch.ones(8, 1, dtype=torch.float64))


def test_what_the_library_cannot_read_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(8, 4).double(), nn.Embedding(3, 8), nn.Linear(8, 4))
    assert quicken(model) == 0
    assert [type(module) for module in model] == [nn.Linear, nn.Embedding, QuickLinear]
