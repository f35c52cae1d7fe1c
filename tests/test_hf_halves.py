"""Weights published in 16 bits stay in these on the CPU, and what is computed is what float32 weights give."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel

from hgca_cli.commands.describe import describe
from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.errors import ModelError
from hgca_cli.hardware.machine import Machine
from hgca_cli.hardware.plan import make_plan
from hgca_cli.hardware.settings import PlanRequest
from hgca_cli.hf import linear
from hgca_cli.hf.decoder import QuickDecoder
from hgca_cli.hf.linear import QuickLinear, Weights
from hgca_cli.hf.load import load_model
from hgca_cli.hf.packed import Embedded
from hgca_cli.hf.registry import ModelFiles
from tests.models import change_config, change_weights, in_floats, shard, write_model, written

NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


def published(path: Path, dtype: torch.dtype, *, tied: bool = False) -> ModelFiles:
    """The tiny model in 16 bits."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name, one in tensors.items():
            tensors[name] = one.to(dtype)
        if tied:
            del tensors["lm_head.weight"]

    files = ModelFiles("tiny", write_model(path / "tiny"))
    change_weights(files.path, change)
    change_config(files.path, tie_word_embeddings=tied, dtype=NAMES[dtype])
    return files


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", NAMES)
def test_it_is_the_model_in_floats(dtype: torch.dtype, tied: bool, tmp_path: Path, rng: torch.Generator) -> None:
    files = published(tmp_path, dtype, tied=tied)
    shard(files.path)
    loaded, floats = load_model(files), in_floats(files)
    assert loaded.dtype is torch.float32 and loaded.quant == "none"
    matrices = [one for one in loaded.model.modules() if isinstance(one, nn.Linear | nn.Embedding)]
    assert len(matrices) == 2 * 7 + 2 and all(one.weight.dtype is dtype for one in matrices)
    assert all(type(one) is QuickLinear or isinstance(one, Embedded) for one in matrices)
    assert loaded.weights_bytes == 2 * sum(one.weight.numel() for one in matrices[: len(matrices) - tied]) + 4 * 32 * 5
    assert (matrices[0].weight is matrices[-1].weight) is tied
    assert loaded.token_operations == floats.token_operations
    for count in (1, 2, 9, 40):
        ids = torch.randint(300, (1, count), generator=rng)
        with torch.inference_mode():
            got, want = loaded.model(ids).logits, floats.model(ids).logits
        assert got.dtype is torch.float32 and float((got - want).norm()) < 2e-6 * float(want.norm())
    model = describe(files, False)
    assert model.uniform and model.own_dtype == {"bfloat16": "bf16", "float16": "fp16"}[NAMES[dtype]]


def test_it_writes_what_floats_do(tmp_path: Path) -> None:
    files = published(tmp_path, torch.bfloat16)
    told = [written(model) for model in (load_model(files), in_floats(files))]
    assert told[0] == told[1] and len(told[0]) > 40


def test_whole_layers_are_the_librarys(tmp_path: Path) -> None:
    engine = Engine(load_model(published(tmp_path, torch.bfloat16)), CacheSettings(window=16, context=64))
    assert all(isinstance(layer, QuickDecoder) for layer in engine.loaded.model.model.layers)
    list(
        engine.answer(
            engine.new_sequence(), [5, 6, 7], SamplingSettings(temperature=0.0, max_tokens=12), threading.Event()
        )
    )
    assert engine.loaded.model.hgca_straight.alike == 3  # tokens went without the model's own functions


@pytest.mark.parametrize("count", [1, 2, 5, 70])
@pytest.mark.parametrize("dtype", NAMES)
def test_a_layer_serves_whatever_it_is_given(
    dtype: torch.dtype, count: int, isa: str, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "AT_ONCE", 100)
    monkeypatch.setattr(linear, "FEWEST_ROWS", 16)  # of 72, the last 8 alone
    weight, bias = torch.randn(72, 50, generator=rng).to(dtype), torch.randn(72, generator=rng)
    layer = QuickLinear(50, 72)
    layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    layer._parameters["bias"] = nn.Parameter(bias, requires_grad=False)
    layer.quick, layer.siblings = Weights.in_halves(weight, bias), None
    x = torch.randn(1, count, 50, generator=rng)
    want = nn.functional.linear(x.double(), weight.double(), bias.double())
    with torch.inference_mode():
        for given in (x, x.mT.contiguous().mT, x.double().float()):
            assert float((layer(given) - want).norm()) < 1e-6 * float(want.norm())
        assert layer(x.bfloat16()).dtype is torch.bfloat16
        assert layer(torch.empty(0, 50)).shape == (0, 72)
    x = torch.randn(3, 50, generator=rng, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, weight.float().sum(0).expand(3, -1), rtol=1e-4, atol=1e-4)


def test_a_familys_own_embedding_is_scaled_as_in_floats(tmp_path: Path) -> None:
    config = Gemma3TextConfig(
        vocab_size=320, hidden_size=96, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, max_position_embeddings=64, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(4)
    files = ModelFiles("gemma", write_model(tmp_path, model=Gemma3ForCausalLM(config).bfloat16()))
    loaded, floats = load_model(files), in_floats(files)
    ids = torch.tensor([[0, 3, 7, 3]])
    with torch.inference_mode():
        assert torch.equal(*(one.model.get_input_embeddings()(ids) for one in (loaded, floats)))
        got, want = loaded.model(ids).logits, floats.model(ids).logits
    assert float((got - want).norm()) < 2e-6 * float(want.norm())


def test_numbers_of_several_kinds_are_all_made_floats(tmp_path: Path) -> None:
    files = published(tmp_path, torch.bfloat16)
    norm = "model.norm.weight"
    change_weights(files.path, lambda tensors: tensors.update({norm: tensors[norm].float() * 1.0001}))
    loaded = load_model(files)
    assert {one.dtype for one in loaded.model.parameters()} == {torch.float32}
    assert torch.equal(loaded.model.model.norm.weight, in_floats(files).model.model.norm.weight)
    assert not describe(files, False).uniform


def test_files_of_another_kind_than_the_config_says_are_planned_as_they_are_held(tmp_path: Path) -> None:
    files = ModelFiles("tiny", write_model(tmp_path))
    change_config(files.path, dtype="bfloat16")
    model = describe(files, False)
    assert not model.uniform and load_model(files).weights_bytes == 4 * model.parameters
    assert make_plan(model, Machine(2, 8 << 30, 8 << 30), PlanRequest()).memory[0].weights == 6 * model.parameters


def test_what_is_not_linear_is_made_floats(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=320, n_positions=64, n_embd=32, n_layer=1, n_head=2, dtype="bfloat16")
    files = ModelFiles("gpt", write_model(tmp_path, model=GPT2LMHeadModel(config).bfloat16()))
    assert {one.dtype for one in load_model(files).model.parameters()} == {torch.float32}


def test_numbers_that_are_not_finite_are_the_files(tmp_path: Path) -> None:
    files = published(tmp_path, torch.float16)
    name = "model.layers.0.mlp.up_proj.weight"
    change_weights(files.path, lambda tensors: tensors[name].fill_(float("inf")))
    with pytest.raises(ModelError, match=r"up_proj\.weight holds NaN or infinite numbers") as caught:
        load_model(files)
    assert caught.value.hint == "Fetch the model again."


def test_another_dtype_is_what_was_asked_for(tmp_path: Path) -> None:
    files = published(tmp_path, torch.bfloat16)
    loaded = load_model(files, dtype="bf16")
    assert loaded.dtype is torch.bfloat16 and all(type(one) is not QuickLinear for one in loaded.model.modules())
    assert load_model(files, dtype="fp32").fingerprint == loaded.fingerprint
