"""Experts by the library: what transformers computes, family by family, in every way their weights are held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from hgca_cli import native
from hgca_cli.errors import HgcaError, ModelError
from hgca_cli.hf import experts as hf_experts
from hgca_cli.hf import packed_files
from hgca_cli.hf.experts import QuickExperts, are_experts, expert_weights
from hgca_cli.hf.experts_apart import Apart
from hgca_cli.hf.load import load_model, read_config
from hgca_cli.hf.mapped import load
from hgca_cli.hf.published import packs_experts
from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.registry import ModelFiles
from tests.mixtures import CHOSEN, EXPERTS, INNER, SHAPE, tiny_mixture
from tests.models import change_weights, in_floats, shard, write_model, written

SOME = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3Moe": {"num_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "moe_intermediate_size": INNER},
    "Qwen2Moe": {
        "num_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "moe_intermediate_size": INNER,
        "shared_expert_intermediate_size": 32,
    },
    "Mixtral": SOME,
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "GraniteMoe": SOME,
    "Phimoe": {"num_local_experts": 4},
    "Ernie4_5_Moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": INNER},
    "FlexOlmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "MiniMaxM2": SOME,
    "GptOss": SOME,
}
TURNED = "GptOss"  # weights are held the other way round, gates are interleaved, clipped and biased


def config(name: str) -> Any:
    head = {} if name in ("Mixtral", "Olmoe", "GraniteMoe", "Phimoe", "FlexOlmo") else {"head_dim": 16}
    shape = {key: value for key, value in SHAPE.items() if key != "head_dim"} | head
    return getattr(transformers, f"{name}Config")(**shape | FAMILIES[name])


def ids(count: int = 40) -> Tensor:
    return torch.randint(3, 300, (1, count), generator=torch.Generator().manual_seed(1))


def quick(model: nn.Module) -> list[QuickExperts]:
    return [one for one in model.modules() if isinstance(one, QuickExperts)]


@torch.inference_mode()
def logits(model: Any, count: int) -> Tensor:
    out: Tensor = model(ids(count), use_cache=False).logits
    return out


def apart(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != TURNED])
def test_a_familys_own_logits(name: str) -> None:
    model = tiny_mixture(config(name))
    want = {count: logits(model, count) for count in (1, 3, 40)}
    quicken(model)
    assert quick(model) and all(one.experts.at_once for one in quick(model))
    for count, own in want.items():
        assert apart(logits(model, count), own) < 3e-5


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "MiniMaxM2"])  # has one tensor in 32
def test_held_in_sixteen_bits_alone(name: str, tmp_path: Path) -> None:
    model = tiny_mixture(config(name), torch.bfloat16)
    files = ModelFiles("tiny", write_model(tmp_path, model=model))
    loaded, want = load_model(files), in_floats(files)
    (first, *_) = quick(loaded.model)
    assert first._parameters["gate_up_proj"].dtype is torch.bfloat16 and first.experts.at_once is (name != TURNED)
    assert apart(logits(loaded.model, 40), logits(want.model, 40)) < 3e-5
    assert apart(logits(loaded.model, 1), logits(want.model, 1)) < 3e-5
    assert written(loaded) == written(want)


@pytest.mark.parametrize("quant", ["q8", "q4"])
@pytest.mark.parametrize("name", ["Qwen3Moe", "Mixtral", TURNED])
def test_packed_is_the_model_of_its_rounded_weights(name: str, quant: str, tmp_path: Path) -> None:
    model = tiny_mixture(config(name), torch.bfloat16)
    loaded = load_model(ModelFiles("tiny", write_model(tmp_path, model=model)), quant=quant)
    packed = quick(loaded.model)
    assert len(packed) == 2 and all(one._parameters["down_proj"].dtype is torch.uint8 for one in packed)
    assert loaded.weights_bytes < 0.4 * sum(4 * one.numel() for one in model.parameters())
    rng = torch.Generator().manual_seed(2)
    x, shares = torch.randn(7, 64, generator=rng), torch.rand(7, 2, generator=rng)
    chosen = torch.stack([torch.randperm(4, generator=rng)[:2] for _ in range(7)])
    own = [one for one in tiny_mixture(config(name)).modules() if are_experts(one)]
    with torch.inference_mode():
        errors = [apart(one(x, chosen, shares), want(x, chosen, shares)) for one, want in zip(packed, own, strict=True)]
    assert all(error < (0.015 if quant == "q8" else 0.2) for error in errors)
    one_token, all_of_them = logits(loaded.model, 1), logits(loaded.model, 40)
    assert apart(one_token, all_of_them[:, :1]) < 3e-4  # a token alone is rounded less than many


def test_packed_is_read_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_files, "LEAST", 0)
    monkeypatch.setattr(packed_files, "SPARE_BYTES", 0)
    files = ModelFiles("tiny", write_model(tmp_path / "m", model=tiny_mixture(dtype=torch.bfloat16)))
    first = load_model(files, quant="q4")
    assert list((tmp_path / "cache" / "packed").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("hgca_cli.hf.packed.round_to_grid", None)
        second = load_model(files, quant="q4")
    assert torch.equal(logits(first.model, 40), logits(second.model, 40))


@pytest.mark.parametrize("count", [1, 4, 4 + 1, 40])
def test_a_token_does_not_depend_on_the_others(count: int) -> None:
    model = tiny_mixture()
    quicken(model)
    held = quick(model)[0]
    rng = torch.Generator().manual_seed(count)
    x, shares = torch.randn(count, 64, generator=rng), torch.rand(count, CHOSEN, generator=rng)
    chosen = torch.randint(EXPERTS, (count, CHOSEN), generator=rng)
    with torch.inference_mode():
        together = held(x, chosen, shares)
        for i in range(count):
            alone = held(x[i : i + 1], chosen[i : i + 1], shares[i : i + 1])
            assert apart(together[i : i + 1], alone) < 1e-6


@pytest.mark.parametrize("name", ["Qwen3Moe", TURNED])
def test_called_by_name(name: str, tmp_path: Path) -> None:
    files = ModelFiles("tiny", write_model(tmp_path, model=tiny_mixture(config(name), torch.bfloat16)))
    held = quick(load_model(files).model)[0]
    x, chosen, shares = torch.randn(3, 64), torch.tensor([[0, 1], [3, 2], [1, 2]]), torch.rand(3, 2)
    names = ("router_indices", "routing_weights") if name == TURNED else ("top_k_index", "top_k_weights")
    with torch.inference_mode():
        want = held(x, chosen, shares)
        assert torch.equal(held(x, **{names[1]: shares, names[0]: chosen}), want)
        assert torch.equal(held(x, chosen.int(), **{names[1]: shares}), want)


def test_many_tokens_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_mixture()
    quicken(model)
    want = logits(model, 40)
    monkeypatch.setattr(hf_experts, "AT_ONCE", 3000)
    assert apart(logits(model, 40), want) < 1e-6


def test_a_module_that_does_something_else_is_left_alone() -> None:
    model: Any = tiny_mixture()
    one = model.model.layers[0].mlp.experts
    assert are_experts(one)

    class Other(type(one)):  # type: ignore[misc]
        def forward(self, *told: Any) -> Tensor:
            return 2 * super().forward(*told)  # type: ignore[no-any-return]

    one.__class__ = Other
    assert not are_experts(one)
    quicken(model)
    assert len(quick(model)) == 1
    one.__class__ = Other.__bases__[0]
    one.act_fn = nn.GELU()  # by the library, expert after expert, with the module's own gate
    quicken(model)
    assert len(quick(model)) == 2 and not model.model.layers[0].mlp.experts.experts.at_once


def test_weights_that_were_changed_are_the_modules_own_again() -> None:
    model = tiny_mixture()
    quicken(model)
    held = quick(model)[0]
    x, shares, chosen = torch.randn(1, 64), torch.ones(1, CHOSEN), torch.tensor([[0, 1]])
    with torch.inference_mode():
        before = held(x, chosen, shares)
    held._parameters["down_proj"] = nn.Parameter(2 * held._parameters["down_proj"], requires_grad=False)
    with torch.inference_mode():
        assert apart(held(x, chosen, shares), 2 * before) < 1e-5
    model.requires_grad_(True)
    x.requires_grad_(True)
    held(x, chosen, shares).sum().backward()
    assert x.grad is not None


def test_widths_that_no_grid_has() -> None:
    odd = config("Qwen3Moe")
    odd.moe_intermediate_size = 40
    model = tiny_mixture(odd)
    assert not any(expert_weights(one) for one in model.modules()) and not packs_experts(odd)
    want = logits(model, 3)
    quicken(model)
    assert len(quick(model)) == 2 and not quick(model)[0].experts.at_once
    assert apart(logits(model, 3), want) < 3e-5
    assert packs_experts(config("Qwen3Moe")) and packs_experts(config(TURNED))


def test_an_expert_there_is_not() -> None:
    model = tiny_mixture()
    quicken(model)
    held = quick(model)[0]
    with torch.inference_mode(), pytest.raises(HgcaError):
        held(torch.randn(1, 64), torch.tensor([[0, EXPERTS]]), torch.ones(1, CHOSEN))


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    write_model(tmp_path, model=tiny_mixture(dtype=torch.bfloat16))

    def spoil(tensors: dict[str, Tensor]) -> None:
        name = next(name for name in tensors if "experts" in name and "down_proj" in name)
        tensors[name].view(-1)[3] = float("nan")

    change_weights(tmp_path, spoil)
    with pytest.raises(ModelError, match=r"experts\.down_proj holds NaN"):
        load_model(ModelFiles("tiny", tmp_path), quant="q8")


def test_all_instruction_sets(isa: str) -> None:
    model = tiny_mixture()
    want = logits(model, 1)
    quicken(model)
    assert native.isa() == isa
    assert apart(logits(model, 1), want) < 3e-5


@pytest.mark.parametrize("quant", ["none", "q8"])
@pytest.mark.parametrize("name", ["Qwen3Moe", "Qwen2Moe", "Mixtral"])
def test_experts_of_a_tensor_each_are_put_together_when_they_are_packed(
    name: str, quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As publishers' files have them, and transformers writes them."""
    model = tiny_mixture(config(name), torch.bfloat16)
    files = ModelFiles("tiny", write_model(tmp_path, model=model))
    shard(tmp_path)
    assert any(".experts.3." in one for file in tmp_path.glob("*.safetensors") for one in load_file(file))
    with monkeypatch.context() as patch:
        patch.setattr(Apart, "of", lambda *_: None)
        want = load_model(files, quant=quant)
    taken: list[str] = []
    numbers = Apart.numbers
    monkeypatch.setattr(Apart, "numbers", lambda self, which: taken.append(which) or numbers(self, which))
    got = load_model(files, quant=quant)
    assert len(taken) == 2 * SHAPE["num_hidden_layers"]
    for one, other in zip(got.model.parameters(), want.model.parameters(), strict=True):
        assert one.dtype is other.dtype and torch.equal(one, other)
    assert got.model.generation_config.to_dict() == want.model.generation_config.to_dict()
    assert written(got) == written(want)


def test_a_missing_expert_is_told_as_ever(tmp_path: Path) -> None:
    write_model(tmp_path, model=tiny_mixture(dtype=torch.bfloat16))
    change_weights(tmp_path, lambda tensors: tensors.pop("model.layers.1.mlp.experts.5.up_proj.weight"))
    with pytest.raises(ModelError):
        load_model(ModelFiles("tiny", tmp_path), quant="q8")


def test_tensors_in_their_place_take_no_memory(tmp_path: Path) -> None:
    write_model(tmp_path, model=tiny_mixture(dtype=torch.bfloat16))
    files = ModelFiles("tiny", tmp_path)
    assert Apart.of(tmp_path.glob("*.safetensors"), read_config(files), torch.float32) is None
    apart = Apart.of(tmp_path.glob("*.safetensors"), read_config(files), torch.bfloat16)
    assert apart is not None
    state = apart.state()
    model, _ = load(tmp_path, read_config(files), state, torch.bfloat16, output_loading_info=True)
    own = dict(model.named_parameters())
    assert apart.names <= own.keys() and not any(bool(own[name].any()) for name in apart.names)
    assert all(isinstance(state[name], Tensor) for name in apart.names) and len(state) == len(own)
