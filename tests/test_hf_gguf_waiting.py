"""Matrices of a GGUF file that are packed from it, and written as safetensors only for who wants them so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file

from hgca_cli.errors import DoesNotFitError, ModelError
from hgca_cli.events import Event, Notice
from hgca_cli.hf import gguf_convert, gguf_stream, model_cache, packed_files
from hgca_cli.hf.fingerprint import fingerprint_of
from hgca_cli.hf.gguf_waiting import Waiting
from hgca_cli.hf.load import LoadedModel, load_model
from hgca_cli.hf.packed_gpu import packed_layers
from hgca_cli.hf.packing import TYPES_FILE
from hgca_cli.hf.places import converted_places
from hgca_cli.hf.registry import ModelFiles, resolve
from tests.cli_process import here
from tests.models import write_gguf, written

Q8 = gguf.GGMLQuantizationType.Q8_0
EMBEDDING, NORM, DOWN = "model.embed_tokens.weight", "model.norm.weight", "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model is as a large one: kept in bf16."""
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_convert, "FULL_PRECISION_BYTES", 0)
    monkeypatch.setattr(packed_files, "SPARE_BYTES", 0)


def whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFiles:
    """The same file, of which nothing waits."""
    with monkeypatch.context() as patch:
        patch.setattr(gguf_stream, "_may_wait", lambda *_: [])
        return resolve(str(shutil.copy(file, file.with_name("whole.gguf"))))


def tiles(loaded: LoadedModel) -> list[torch.Tensor]:
    return [layer.quick.grid.tiles for layer in packed_layers(loaded.model) if layer.quick.grid]


@pytest.mark.parametrize("quant", ["file", "q8", "q4"])
@pytest.mark.parametrize("leave_out", ["", "lm_head.weight"])
def test_they_are_packed_as_from_safetensors(
    quant: str, leave_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_stream, "FIRST_ROWS", 8)
    file = write_gguf(tmp_path / "q8.gguf", quant=Q8, leave_out=leave_out)
    files, other = resolve(str(file)), whole(file, monkeypatch)
    waiting = Waiting.of(files.path)
    assert waiting is not None and Waiting.of(other.path) is None
    assert {EMBEDDING, "model.layers.1.self_attn.q_proj.weight"} <= waiting.names
    assert not {NORM, DOWN} & waiting.names  # down_proj has rows of 48 numbers, no whole blocks: it is not packed
    mine, want = load_file(files.path / "model.safetensors"), load_file(other.path / "model.safetensors")
    assert all(torch.equal(one, want[name]) is (name not in waiting.names) for name, one in mine.items())
    assert all(torch.equal(waiting.numbers(name), want[name]) for name in waiting.names)
    got, wanted = load_model(files, quant=quant), load_model(other, quant=quant)
    assert len(tiles(got)) == len(tiles(wanted)) > 8
    assert all(torch.equal(one, two) for one, two in zip(tiles(got), tiles(wanted), strict=True))
    assert written(got) == written(wanted)


def test_what_is_packed_is_read_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "q8.gguf", quant=Q8)
    files = resolve(str(file))
    told: list[Event] = []
    first = load_model(files, quant="file", notify=told.append)
    assert any(isinstance(event, Notice) and "packing the weights" in event.text for event in told)

    def asked(*_: object) -> torch.Tensor:
        raise AssertionError("the GGUF file is read once more")

    monkeypatch.setattr(Waiting, "numbers", asked)
    file.unlink()
    again = load_model(files, quant="file")
    assert all(torch.equal(one, two) for one, two in zip(tiles(first), tiles(again), strict=True))
    assert first.fingerprint == again.fingerprint


@pytest.mark.parametrize("dtype", ["auto", "bf16"])
def test_who_wants_them_whole_has_them_written(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "q8.gguf", quant=Q8)
    files, other = resolve(str(file)), whole(file, monkeypatch)
    packed, plain = fingerprint_of(files, "file"), fingerprint_of(files)
    told: list[Event] = []
    got, want = load_model(files, dtype=dtype, notify=told.append), load_model(other, dtype=dtype)
    assert [event.text.split(" (")[0] for event in told if isinstance(event, Notice)][:1] == [
        "converting q8.gguf to safetensors"
    ]
    assert Waiting.of(files.path) is None
    mine, theirs = got.model.state_dict(), want.model.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(one, theirs[name]) for name, one in mine.items())
    assert (fingerprint_of(files, "file"), fingerprint_of(files)) == (packed, plain)  # sessions go on
    told.clear()
    file.unlink()
    assert written(load_model(files, dtype=dtype, notify=told.append)) == written(got) and not told


def test_another_file_is_another_model(tmp_path: Path) -> None:
    one = resolve(str(write_gguf(tmp_path / "one.gguf", quant=Q8)))
    file = write_gguf(tmp_path / "two.gguf", quant=Q8)
    same = resolve(str(file))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    other = resolve(str(file))
    assert fingerprint_of(one) == fingerprint_of(same) != fingerprint_of(other)


def test_the_file_is_gone_or_another(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "q8.gguf", quant=Q8)
    files = resolve(str(file))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelError, match=rf"still in {file}, which has changed") as caught:
        load_model(files, quant="file")
    assert f"hgca models rm {files.path.name}" in (caught.value.hint or "")
    file.unlink()
    for quant in ("none", "file"):
        with pytest.raises(ModelError, match=rf"weights of .* are still in {file}: No such file"):
            load_model(files, quant=quant)
    run = here("chat", "-m", str(files.path), "-p", "hi", HGCA_CACHE_DIR=str(tmp_path / "cache"))
    last = run.stderr.splitlines()[-1]
    assert run.returncode == 5 and last.startswith(b"hgca: error: weights of") and b"Traceback" not in run.stderr
    assert list((tmp_path / "cache" / "packed").iterdir()) == []  # nothing half-written
    assert Waiting.of(files.path) is not None


def test_a_conversion_that_is_cut_short_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "q8.gguf", quant=Q8)
    files, other = resolve(str(file)), whole(file, monkeypatch)
    real, asked = Waiting.numbers, list[str]()

    def some(self: Waiting, name: str) -> torch.Tensor:
        asked.append(name)
        if len(asked) > 3:
            raise KeyboardInterrupt
        return real(self, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Waiting, "numbers", some)
        load_model(files)
    assert Waiting.of(files.path) is not None
    load_model(files)
    mine, want = load_file(files.path / "model.safetensors"), load_file(other.path / "model.safetensors")
    assert all(torch.equal(one, want[name]) for name, one in mine.items())


def test_room_is_asked_for_when_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage: Any = type("Usage", (), {"free": 20_000})  # enough for norms and down_proj, not for the rest
    monkeypatch.setattr(model_cache.shutil, "disk_usage", lambda _: usage)
    files = resolve(str(write_gguf(tmp_path / "q8.gguf", quant=Q8)))
    assert load_model(files, quant="file").quant == "file"
    with pytest.raises(DoesNotFitError, match=r"converting q8\.gguf needs .* KiB .*, 19\.5 KiB are free"):
        load_model(files)
    monkeypatch.setattr(model_cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 40}))
    load_model(files)


def test_floats_are_converted_at_once(tmp_path: Path) -> None:
    for kind in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16):
        files = resolve(str(write_gguf(tmp_path / f"{kind.name}.gguf", quant=kind)))
        assert Waiting.of(files.path) is None and "file" not in json.loads((files.path / TYPES_FILE).read_text())


def test_holes_take_no_disk(tmp_path: Path) -> None:
    with gguf_stream.WeightsFile.new(tmp_path / "m", {"a": (1 << 12, 1 << 12), "b": (4,)}, torch.bfloat16) as file:
        file.write("b", torch.arange(4).bfloat16())
        file.finish()
    assert (tmp_path / "m").stat().st_size > 1 << 25
    folder = tmp_path / "cache" / "models" / "one"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (tmp_path / "m").rename(folder / "model.safetensors")
    place = next(place for place in converted_places() if Path(place.path).is_relative_to(tmp_path))
    assert [one.bytes < 1 << 20 for one in place.models if one.name == "one"] == [True]
    assert load_file(folder / "model.safetensors")["b"].tolist() == [0, 1, 2, 3]


def test_a_person_is_told_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"HGCA_CACHE_DIR": str(tmp_path / "cache")}
    quantised, floats = (
        write_gguf(tmp_path / f"{kind.name}.gguf", quant=kind) for kind in (Q8, gguf.GGMLQuantizationType.F16)
    )
    told = here("pull", str(quantised), **place).stderr.splitlines()
    assert [line.split(b" (once; ")[0] for line in told[:-1]] == [b"reading Q8_0.gguf"] and told[-1].startswith(
        b"read in"
    )
    told = here("pull", str(floats), **place).stderr.splitlines()
    assert told[0].startswith(b"converting F16.gguf to safetensors in bf16") and told[1].startswith(b"converted in")
    run = here("chat", "-m", str(quantised), "-p", "hi", "-n", "2", "--quant", "none", **place)
    assert run.returncode == 0 and run.stderr.startswith(b"converting Q8_0.gguf to safetensors (")


@pytest.mark.parametrize(
    "change",
    [
        {"file": None}, {"file": 3}, {"digest": None}, {"dtype": "int8"}, {"dtype": "__class__"}, {"waiting": "all"},
        {"waiting": [1]}, {"waiting": {"a": 1}},
    ],
)  # fmt: skip
def test_what_does_not_tell_where_they_are(change: dict[str, Any], tmp_path: Path) -> None:
    files = resolve(str(write_gguf(tmp_path / "q8.gguf", quant=Q8)))
    told = json.loads((files.path / TYPES_FILE).read_text()) | change
    (files.path / TYPES_FILE).write_text(json.dumps(told))
    for quant in ("file", "none"):
        with pytest.raises(ModelError, match=r"gguf\.json does not tell where the weights are"):
            load_model(files, quant=quant)


def test_a_name_that_is_no_weight(tmp_path: Path) -> None:
    files = resolve(str(write_gguf(tmp_path / "q8.gguf", quant=Q8)))
    told = json.loads((files.path / TYPES_FILE).read_text())
    (files.path / TYPES_FILE).write_text(json.dumps(told | {"waiting": [*told["waiting"], "other.weight"]}))
    with pytest.raises(ModelError, match=r"model\.safetensors is of another model"):
        load_model(files)


def test_a_copy_elsewhere_knows_where_they_are(tmp_path: Path) -> None:
    files = resolve(str(write_gguf(tmp_path / "q8.gguf", quant=Q8)))
    there = ModelFiles("copy", shutil.copytree(files.path, tmp_path / "copy"))
    assert written(load_model(there, quant="file")) == written(load_model(files, quant="file"))
    assert written(load_model(there)) == written(load_model(files))
