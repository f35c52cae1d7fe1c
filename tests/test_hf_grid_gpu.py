"""Weights on a grid on a GPU, held to what the same grids are on the CPU: on a GPU, in Triton's interpreter, or by torch alone."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GemmaConfig, GemmaForCausalLM

import hgca_cli.hf.grid_gpu as grid_gpu
from hgca_cli.errors import ModelError
from hgca_cli.hf import gguf_convert
from hgca_cli.hf.checks import check_weights
from hgca_cli.hf.fingerprint import fingerprint_of
from hgca_cli.hf.gguf_waiting import Waiting
from hgca_cli.hf.grid import BLOCK, Grid, floats, round_to_grid, tiles_shape
from hgca_cli.hf.grid_gpu import GridLinear, hold_on_grid, kernels_work
from hgca_cli.hf.load import load_model
from hgca_cli.hf.packed_files import PackedFiles
from hgca_cli.hf.packed_gpu import PackingGpu, packed_layers
from hgca_cli.hf.published import dtype_of
from hgca_cli.hf.registry import ModelFiles, resolve
from tests.models import change_weights, write_gguf, write_model
from tests.test_hf_quicken_gpu import DEVICE, INTERPRETED, on_device
from tests.tiny_engine import tiny_tokenizer

SHAPES = ((16, 1), (50, 3), (17, 70), (300, 9))
HALVES = (
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(INTERPRETED, reason="it cuts off where a GPU rounds")),
)
NEAR = {torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of a result's norm


def made(outputs: int, blocks: int, bits: int, rng: torch.Generator, device: torch.device) -> Grid:
    weight = torch.randn(outputs, blocks * BLOCK, generator=rng)
    grid = Grid(torch.empty(tiles_shape(weight, bits), dtype=torch.uint8), bits)
    round_to_grid(weight, bits, grid.tiles)
    return grid._replace(tiles=grid.tiles.to(device))


def numbers(grid: Grid, outputs: int) -> Tensor:
    return floats(Grid(grid.tiles.cpu(), grid.bits), torch.arange(outputs)).double()


def off(got: Tensor, want: Tensor) -> float:
    return float((got.double().cpu() - want).norm() / want.norm())


@on_device
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("outputs", "blocks"), SHAPES)
def test_products_of_a_few_vectors(
    outputs: int, blocks: int, bits: int, dtype: torch.dtype, rng: torch.Generator
) -> None:
    from hgca_cli.hf.grid_triton import product

    grid = made(outputs, blocks, bits, rng, DEVICE)
    bias = torch.randn(outputs, generator=rng).to(DEVICE, dtype)
    for vectors in (1, 2, 3, 4, 9):
        x = torch.randn(vectors, blocks * BLOCK, generator=rng).to(dtype)
        want = x.double() @ numbers(grid, outputs).T
        assert off(product(grid, outputs, x.to(DEVICE), None), want) < NEAR[dtype]
        got = product(grid, outputs, x.to(DEVICE), bias)
        assert got.dtype is dtype and off(got, want + bias.double().cpu()) < NEAR[dtype]


@on_device
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("outputs", "blocks"), SHAPES)
def test_numbers_of_some_rows(outputs: int, blocks: int, bits: int, rng: torch.Generator) -> None:
    from hgca_cli.hf.grid_triton import widen

    grid = made(outputs, blocks, bits, rng, DEVICE)
    want = numbers(grid, outputs)
    for first, rows in ((0, outputs), (3, 1), (outputs // 2, outputs - outputs // 2)):
        assert torch.equal(widen(grid, first, rows, torch.float16).cpu(), want[first : first + rows].half())


@on_device
@pytest.mark.parametrize("bits", [8, 4])
def test_kernels_are_taken_if_they_give_what_torch_does(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from hgca_cli.hf import grid_triton

    monkeypatch.setattr(grid_gpu, "works_on", lambda _: True)
    assert kernels_work.__wrapped__(DEVICE, bits, torch.float16)
    assert not kernels_work.__wrapped__(DEVICE, bits, torch.float32)
    monkeypatch.setattr(grid_triton, "product", lambda grid, outputs, x, bias: x.new_zeros(len(x), outputs))
    assert not kernels_work.__wrapped__(DEVICE, bits, torch.float16)


@pytest.mark.skipif(find_spec("triton") is not None, reason="Triton is there")
def test_without_triton_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_gpu, "works_on", lambda _: True)
    assert not kernels_work.__wrapped__(torch.device("cpu"), 4, torch.float16)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("at_once", [1 << 20, 2 * 3 * BLOCK * 7])
def test_a_layer_without_triton(bits: int, at_once: int, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_gpu, "GRID_WIDE_BYTES", at_once)  # all rows, or 7
    layer = nn.Linear(3 * BLOCK, 50, dtype=torch.bfloat16).requires_grad_(False)
    assert layer.bias is not None
    bias, grid = layer.bias.clone(), made(50, 3, bits, rng, torch.device("cpu"))
    hold_on_grid(layer, grid, bias, torch.bfloat16)
    assert isinstance(layer, GridLinear) and not layer.kernels
    for shape in ((2, 5, 3 * BLOCK), (1, 3 * BLOCK), (40, 3 * BLOCK)):
        x = torch.randn(shape, generator=rng).bfloat16()
        got = layer(x)
        assert got.dtype is torch.bfloat16 and got.shape == (*shape[:-1], 50)
        assert off(got, x.double() @ numbers(grid, 50).T + bias.double()) < 8e-3


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles("tiny", write_model(tmp_path / "tiny"))


def packed(files: ModelFiles, quant: str, device: str = "cpu", gives: torch.dtype = torch.bfloat16) -> Any:
    """As load_model does for a GPU, wherever."""
    dtype = dtype_of(check_weights(files.path))
    model = AutoModelForCausalLM.from_pretrained(files.path, dtype=dtype).eval().requires_grad_(False)
    kept = PackedFiles(files, quant, fingerprint_of(files, quant), 0, lambda _: None)
    there = torch.device(device)
    PackingGpu(model, files.path, kept, lambda _: None, Waiting.of(files.path), device=there, gives=gives).run(quant)
    return model.to(there)


def scores(model: Any) -> Tensor:
    ids = torch.tensor([tiny_tokenizer().encode("the cat sat on the mat and looked at naïve people")])
    with torch.inference_mode():
        out: Tensor = model(input_ids=ids.to(model.lm_head.weight.device)).logits
    return out.double().cpu()


@pytest.mark.parametrize("quant", ["q8", "q4"])
def test_the_same_grids_as_on_the_cpu(quant: str, files: ModelFiles) -> None:
    """The grids are the same bytes, in float32 the scores are, and in 16 bits they are near."""
    there = load_model(files, quant=quant).model
    exact = packed(files, quant, gives=torch.float32)
    for (name, one), (_, other) in zip(exact.named_parameters(), there.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert off(scores(exact), scores(there)) < 1e-4
    near = packed(files, quant)
    assert off(scores(near), scores(there)) < 2e-2
    kinds = {one.dtype for one in near.parameters()}
    assert kinds == {torch.uint8, torch.bfloat16} and near.dtype is torch.bfloat16
    assert sum(isinstance(one, GridLinear) for one in near.modules()) == len(list(packed_layers(near)))
    layers = [one for one in near.modules() if isinstance(one, nn.Linear) and one.in_features % BLOCK == 0]
    assert all(one.weight.dtype is torch.uint8 for one in (*layers, near.model.embed_tokens)) and len(layers) > 10


def test_an_embedding_that_is_scaled(tmp_path: Path) -> None:
    config = GemmaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(1)
    files = ModelFiles("tiny", write_model(tmp_path / "tiny", model=GemmaForCausalLM(config)))
    near, there = packed(files, "q8"), load_model(files, quant="q8").model
    assert near.lm_head.weight is near.model.embed_tokens.weight and near.lm_head.weight.dtype is torch.uint8
    assert off(scores(near), scores(there)) < 2e-2


def test_a_quantised_file_in_its_own_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_convert, "FULL_PRECISION_BYTES", 0)  # as of a large one, whose matrices wait in the file
    files = resolve(str(write_gguf(tmp_path / "q8.gguf", quant=gguf.GGMLQuantizationType.Q8_0)))
    assert Waiting.of(files.path) is not None
    got, want = packed(files, "file", gives=torch.float32), load_model(files, quant="file").model
    assert Waiting.of(files.path) is not None, "nothing was written in 16 bits for it"
    for (name, one), (_, other) in zip(got.named_parameters(), want.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert off(scores(got), scores(want)) < 1e-4


def test_damage_is_told(files: ModelFiles) -> None:
    change_weights(
        files.path, lambda tensors: next(one for name, one in tensors.items() if "up_proj" in name).fill_(float("nan"))
    )
    with pytest.raises(ModelError, match=r"up_proj.weight holds NaN"):
        packed(files, "q4")


@pytest.mark.gpu
@pytest.mark.parametrize("quant", ["q8", "q4"])
def test_a_model_on_a_gpu(quant: str, files: ModelFiles) -> None:
    loaded = load_model(files, device="cuda:0", quant=quant)
    assert loaded.dtype is torch.bfloat16 or loaded.dtype is torch.float16
    assert all(one.is_cuda for one in (*loaded.model.parameters(), *loaded.model.buffers()))
    assert all(layer.kernels for layer in packed_layers(loaded.model) if isinstance(layer, GridLinear))
    assert off(scores(loaded.model), scores(load_model(files, quant=quant).model)) < 2e-2
    assert all(kernels_work(torch.device("cuda:0"), bits, dtype) for bits in (4, 8) for dtype in grid_gpu.HALVES)
