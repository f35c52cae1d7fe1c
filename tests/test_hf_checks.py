"""Bad model directories: one line, exit code 5, the file named, soon, and nothing executed."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hgca_cli.errors import DoesNotFitError, ModelError
from hgca_cli.hf.checks import check_config, check_weights, tensor_bytes, weights_bytes
from hgca_cli.hf.load import load_model, read_config
from hgca_cli.hf.registry import ModelFiles
from tests.models import change_config, change_weights, raw_safetensors, shard, write_model
from tests.tiny_engine import tiny_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny")


def config_text(text: str | bytes) -> Callable[[Path], Any]:
    return lambda path: (path / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)


def config(**changes: Any) -> Callable[[Path], Any]:
    return lambda path: change_config(path, **changes)


def weights(content: bytes) -> Callable[[Path], Any]:
    return lambda path: (path / "model.safetensors").write_bytes(content)


def file(name: str, content: str | bytes | None) -> Callable[[Path], Any]:
    def change(path: Path) -> None:
        target = path / name
        target.unlink(missing_ok=True)
        if content is not None:
            target.write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def cut(path: Path) -> None:
    target = path / "model.safetensors"
    target.write_bytes(target.read_bytes()[:-100])


def pickles(path: Path) -> None:
    (path / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), path / "pytorch_model.bin")


def no_tokenizer(path: Path) -> None:
    for found in [*path.glob("tokenizer*"), *path.glob("*.jinja")]:
        found.unlink()


def no_second_shard(path: Path) -> None:
    shard(path)
    (path / "model-00002-of-00002.safetensors").unlink()


def poison(value: float) -> Callable[[Path], Any]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value

    return lambda path: change_weights(path, change)


def wrong_head_count(path: Path) -> None:
    change_config(path, num_key_value_heads=4)


def header(name: str = "a", shape: object = (4,), offsets: object = (0, 16), dtype: str = "F32") -> dict[str, Any]:
    return {name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


OVERLAP = header("a") | header("b", offsets=(8, 24))
UP = "model.layers.1.mlp.up_proj.weight"
# what is done to a whole model -> what the one line says; "{}" is the model's directory
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (file("config.json", None), "{}/config.json is missing"),
    "config is not JSON": (config_text("{'a': 1"), "{}/config.json cannot be read: it is not valid JSON"),
    "config is not text": (config_text(b"\xff\xfe\x00"), "{}/config.json cannot be read"),
    "config is a list": (config_text("[]"), "{}/config.json is not a JSON object"),
    "config nests deeply": (config_text('{"a":' * 100_000), "{}/config.json cannot be read"),
    "config is empty": (config_text(""), "{}/config.json cannot be read"),
    "no model_type": (config(model_type=None), "{}/config.json names no model_type"),
    "model_type is a number": (config(model_type=7), "{}/config.json names no model_type"),
    "unknown model_type": (config(model_type="perceptron"), "knows no model family 'perceptron'"),
    "a million layers": (config(num_hidden_layers=10**6), "{}/config.json: num_hidden_layers = 1000000 is not"),
    "head_dim 0": (config(head_dim=0), "{}/config.json: head_dim = 0 is not plausible"),
    "negative heads": (config(num_attention_heads=-4), "num_attention_heads = -4 is not plausible"),
    "vocab of 2^31": (config(vocab_size=2**31), "vocab_size = 2147483648 is not plausible"),
    "layers as text": (config(num_hidden_layers="many"), "num_hidden_layers = many is not plausible"),
    "a nested implausible config": (config(text_config={"hidden_size": 2**40}), "hidden_size = 1099511627776 is not"),
    "an implausible layer in a list": (config(intermediate_size=[48, 2**40]), "intermediate_size = 1099511627776"),
    "2,000 layers": (config(num_hidden_layers=2000), "{}: config.json wants 2,000 layers, the files have 21 tensors"),
    "far more weights than files": (config(intermediate_size=2**20), "{}: config.json describes .* the files have"),
    "unknown activation": (config(hidden_act="perhaps"), "{} cannot be loaded: .*perhaps"),
    "one more layer": (config(num_hidden_layers=3), r"{}: weights are missing: model\.layers\.2.* and 8 more"),
    "one layer less": (config(num_hidden_layers=1), r"{}: weights are unexpected: model\.layers\.1"),
    "wrong head count": (
        wrong_head_count, r"{}: model\.layers\.0\.self_attn\.k_proj\.weight has shape \[16, 32\], .* wants \[32, 32\]"
    ),
    "heads that do not divide": (config(num_key_value_heads=3), r"k_proj.weight has shape .* wants \[24, 32\]"),
    "a tensor is missing": (
        lambda path: change_weights(path, lambda tensors: tensors.pop(UP)), f"weights are missing: {UP}"
    ),
    "a tensor is too much": (
        lambda path: change_weights(path, lambda tensors: tensors.update(extra=torch.zeros(2))),
        "weights are unexpected: extra",
    ),
    "NaN": (poison(float("nan")), f"{{}}: {UP} holds NaN or infinite numbers"),
    "infinite": (poison(float("-inf")), f"{{}}: {UP} holds NaN or infinite numbers"),
    "no weights": (file("model.safetensors", None), r"{} has no model\.safetensors"),
    "weights under another name": (
        lambda path: (path / "model.safetensors").rename(path / "best.safetensors"), r"{} has best\.safetensors, but"
    ),
    "only pickles": (pickles, "{} has only pickle weights"),
    "weights cut short": (cut, r"{}/model\.safetensors is damaged"),
    "weights empty": (weights(b""), r"{}/model\.safetensors is damaged"),
    "header of 2^64-1 bytes": (weights(raw_safetensors({}, length=2**64 - 1)), r"{}/model\.safetensors is damaged"),
    "header is garbage": (weights(raw_safetensors(b"\xff{garbage")), r"{}/model\.safetensors is damaged"),
    "tensors overlap": (weights(raw_safetensors(OVERLAP, bytes(24))), r"{}/model\.safetensors is damaged"),
    "shape overflows": (
        weights(raw_safetensors(header(shape=(2**63, 2**63)), bytes(16))), r"{}/model\.safetensors is damaged"
    ),
    "shape disagrees": (weights(raw_safetensors(header(shape=(5,)), bytes(16))), r"{}/model\.safetensors is damaged"),
    "unknown dtype": (weights(raw_safetensors(header(dtype="F7"), bytes(16))), r"{}/model\.safetensors is damaged"),
    "a shard is missing": (no_second_shard, "index.json names model-00002-of-00002.safetensors, which is missing"),
    "a shard above": (lambda path: shard(path, "../x.safetensors"), r"points outside its directory: '\.\./x"),
    "a shard far away": (lambda path: shard(path, "../../etc/x"), "points outside its directory"),
    "an absolute shard": (lambda path: shard(path, "/etc/passwd"), "points outside its directory: '/etc/passwd'"),
    "an index without a map": (lambda path: shard(path).write_text("{}"), r"index\.json has no weight_map"),
    "an index of numbers": (
        lambda path: shard(path).write_text('{"weight_map": {"a": 1}}'), r"index\.json has no weight_map"
    ),
    "no tokenizer": (no_tokenizer, "{} has no tokenizer"),
    "tokenizer {}": (file("tokenizer.json", "{}"), "the tokenizer in {} cannot be read"),
    "tokenizer of garbage": (file("tokenizer.json", b"\xff\x00"), "the tokenizer in {} cannot be read"),
    "tokenizer settings of garbage": (file("tokenizer_config.json", "]"), "the tokenizer in {} cannot be read"),
    "generation config of garbage": (file("generation_config.json", "]"), "{}/generation_config.json cannot be read"),
}  # fmt: skip


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", BAD)
def test_bad_model(name: str, model: Path) -> None:
    damage, message = BAD[name]
    damage(model)
    with pytest.raises(ModelError, match=message.replace("{}", str(model))) as caught:
        load_model(ModelFiles("tiny", model))
    assert caught.value.exit_code == 5
    assert caught.value.hint
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "Cannot allocate memory"), ValueError("x (os error 12)")])
def test_no_memory_for_a_file_is_no_damage(error: Exception, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("safetensors.safe_open", refuse)
    with pytest.raises(DoesNotFitError, match=r"model\.safetensors cannot be opened: no memory for its .* KiB"):
        tensor_bytes(model / "model.safetensors")


def test_the_undamaged_model_loads(model: Path) -> None:
    """What the cases above differ from by one thing."""
    loaded = load_model(ModelFiles("tiny", model))
    assert loaded.trained_context == 512


def test_code_of_a_model_is_not_run(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = model / "ran"
    (model / "code.py").write_text(f"open({str(marker)!r}, 'w')\n")
    auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoTokenizer": ["code.T", None]}
    change_config(model, model_type="homemade", auto_map=auto_map)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    with pytest.raises(ModelError, match=r"brings its own code, which is not run.*--trust-remote-code"):
        load_model(ModelFiles("tiny", model))
    change_config(model, model_type="llama", auto_map=auto_map)  # a known family: transformers' own code is used
    load_model(ModelFiles("tiny", model))
    settings = model / "tokenizer_config.json"
    kept = json.loads(settings.read_text())
    settings.write_text(json.dumps(kept | {"auto_map": auto_map, "tokenizer_class": "T"}))
    try:
        load_model(ModelFiles("tiny", model))
    except ModelError as error:
        assert "tokenizer" in error.message
    assert not marker.exists()


def test_code_of_a_model_may_be_trusted(model: Path) -> None:
    change_config(model, model_type="homemade", auto_map={"AutoConfig": "code.Config"})
    assert check_config(model, trust_remote_code=True)["model_type"] == "homemade"


def test_a_pickle_is_never_opened(model: Path) -> None:
    marker = model / "ran"

    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(marker),)

    (model / "model.safetensors").unlink()
    torch.save(Trap(), model / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle"):
        load_model(ModelFiles("tiny", model))
    assert not marker.exists()


def test_reading_the_config_touches_no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert read_config(ModelFiles("tiny", model)).num_hidden_layers == 2


def test_a_tokenizer_larger_than_the_model(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    extra = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"].append({"id": 320, "content": "<|late|>", **extra})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"the tokenizer has id (\d+), the model only 320 embeddings"):
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary.update({f"word{i}": i for i in range(len(vocabulary), 321)})
        (model / "tokenizer.json").write_text(json.dumps(tokenizer))
        load_model(ModelFiles("tiny", model))


def test_shards_are_loaded(model: Path) -> None:
    whole = load_model(ModelFiles("tiny", model))
    shard(model)
    parts = load_model(ModelFiles("tiny", model))
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(whole.model(ids).logits, parts.model(ids).logits)
    assert len(check_weights(model)) == 2


def test_bytes_are_counted_from_headers(model: Path) -> None:
    numbers = sum(p.numel() for p in tiny_model().parameters())
    assert weights_bytes(model, 4) == 4 * numbers == 2 * weights_bytes(model, 2)
    sizes = tensor_bytes(model / "model.safetensors")
    assert sizes[UP] == (48 * 32, 48 * 32 * 4)


def test_every_cut_of_a_header_is_refused(tmp_path: Path) -> None:
    whole = raw_safetensors(header(), bytes(16))
    target = tmp_path / "x.safetensors"
    target.write_bytes(whole)
    assert tensor_bytes(target) == {"a": (4, 16)}
    for length in range(len(whole)):
        target.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"x\.safetensors is damaged"):
            tensor_bytes(target)
    target.write_bytes(struct.pack("<Q", 2**40) + whole)
    with pytest.raises(ModelError, match="damaged"):
        tensor_bytes(target)
