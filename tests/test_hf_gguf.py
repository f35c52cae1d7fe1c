"""GGUF files: converted once to the model they hold, and refused in one line when they are damaged."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from hgca_cli.errors import DoesNotFitError, ModelError
from hgca_cli.events import Event, Notice
from hgca_cli.hf import gguf_convert, model_cache
from hgca_cli.hf.gguf_check import check_gguf
from hgca_cli.hf.load import load_model
from hgca_cli.hf.registry import resolve
from tests.models import gguf_bytes, gguf_string, gguf_tensor, write_gguf
from tests.tiny_engine import tiny_model, tiny_tokenizer

ARRAY = struct.pack("<I", 9)
IDS = torch.tensor([[5, 9, 200, 40, 3, 77, 120, 8]])
VOCABULARY = gguf_string("tokenizer.ggml.tokens") + ARRAY + struct.pack("<IQ", 8, 1) + gguf_string("a")
TOKENIZER = [VOCABULARY, gguf_string("tokenizer.ggml.model") + struct.pack("<I", 8) + gguf_string("gpt2")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_converted_model_gives_the_same_logits(tmp_path: Path, cache: Path) -> None:
    told: list[Event] = []
    file = write_gguf(tmp_path / "tiny.gguf")
    files = resolve(str(file), notify=told.append)
    loaded = load_model(files)
    with torch.no_grad():
        ours, theirs = loaded.model(IDS).logits, tiny_model()(IDS).logits
    assert torch.allclose(ours, theirs, atol=1e-5), (ours - theirs).abs().max()
    text = "the cat sat<|end|><|user|>"
    assert loaded.tokenizer.encode(text, special=True) == tiny_tokenizer().encode(text, special=True)
    assert loaded.tokenizer.has_template
    assert tiny_tokenizer().hf.convert_tokens_to_ids("<|end|>") in loaded.tokenizer.end_ids
    assert any(isinstance(event, Notice) and "converting tiny.gguf" in event.text for event in told)
    assert [p.name for p in (cache / "models").iterdir()] == [files.path.name]  # nothing half-made is left


def test_quantised_weights_are_what_the_file_says(tmp_path: Path) -> None:
    q8 = gguf.GGMLQuantizationType.Q8_0
    loaded = load_model(resolve(str(write_gguf(tmp_path / "q8.gguf", quant=q8))))
    name = "model.embed_tokens.weight"
    original = tiny_model().state_dict()[name].numpy()
    expected = gguf.quants.dequantize(gguf.quants.quantize(original, q8), q8)
    assert abs(expected - original).max() > 0
    assert (loaded.model.state_dict()[name].numpy() == expected).all()


def test_converted_once_and_again_when_the_file_changes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    told: list[Event] = []
    first = resolve(str(file), notify=told.append).path
    before = len(told)
    assert resolve(str(file), notify=told.append).path == first
    assert resolve(str(tmp_path), notify=told.append).path == first  # a directory of one .gguf is that file
    assert len(told) == before
    os.utime(file, (1, 1))
    assert resolve(str(file), notify=told.append).path != first
    assert capfd.readouterr() == ("", "")  # no bars or warnings of the libraries below


def test_a_killed_conversion_leaves_no_model(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")

    def half(path: Path, target: Path, *_: object) -> None:
        (target / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gguf_convert, "_dequantise", half)
        resolve(str(file))
    assert list((cache / "models").iterdir()) == []
    assert (resolve(str(file)).path / "model.safetensors").exists()


def test_another_process_was_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    dequantise = gguf_convert._dequantise

    def meanwhile(*told: Any) -> None:
        monkeypatch.setattr(gguf_convert, "_dequantise", dequantise)
        resolve(str(file))
        dequantise(*told)

    monkeypatch.setattr(gguf_convert, "_dequantise", meanwhile)
    assert (resolve(str(file)).path / "model.safetensors").exists()


def test_missing_tensor_is_not_made_up(tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", leave_out="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ModelError, match=r"weights are missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        resolve(str(file))
    assert list((cache / "models").iterdir()) == []


def test_unknown_architecture(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"odd\.gguf cannot be converted: .*perceptron"):
        resolve(str(write_gguf(tmp_path / "odd.gguf", arch="perceptron")))


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"bare\.gguf has no tokenizer"):
        resolve(str(write_gguf(tmp_path / "bare.gguf", tokenizer=False)))


def test_two_files_in_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelError, match=r"several models: a\.gguf, b\.gguf"):
        resolve(str(tmp_path))


def test_disk_too_small_is_said_with_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(model_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DoesNotFitError, match=r"needs .* KiB .*, 1000 B are free"):
        resolve(str(file))


TENSOR = gguf_tensor("token_embd.weight", (32,))
DATA = b"\0" * 400
DAMAGED = {
    "empty": (b"", "not a GGUF file"),
    "bad magic": (b"GGML" + b"\0" * 64, "not a GGUF file"),
    "only the magic": (b"GGUF", "cut short"),
    "version 0": (gguf_bytes(TOKENIZER, [TENSOR], version=0, data=DATA), "version 0"),
    "version 99": (gguf_bytes(TOKENIZER, [TENSOR], version=99, data=DATA), "version 99"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + DATA, "version 50331648"),
    "no tensors": (gguf_bytes(TOKENIZER, [], data=DATA), "0 tensors"),
    "2^64-1 tensors": (gguf_bytes(counts=(2**64 - 1, 0), data=DATA), "18,446,744,073,709,551,615 tensors"),
    "2^64-1 keys": (gguf_bytes(counts=(1, 2**64 - 1), data=DATA), "18,446,744,073,709,551,615 keys"),
    "name of 2^63 bytes": (gguf_bytes([struct.pack("<Q", 2**63)], [TENSOR], data=DATA), "a name of"),
    "name that is no text": (gguf_bytes([struct.pack("<Q", 2) + b"\xff\xfe"], [TENSOR], data=DATA), "cannot be read"),
    "value of type 77": (gguf_bytes([gguf_string("a") + struct.pack("<I", 77)], [TENSOR], data=DATA), "type 77"),
    "array of 2^60 bytes": (
        gguf_bytes([gguf_string("a") + ARRAY + struct.pack("<IQ", 0, 2**60)], [TENSOR], data=DATA), "cut short"
    ),
    "array of 2^60 strings": (
        gguf_bytes([gguf_string("a") + ARRAY + struct.pack("<IQ", 8, 2**60)], [TENSOR], data=DATA), "strings"
    ),
    "array of arrays": (
        gguf_bytes([gguf_string("a") + ARRAY + struct.pack("<IQ", 9, 1)], [TENSOR], data=DATA), "values of type 9"
    ),
    "key twice": (gguf_bytes([VOCABULARY, *TOKENIZER], [TENSOR], data=DATA), "twice"),
    "tensor twice": (gguf_bytes(TOKENIZER, [TENSOR, TENSOR], data=DATA), "twice"),
    "tensor type 99": (gguf_bytes(TOKENIZER, [gguf_tensor("a", (32,), kind=99)], data=DATA), "type 99"),
    "tensor that cannot be dequantised": (
        gguf_bytes(TOKENIZER, [gguf_tensor("a", (32,), kind=24)], data=DATA), "type I8, which cannot be dequantised"
    ),
    "too many dimensions": (gguf_bytes(TOKENIZER, [gguf_tensor("a", (1,) * 9)], data=DATA), "9 dimensions"),
    "shape of 2^126 numbers": (gguf_bytes(TOKENIZER, [gguf_tensor("a", (2**63, 2**63))], data=DATA), "beyond the file"),
    "shape with a zero": (gguf_bytes(TOKENIZER, [gguf_tensor("a", (0, 4))], data=DATA), "impossible shape"),
    "half a block": (gguf_bytes(TOKENIZER, [gguf_tensor("a", (33,), kind=8)], data=DATA), "impossible shape"),
    "offset beyond the end": (
        gguf_bytes(TOKENIZER, [gguf_tensor("a", (32,), offset=2**40)], data=DATA), "beyond the file"
    ),
    "tensors over each other": (
        gguf_bytes(TOKENIZER, [gguf_tensor(str(i), (64,)) for i in range(9)], data=DATA), "overlap"
    ),
}  # fmt: skip


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(name: str, tmp_path: Path) -> None:
    content, message = DAMAGED[name]
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        resolve(str(file))
    assert caught.value.exit_code == 5
    assert str(file) in caught.value.message and "\n" not in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "cache").exists()  # refused before anything is written


def test_cut_anywhere(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    check_gguf(tmp_path / "whole.gguf")
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 200, 7), *range(200, len(whole) - 1, len(whole) // 200), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            check_gguf(cut)


def test_flipped_bytes_never_hang_or_escape(tmp_path: Path) -> None:
    """Each byte of the first part set to 255: sound or refused, and soon."""
    whole = bytearray(write_gguf(tmp_path / "whole.gguf").read_bytes())
    bad, refused = tmp_path / "bad.gguf", 0
    began = time.monotonic()
    for at in range(0, 1200, 3):
        flipped = whole.copy()
        flipped[at] = 255
        bad.write_bytes(flipped)
        try:
            check_gguf(bad)
        except ModelError:
            refused += 1
    assert refused > 100
    assert time.monotonic() - began < 60
