"""Packed weights on disk: read the next time, made anew when they are not these weights, and never in the way."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hgca_cli.errors import ModelError
from hgca_cli.events import Notice
from hgca_cli.hf import packed, packed_files
from hgca_cli.hf.load import LoadedModel, load_model
from hgca_cli.hf.packed_files import PackedFiles
from hgca_cli.hf.registry import ModelFiles
from tests.models import change_weights, write_model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_files, "LEAST", 0)
    monkeypatch.setattr(packed_files, "SPARE_BYTES", 0)
    return tmp_path / "cache/packed"


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles("org/tiny", write_model(tmp_path / "tiny"))


def loaded(files: ModelFiles, quant: str = "q4") -> tuple[LoadedModel, list[str]]:
    told: list[str] = []
    model = load_model(
        files, quant=quant, notify=lambda event: told.append(event.text) if isinstance(event, Notice) else None
    )
    return model, told


def logits(model: LoadedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model.model(torch.tensor([[5, 6, 7, 8]])).logits


def no_rounding(*_: Any) -> bool:
    raise AssertionError("a weight was rounded")


@pytest.mark.parametrize("quant", ["q8", "q4"])
def test_a_second_start_reads_what_the_first_one_rounded(
    quant: str, files: ModelFiles, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, told = loaded(files, quant)
    (folder,) = cache.iterdir()
    assert len(told) == 1 and str(folder) in told[0] and folder.name.startswith("tiny-") and folder.name.endswith(quant)
    index = json.loads((folder / "index.json").read_text())
    assert index["bytes"] == (folder / "weights.bin").stat().st_size > 10_000 and len(index["grids"]) == 14
    with monkeypatch.context() as patched:
        patched.setattr(packed, "round_to_grid", no_rounding)
        patched.setattr(packed, "find_grid", no_rounding)
        second, told = loaded(files, quant)
    assert told == [] and torch.equal(logits(first), logits(second))
    assert second.weights_bytes == first.weights_bytes and second.fingerprint == first.fingerprint
    with pytest.raises(AssertionError):  # the other one is another directory's
        monkeypatch.setattr(packed, "round_to_grid", no_rounding)
        loaded(files, "q8" if quant == "q4" else "q4")
    assert list(cache.iterdir()) == [folder]


def test_a_path_is_the_same_from_everywhere(
    files: ModelFiles, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded(ModelFiles(str(files.path), files.path))
    for folder, name in ((tmp_path, "tiny"), (tmp_path, "./tiny/"), (files.path, "../tiny"), (files.path, ".")):
        monkeypatch.chdir(folder)
        assert loaded(ModelFiles(name, files.path))[1] == []
    assert len(list(cache.iterdir())) == 1
    loaded(files)  # of a hub, by its id
    assert len(list(cache.iterdir())) == 2


def test_other_weights_are_packed_anew(files: ModelFiles, cache: Path) -> None:
    loaded(files)
    change_weights(files.path, lambda tensors: tensors["lm_head.weight"].mul_(2.0))
    (folder,) = cache.iterdir()
    before = json.loads((folder / "index.json").read_text())["fingerprint"]
    changed, told = loaded(files)
    assert len(told) == 1 and "they are kept" in told[0] and list(cache.iterdir()) == [folder]
    assert json.loads((folder / "index.json").read_text())["fingerprint"] == changed.fingerprint != before
    shutil.rmtree(folder)
    assert torch.equal(logits(changed), logits(loaded(files)[0]))


def cut(folder: Path) -> None:
    with (folder / "weights.bin").open("r+b") as file:
        file.truncate(1000)


def forget_a_matrix(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    del index["grids"]["model.layers.1.self_attn.q_proj.weight"]
    (folder / "index.json").write_text(json.dumps(index))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "no json": lambda folder: (folder / "index.json").write_bytes(b"\xff{"),
    "another json": lambda folder: (folder / "index.json").write_text("[1]"),
    "no weights": lambda folder: (folder / "weights.bin").unlink(),
    "a matrix is missing": forget_a_matrix,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_costs_time_only(damage: str, files: ModelFiles, cache: Path) -> None:
    first, _ = loaded(files)
    (folder,) = cache.iterdir()
    DAMAGES[damage](folder)
    again, told = loaded(files)
    assert torch.equal(logits(first), logits(again)) and len(told) in (1, 2)
    if damage != "no weights":  # as if nothing had been there
        assert "is damaged" in told[0]
    loaded(files)
    assert [one.name for one in cache.iterdir()] == [folder.name] and loaded(files)[1] == []


def test_a_disk_without_room_is_left_alone(files: ModelFiles, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_files, "SPARE_BYTES", 1 << 60)
    model, told = loaded(files)
    assert "are free" in told[0] and not list(cache.iterdir()) and model.quant == "q4"


def test_a_disk_that_fills_up_is_told(files: ModelFiles, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = loaded(files)
    shutil.rmtree(cache)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PackedFiles, "_append", full)
    model, told = loaded(files)
    assert told[1] == f"packed weights are not kept: {cache}: No space left on device" and not list(cache.iterdir())
    assert torch.equal(logits(whole), logits(model))


def test_a_cache_that_cannot_be_written_is_told(
    files: ModelFiles, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "file"))
    _, told = loaded(files)
    assert len(told) == 1 and told[0].startswith("packed weights are not kept: ") and str(tmp_path / "file") in told[0]
    monkeypatch.setenv("HGCA_CACHE_DIR", "~nobody-of-that-name/x")
    assert "HGCA_CACHE_DIR" in loaded(files)[1][0]


def test_nothing_is_left_of_weights_that_are_refused(files: ModelFiles, cache: Path) -> None:
    change_weights(files.path, lambda tensors: tensors["lm_head.weight"].fill_(float("nan")))
    with pytest.raises(ModelError, match=r"lm_head\.weight holds NaN"):
        loaded(files)
    assert not list(cache.iterdir())


def test_small_models_are_not_kept(files: ModelFiles, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_files, "LEAST", 10**9)
    assert loaded(files)[1] == [] and not cache.exists()
