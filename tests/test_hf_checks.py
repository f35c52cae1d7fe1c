"""Bad model files: each is one line that names the file, quickly, and nothing in it is run."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hgca_cli.errors import ModelError
from hgca_cli.hf.load import load_model, read_config
from hgca_cli.hf.registry import ModelFiles, resolve
from tests.models import edit_json, rewrite_header, save_tiny, write_gguf

SECONDS = 10.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SECONDS


def load(path: Path) -> Any:
    return load_model(resolve(str(path)), dtype="fp32")


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(path)
    text = str(caught.value)
    assert caught.value.exit_code == 5 and "\n" not in text and len(text) < 600
    assert caught.value.hint
    for word in words:
        assert word in text, text


def test_a_whole_model_loads(model: Path) -> None:
    loaded = load(model)
    assert loaded.trained_context == 512 and loaded.dtype == torch.float32 and 2 in loaded.tokenizer.end_ids
    assert loaded.weights_bytes == sum(p.numel() for p in loaded.model.parameters()) * 4
    assert load(model).fingerprint == loaded.fingerprint


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("no/such/dir/here", "no such file"),
        ("./nothing", "no such file"),
        ("x.gguf", "no such file"),
        ("/", "no model"),
    ],
)
def test_a_path_that_holds_no_model(name: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgca_cli.hf.hub.snapshot", lambda *_, **__: pytest.fail("a path became a hub request"))
    with pytest.raises(ModelError, match=word):
        resolve(name)


def test_a_file_or_an_empty_directory_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path, str(tmp_path), "holds no model")
    with pytest.raises(ModelError, match="is a file"):
        resolve(str(tmp_path / "notes.txt"))


def test_a_hub_id_offline_says_how_to_get_it() -> None:
    with pytest.raises(ModelError, match="hgca pull no-such-org/no-such-model"):
        resolve("no-such-org/no-such-model", offline=True)
    with pytest.raises(ModelError, match="neither an alias"):
        resolve("nosuchalias")


CONFIGS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda f: f.rename(f.with_name("gone")), "holds no model"),
    "not json": (lambda f: f.write_text("{"), "not valid JSON"),
    "not utf-8": (lambda f: f.write_bytes(b"\xff\xfe{}"), "cannot be read"),
    "a list": (lambda f: f.write_text("[]"), "not a JSON object"),
    "nested": (lambda f: f.write_text("[" * 100_000), "cannot be read"),
    "no model_type": (lambda f: edit_json(f, model_type=None), "no model_type"),
    "unknown model_type": (lambda f: edit_json(f, model_type="gpt-17"), "'gpt-17'"),
    "a million layers": (lambda f: edit_json(f, num_hidden_layers=10**6), "num_hidden_layers = 1000000"),
    "no head_dim": (lambda f: edit_json(f, head_dim=0), "head_dim = 0"),
    "huge vocabulary": (lambda f: edit_json(f, vocab_size=2**31), "vocab_size"),
    "text for a number": (lambda f: edit_json(f, hidden_size="wide"), "hidden_size"),
    "one more layer": (lambda f: edit_json(f, num_hidden_layers=3), "missing: model.layers.2"),
    "one layer less": (lambda f: edit_json(f, num_hidden_layers=1), "unexpected: model.layers.1"),
    "other heads": (lambda f: edit_json(f, num_key_value_heads=4), "has shape"),
    "heads that do not divide": (lambda f: edit_json(f, num_attention_heads=3), ""),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config(case: str, model: Path) -> None:
    damage, word = CONFIGS[case]
    damage(model / "config.json")
    refused(model, word, str(model))


def overlap(header: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in header if name != "__metadata__"]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    return header


def overflow(header: dict[str, Any]) -> dict[str, Any]:
    name = next(name for name in header if name != "__metadata__")
    header[name]["shape"] = [2**40, 2**40]
    return header


WEIGHTS: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda f: f.write_bytes(f.read_bytes()[:-100]),
    "cut in half": lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
    "empty": lambda f: f.write_bytes(b""),
    "endless header": lambda f: f.write_bytes(struct.pack("<Q", 2**64 - 1) + f.read_bytes()[8:]),
    "garbage header": lambda f: f.write_bytes(struct.pack("<Q", 100) + b"\xfe" * 200),
    "overlapping": lambda f: rewrite_header(f, overlap),
    "shape overflow": lambda f: rewrite_header(f, overflow),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_safetensors(case: str, model: Path) -> None:
    WEIGHTS[case](model / "model.safetensors")
    refused(model, "model.safetensors", "damaged")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(bad: float, model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = bad
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    refused(model, "model.layers.1.mlp.up_proj.weight", "NaN or infinite")


@pytest.mark.parametrize("shard", ["../../etc/x.safetensors", "/etc/passwd", "sub/x.safetensors", ".."])
def test_a_shard_outside_the_directory(shard: str, model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    refused(model, "index.json", "outside its directory")


def test_a_missing_shard_and_a_bad_index(model: Path) -> None:
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    refused(model, "model-2.safetensors", "missing")
    index.write_text(json.dumps({"weight_map": {"a": 3}}))
    refused(model, "weight_map")


def test_pickles_are_never_opened(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, Any]:
            return Path.touch, (marker,)

    torch.save(Evil(), model / "pytorch_model.bin")
    refused(model, "pickle", "refused")
    assert not marker.exists()


def test_remote_code_is_not_imported(model: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (model / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Model: pass\nclass Config: pass\n")
    auto = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
    edit_json(model / "config.json", model_type="evil", auto_map=auto)
    refused(model, "own code", "--trust-remote-code")
    edit_json(model / "config.json", model_type="llama", auto_map=auto)
    load(model)  # a family transformers knows: its own code is used, the model's is not
    assert not marker.exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": "1.0"}', "\xff"])
def test_a_damaged_tokenizer(content: str, model: Path) -> None:
    (model / "tokenizer.json").write_text(content)
    refused(model, "tokenizer", str(model))


def test_no_tokenizer_at_all(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    refused(model, "tokenizer", str(model))


def test_a_tokenizer_larger_than_the_model(model: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "small", vocab_size=300)
    for file in model.glob("tokenizer*"):
        shutil.copy(file, other)
    refused(other, "embeddings", str(other))


def test_a_read_only_directory_works(model: Path) -> None:
    for path in (*model.iterdir(), model):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert read_config(ModelFiles("x", model)).num_hidden_layers == 2
        load(model)
    finally:
        model.chmod(0o755)


def header(version: int = 3, tensors: int = 1, pairs: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


GGUFS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF file"),
    "bad magic": (b"GGML" + bytes(60), "not a GGUF file"),
    "version 0": (header(0) + bytes(200), "version 0"),
    "version 99": (header(99) + bytes(200), "version 99"),
    "2^64 - 1 tensors": (header(3, 2**64 - 1) + bytes(200), "damaged"),
    "2^64 - 1 keys": (header(3, 1, 2**64 - 1) + bytes(200), "damaged"),
    "zeros": (header() + bytes(400), "no tokenizer"),
    "noise": (header(3, 3, 9) + bytes(range(256)) * 8, "damaged"),
}


@pytest.mark.parametrize("case", GGUFS)
def test_gguf_headers(case: str, tmp_path: Path) -> None:
    content, word = GGUFS[case]
    (tmp_path / "x.gguf").write_bytes(content)
    refused(tmp_path / "x.gguf", "x.gguf", word)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.99])
def test_a_gguf_cut_short(part: float, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])
    refused(file, "x.gguf", "Fetch it again")


def test_gguf_with_an_unknown_tensor_type_or_twice_the_same_tensor(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf")
    good = file.read_bytes()
    name = b"blk.0.attn_k.weight"
    at = good.index(name) + len(name) + 4 + 16  # name, dimension count, two dimensions: the type
    file.write_bytes(good[:at] + struct.pack("<I", 12345) + good[at + 4 :])
    refused(file, "x.gguf", "12345")
    file.write_bytes(good.replace(b"blk.0.ffn_gate.weight", b"blk.0.ffn_dwon.weight").replace(b"ffn_dwon", b"ffn_down"))
    refused(file, "x.gguf")
    file.write_bytes(good.replace(b"attn_k.weight", b"attn_q.weight"))
    refused(file, "x.gguf", "damaged")


def test_gguf_without_a_tokenizer_and_two_in_a_directory(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", with_tokenizer=False)
    refused(tmp_path / "a.gguf", "no tokenizer")
    write_gguf(tmp_path / "b.gguf")
    refused(tmp_path, "a.gguf", "b.gguf", "several")


def test_a_gguf_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "x.gguf")
    told: list[Any] = []
    first = resolve(str(file), notify=told.append)
    assert len(told) == 2 and "converting" in told[0].text
    assert resolve(str(file), notify=told.append) == first and len(told) == 2
    loaded = load_model(first, dtype="fp32")
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("the cat")) == "the cat" and loaded.tokenizer.has_template
    assert not list((tmp_path / "cache" / "models").glob(".converting-*"))
