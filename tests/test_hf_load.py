"""A model in memory: the weights of its files, ready to run, known by its fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, GPT2Config

from hgca_cli.errors import DoesNotFitError, ModelError
from hgca_cli.hf import load
from hgca_cli.hf.load import load_model, read_config, stretch
from hgca_cli.hf.registry import ModelFiles
from tests.models import change_config, change_weights, same_numbers, write_model
from tests.tiny_engine import tiny_model, tiny_tokenizer


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles("tiny", write_model(tmp_path / "tiny"))


def test_weights_are_those_of_the_files(files: ModelFiles) -> None:
    loaded = load_model(files)
    original = tiny_model()
    for name, parameter in loaded.model.named_parameters():
        assert same_numbers(parameter, original.get_parameter(name)), name
        assert not parameter.requires_grad
    assert not loaded.model.training
    assert (loaded.name, loaded.files, loaded.device.type, loaded.dtype) == ("tiny", files, "cpu", torch.float32)
    assert loaded.trained_context == 512
    assert loaded.weights_bytes == 4 * sum(p.numel() for p in original.parameters())


@pytest.mark.parametrize(
    ("dtype", "want"), [("auto", "float32"), ("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")]
)
def test_dtype(dtype: str, want: str, files: ModelFiles) -> None:
    change_config(files.path, dtype="bfloat16")
    loaded = load_model(files, dtype=dtype)
    assert loaded.dtype == getattr(torch, want)
    assert {p.dtype for p in loaded.model.parameters()} == {loaded.dtype}


@pytest.mark.parametrize(("own", "want"), [("bfloat16", "bfloat16"), ("float16", "float16"), ("float32", "bfloat16")])
def test_dtype_on_a_gpu_is_the_models_own(own: str, want: str, files: ModelFiles) -> None:
    change_config(files.path, dtype=own)
    assert load._own_dtype(read_config(files)) == getattr(torch, want)


def test_weights_beyond_fp16_name_the_remedy(files: ModelFiles) -> None:
    change_weights(files.path, lambda tensors: tensors["model.norm.weight"].fill_(1e6))
    load_model(files, dtype="bf16")
    with pytest.raises(ModelError, match=r"model\.norm\.weight holds .* infinite numbers\. .*--dtype bf16"):
        load_model(files, dtype="fp16")


def test_ends_come_from_all_files(files: ModelFiles) -> None:
    def token(text: str) -> int:
        return int(tiny_tokenizer().hf.convert_tokens_to_ids(text))

    change_config(files.path, eos_token_id=token("<|user|>"))
    (files.path / "generation_config.json").write_text(f'{{"eos_token_id": [{token("<|system|>")}, 7]}}')
    assert load_model(files).tokenizer.end_ids == {token("<|end|>"), token("<|user|>"), token("<|system|>"), 7}


def test_fingerprint(files: ModelFiles, tmp_path: Path) -> None:
    first = load_model(files).fingerprint
    assert load_model(ModelFiles("other", write_model(tmp_path / "copy"))).fingerprint == first
    change_config(files.path, rms_norm_eps=1e-4)
    assert load_model(files).fingerprint != first


def test_nothing_is_written(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model on a read-only file system. Root may write anywhere: what is there must not have changed either."""
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in files.path.iterdir()}
    monkeypatch.setenv("HOME", "/nonexistent")
    files.path.chmod(0o500)
    try:
        load_model(files)
    finally:
        files.path.chmod(0o700)
    assert {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in files.path.iterdir()} == before


def test_loading_is_silent(files: ModelFiles, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(files)
    change_config(files.path, num_hidden_layers=3)
    with pytest.raises(ModelError):
        load_model(files)
    assert capfd.readouterr() == ("", "")


def test_looking_for_nan_is_cheap() -> None:
    """No tensor of the weights' size is made: one pass over them."""
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            sizes.extend(
                part.numel()
                for part in (made if isinstance(made, tuple) else (made,))
                if isinstance(part, torch.Tensor)
            )
            return made

    layer = torch.nn.Linear(512, 512, bias=False)
    with Sizes():
        load._refuse_not_finite(ModelFiles("x", Path("x")), layer, torch.float32)
    assert sizes and max(sizes) <= 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), RuntimeError("can't allocate memory: you tried")])
def test_too_large_for_memory(error: Exception, files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    with pytest.raises(DoesNotFitError, match="tiny does not fit into the memory of cpu"):
        load_model(files)


def test_an_unsupported_family_is_refused_by_name(files: ModelFiles) -> None:
    change_config(files.path, model_type="bloom")
    with pytest.raises(ModelError, match="'bloom' cannot run with hybrid attention"):
        load_model(files)


def test_yarn_stretches_rotary_positions(files: ModelFiles) -> None:
    plain, long = load_model(files), load_model(files, yarn_context=2048)
    assert long.trained_context == 512  # what it was made for does not change
    assert long.model.config.rope_parameters["factor"] == 4.0
    assert long.model.config.max_position_embeddings == 2048
    slow = plain.model.model.rotary_emb.inv_freq[-1] / long.model.model.rotary_emb.inv_freq[-1]
    assert slow == pytest.approx(4.0)  # the slowest pair turns four times slower, the fastest as before
    assert long.model.model.rotary_emb.inv_freq[0] == plain.model.model.rotary_emb.inv_freq[0]


def test_yarn_within_the_trained_context_changes_nothing(files: ModelFiles) -> None:
    assert load_model(files, yarn_context=512).model.config.rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize("name", ["learned positions", "scaled already", "per kind of layer"])
def test_yarn_is_refused_without_plain_rotary_positions(name: str, files: ModelFiles) -> None:
    if name == "learned positions":
        config: Any = GPT2Config(n_positions=128)
    elif name == "scaled already":
        rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
        change_config(files.path, rope_parameters=rope)
        config = AutoConfig.from_pretrained(files.path)
    else:
        from transformers import Gemma3TextConfig

        config = Gemma3TextConfig()
    with pytest.raises(ModelError, match="--yarn"):
        stretch(config, 1 << 20)


def test_a_link_to_the_weights_is_followed(files: ModelFiles, tmp_path: Path) -> None:
    """As hubs' caches have it."""
    blob = tmp_path / "blob"
    (files.path / "model.safetensors").rename(blob)
    (files.path / "model.safetensors").symlink_to(blob)
    load_model(files)
