"""Weights that are packed while they are loaded: what rounding costs, what is left in memory, and what they are used for."""

from __future__ import annotations

import gc
import math
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from hgca_cli import native
from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.errors import ModelError
from hgca_cli.hf import linear
from hgca_cli.hf.decoder import QuickDecoder
from hgca_cli.hf.fingerprint import fingerprint_of
from hgca_cli.hf.grid import BLOCK, Grid, find_grid, floats, round_to_grid, tiles_shape
from hgca_cli.hf.linear import QuickLinear, Weights
from hgca_cli.hf.load import LoadedModel, load_model
from hgca_cli.hf.packed_gpu import packed_layers
from hgca_cli.hf.registry import ModelFiles
from tests.models import change_config, change_weights, in_floats, shard, write_model, written
from tests.test_hf_linear import FLOATS, on_grid, product_error

SAMPLES = (("ordinary", 1.0), ("tiny", 1e-5), ("large", 1e4))


def on_the_nearest(weight: Tensor, bits: int) -> tuple[Grid, Tensor]:
    """A weight's grid and its numbers, which must all be finite."""
    grid = Grid(torch.empty(tiles_shape(weight, bits), dtype=torch.uint8), bits)
    assert round_to_grid(weight, bits, grid.tiles) < math.inf
    return grid, whole(grid, weight.shape[0])


def whole(grid: Grid, outputs: int) -> Tensor:
    return floats(grid, torch.arange(outputs))


def plain_range(blocks: Tensor) -> Tensor:
    """float64 blocks on 16 steps from their smallest number to their largest."""
    low, high = blocks.aminmax(dim=-1, keepdim=True)
    step = (high - low) / 15
    return ((blocks - low) / step.where(step > 0, 1.0)).round() * step + low


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("what", "size"), SAMPLES)
@pytest.mark.parametrize(("outputs", "blocks"), [(1, 1), (16, 2), (17, 3), (300, 5)])
def test_eight_bits_are_off_by_half_a_step_at_most(
    outputs: int, blocks: int, what: str, size: float, dtype: torch.dtype, isa: str, rng: torch.Generator
) -> None:
    weight = (size * torch.randn(outputs, blocks * BLOCK + 3, generator=rng)).to(dtype)[:, : blocks * BLOCK]
    weight[0, :BLOCK] = 0.0
    _, got = on_the_nearest(weight, 8)
    cut = weight.double().unflatten(1, (-1, BLOCK))
    largest = cut.abs().amax(-1, keepdim=True) / 127
    error = (got.double().unflatten(1, (-1, BLOCK)) - cut).abs()
    assert bool((error <= 0.5005 * (largest * (1 + 2**-10) + 2**-24)).all())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("what", "size"), SAMPLES[:1] + SAMPLES[2:])
def test_four_bits_lose_less_than_the_plain_range(
    what: str, size: float, dtype: torch.dtype, isa: str, rng: torch.Generator
) -> None:
    weight = (size * torch.randn(100, 10 * BLOCK, generator=rng)).to(dtype)
    _, got = on_the_nearest(weight, 4)
    cut = weight.double().unflatten(1, (-1, BLOCK))
    lost, plain = ((one.double().reshape(cut.shape) - cut).square().sum(-1) for one in (got, plain_range(cut)))
    assert bool((lost <= plain * 1.02).all())  # half floats are what is left to lose
    assert float(lost.sum()) < 0.82 * float(plain.sum())
    _, again = on_the_nearest(got, 4)
    assert float((again - got).square().sum()) < 0.01 * float(lost.sum())  # and a grid is hardly moved


@pytest.mark.parametrize("bits", [4, 8])
def test_instruction_sets_agree(bits: int, isa: str, rng: torch.Generator) -> None:
    weight = torch.randn(33, 64, generator=rng)
    _, got = on_the_nearest(weight, bits)
    native.use_isa("scalar")
    assert float((got - on_the_nearest(weight, bits)[1]).norm()) < 5e-3 * float(
        weight.norm()
    )  # two lines may be as near
    native.use_isa(isa)


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_that_are_all_the_same(bits: int, isa: str) -> None:
    for number in (0.0, 0.5, -3.0):
        _, got = on_the_nearest(torch.full((20, 64), number), bits)
        assert float((got - number).abs().max()) <= abs(number) * 2**-9


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("strange", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_what_no_grid_can_hold(bits: int, strange: float, isa: str, rng: torch.Generator) -> None:
    weight = torch.randn(20, 64, generator=rng)
    weight[18, 40] = strange
    assert round_to_grid(weight, bits, torch.empty(tiles_shape(weight, bits), dtype=torch.uint8)) == math.inf


@pytest.mark.parametrize("bits", [4, 8])
def test_floats_are_those_of_the_grid(bits: int, rng: torch.Generator) -> None:
    weight = on_grid(bits, 40, 96, rng)
    grid = find_grid(weight)
    assert grid is not None and torch.equal(whole(grid, 40), weight)
    assert torch.equal(floats(grid, torch.tensor([39, 3, 17, 3])), weight[[39, 3, 17, 3]])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_layer_serves_whatever_it_is_given(
    bits: int, isa: str, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "TURNS", 5)  # beyond it floats are made, where the library is not faster anyway
    monkeypatch.setattr(linear, "ROWS_AT_ONCE", 32)
    grid, twin = on_the_nearest(torch.randn(72, 64, generator=rng), bits)
    bias = torch.randn(72, generator=rng)
    layer = QuickLinear(64, 72)
    layer._parameters["weight"] = nn.Parameter(grid.tiles, requires_grad=False)
    layer._parameters["bias"] = nn.Parameter(bias, requires_grad=False)
    layer.quick, layer.siblings = Weights.on_grid(grid, 72, bias), None
    assert float(product_error(twin, bias, layer(torch.ones(64)), torch.ones(64))) < 1e-5
    for count in (1, 2, 5, 6, 40):
        x = torch.randn(1, count, 64, generator=rng)
        for given in (x, x.mT.contiguous().mT, x.bfloat16(), x.half()):
            with torch.inference_mode():
                got = layer(given)
            want = nn.functional.linear(given.double(), twin.double(), bias.double())
            assert got.shape == (1, count, 72) and got.dtype is given.dtype
            assert float((got - want).norm()) < (1e-4 if given.dtype is torch.float32 else 1e-2) * float(want.norm())
    assert layer(torch.empty(0, 64)).shape == (0, 72)
    x = torch.randn(3, 64, generator=rng, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, twin.sum(0).expand(3, -1), rtol=1e-4, atol=1e-4)


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles("tiny", write_model(tmp_path / "tiny"))


def twin_of(loaded: LoadedModel, files: ModelFiles) -> LoadedModel:
    """The model as it was, with the numbers that packing left of its weights."""
    twin = in_floats(files)
    named = dict(twin.model.named_modules())
    for name, layer in loaded.model.named_modules():
        if isinstance(layer, QuickLinear) and layer.quick.grid is not None:
            named[name].weight.data = whole(layer.quick.grid, layer.out_features)
    embedding = whole(loaded.model.get_input_embeddings().held, 320)
    twin.model.get_input_embeddings().weight = nn.Parameter(embedding, requires_grad=False)  # tied no more
    return twin


@pytest.mark.parametrize("quant", ["q8", "q4"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_model_is_its_twin(
    quant: str, tied: bool, dtype: torch.dtype, files: ModelFiles, rng: torch.Generator
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name, one in tensors.items():
            tensors[name] = one.to(dtype)
        if tied:
            del tensors["lm_head.weight"]

    change_weights(files.path, change)
    change_config(files.path, tie_word_embeddings=tied)
    shard(files.path)
    loaded = load_model(files, quant=quant)
    assert (loaded.dtype, loaded.quant) == (torch.float32, quant)
    layers = list(packed_layers(loaded.model))
    assert len(layers) == 2 * 6 + 1  # of both layers all but down_proj, whose 48 inputs are no whole blocks; the head
    assert loaded.model.get_output_embeddings().quick.grid.bits == 8
    assert {layer.quick.grid.bits for layer in layers[:-1]} == {8 if quant == "q8" else 4}
    original, twin = load_model(files), twin_of(loaded, files)
    assert loaded.token_operations == original.token_operations
    held = sum(layer.weight.numel() for layer in layers) + (0 if tied else 320 * 34) + 4 * 32 * (2 * 48 + 5)
    assert loaded.weights_bytes == held
    for count in (1, 9):
        ids = torch.randint(300, (1, count), generator=rng)
        with torch.inference_mode():
            got, want = loaded.model(ids).logits, twin.model(ids).logits
        assert got.dtype == torch.float32 and float((got - want).norm()) < 1e-4 * float(want.norm())


def test_a_packed_model_writes_what_its_twin_does(files: ModelFiles) -> None:
    change_weights(
        files.path, lambda tensors: [tensors.update({name: one.bfloat16()}) for name, one in tensors.items()]
    )
    loaded = load_model(files, quant="q4")
    told = [written(model) for model in (loaded, twin_of(loaded, files))]
    assert told[0] == told[1] and len(told[0]) > 40


def test_whole_layers_are_the_librarys(tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, max_position_embeddings=256, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(3)
    loaded = load_model(
        ModelFiles("tiny", write_model(tmp_path, model=Qwen3ForCausalLM(config).bfloat16())), quant="q4"
    )
    engine = Engine(loaded, CacheSettings(window=16, context=64))
    assert all(isinstance(layer, QuickDecoder) and layer.parts.most > 1 for layer in loaded.model.model.layers)
    assert engine.loaded.model.model.layers[0].mlp.down_proj.weight.dtype is torch.uint8
    sampling = SamplingSettings(temperature=0.0, max_tokens=12)
    list(engine.answer(engine.new_sequence(), [5, 6, 7], sampling, threading.Event()))
    assert loaded.model.hgca_straight.alike == 3  # tokens went without the model's own functions, its embedding packed


@pytest.mark.parametrize("quant", ["q8", "q4"])
def test_no_float_weight_is_left(quant: str, files: ModelFiles) -> None:
    shape = (1024, 992)  # of nothing else in this process

    def widen(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            if "gate_proj" in name or "up_proj" in name or "down_proj" in name or "lm_head" in name or "embed" in name:
                tensors[name] = (
                    torch.randn(shape)
                    if "embed" in name or "head" in name
                    else torch.randn((992, 64) if "down" in name else (64, 992))
                )
            elif "norm" in name:
                tensors[name] = torch.ones(992)
            else:
                tensors[name] = torch.randn((992, 64) if "o_proj" in name else (64 if "q_proj" in name else 32, 992))

    change_weights(files.path, widen)
    change_config(files.path, vocab_size=1024, hidden_size=992, intermediate_size=64, head_dim=16)
    loaded = load_model(files, quant=quant)
    gc.collect()
    left = [
        one for one in gc.get_objects() if torch.is_tensor(one) and tuple(one.shape) in (shape, (64, 992), (992, 64))
    ]
    assert not left
    matrices = [layer for layer in loaded.model.modules() if isinstance(layer, nn.Linear | nn.Embedding)]
    assert all(layer.weight.dtype is torch.uint8 for layer in matrices)


def test_what_a_file_holds_on_a_grid_is_kept(files: ModelFiles, rng: torch.Generator) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name, one in tensors.items():
            if "proj" in name and one.shape[1] == 32:
                tensors[name] = on_grid(4 if "q_proj" in name else 8, *one.shape, rng) / 64

    change_weights(files.path, change)
    original = load_model(files).model.model.layers[0]
    eight, four = (load_model(files, quant=quant).model.model.layers[0] for quant in ("q8", "q4"))
    for layer, bits in ((eight, 8), (four, 4)):
        query, gate = layer.self_attn.q_proj, layer.mlp.gate_proj
        assert query.quick.grid.bits == 4 and gate.quick.grid.bits == bits
        assert torch.equal(whole(query.quick.grid, 32), original.self_attn.q_proj.weight)
        assert torch.equal(whole(gate.quick.grid, 48), original.mlp.gate_proj.weight) == (bits == 8)


def test_damage_is_told_as_ever(files: ModelFiles) -> None:
    def poison(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.self_attn.k_proj.weight"][3, 4] = float("nan")

    change_weights(files.path, poison)
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.k_proj\.weight holds NaN"):
        load_model(files, quant="q4")
    change_weights(files.path, lambda tensors: tensors["model.norm.weight"].fill_(float("inf")))
    change_weights(files.path, lambda tensors: tensors["model.layers.1.self_attn.k_proj.weight"].fill_(1.0))
    with pytest.raises(ModelError, match=r"model\.norm\.weight holds NaN or infinite"):
        load_model(files, quant="q8")
    change_weights(files.path, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ModelError, match=r"weights are missing: model\.norm\.weight"):
        load_model(files, quant="q8")


def test_fingerprints_differ(files: ModelFiles) -> None:
    told = {quant: load_model(files, quant=quant).fingerprint for quant in ("none", "q8", "q4")}
    assert len(set(told.values())) == 3
    assert all(fingerprint_of(files, quant) == one for quant, one in told.items())


def test_models_of_no_linear_layers_are_refused(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=320, n_positions=64))
    with pytest.raises(ModelError, match=r"--quant q8: 0% of the weights of family 'gpt2' are linear layers"):
        load_model(ModelFiles("gpt2", write_model(tmp_path, model=model)), quant="q8")
    write_model(tmp_path / "two")
    change_config(tmp_path / "two", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(ModelError, match="quantised already"):
        load_model(ModelFiles("two", tmp_path / "two"), quant="q4")


def test_embeddings_of_a_familys_own_are_scaled(tmp_path: Path) -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=320, hidden_size=96, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, max_position_embeddings=64, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(4)
    files = ModelFiles("gemma", write_model(tmp_path, model=Gemma3ForCausalLM(config).bfloat16()))
    ids = torch.tensor([[0, 3, 7, 3]])
    embedding, original = (
        one.model.get_input_embeddings() for one in (load_model(files, quant="q8"), in_floats(files))
    )
    with torch.inference_mode():
        got, want = embedding(ids), original(ids)
    assert got.dtype is torch.float32 and float((got - want).norm()) < 1e-2 * float(want.norm())
    original.weight.data = whole(embedding.held, 320)
    with torch.inference_mode():
        assert torch.equal(got, original(ids))  # scaled by the root of 96, which bf16 does not hold
