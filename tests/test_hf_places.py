"""Where models are, from directories the test makes: sizes, room, what is left, and that looking changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hgca_cli.errors import ModelError
from hgca_cli.hf import places
from hgca_cli.hf.here import generation_settings
from tests.cli_process import environment

CONFIG = {"config.json": "{}", "tokenizer.json": "{}", "model.safetensors": "x" * 90}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_converted_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (empty,) = places.converted_places()
    assert empty.models == () and not (tmp_path / "cache").exists()
    write(tmp_path / "cache/models/b", {"config.json": "{}", "deep/model": "12345678"})
    write(tmp_path / "cache/models/a", {"model": "123"})
    left = write(tmp_path / "cache/models/.making-x", {"model/part": "1234"})
    os.utime(left, (time.time() - 7200,) * 2)
    (found,) = places.converted_places()
    assert found.path == str(tmp_path / "cache") and found.chosen == "HGCA_CACHE_DIR" and found.refusal == ""
    assert [(one.name, one.bytes, one.whole) for one in found.models] == [("a", 3, False), ("b", 10, True)]
    (making,) = found.leftovers
    assert making.path == str(left) and making.bytes == 4 and 7200 <= making.seconds < 7300
    assert found.free is not None and found.free > 0
    write(tmp_path / f"hgca-cache-{os.getuid()}" / "models/c", {"config.json": "{}"})
    spare = places.converted_places()[1]
    assert spare.spare and spare.chosen == "" and [one.name for one in spare.models] == ["c"]


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"file": ""})
    assert places.refusal(tmp_path / "not/there/yet") == "" and sorted(tmp_path.iterdir()) == [tmp_path / "file"]
    assert "directory" in places.refusal(tmp_path / "file").lower()
    assert "directory" in places.refusal(tmp_path / "file/below/it").lower()
    monkeypatch.setenv("HGCA_CACHE_DIR", "~nobody-of-that-name/x")
    (place,) = places.converted_places()
    assert "HGCA_CACHE_DIR" in place.refusal and place.models == ()


HUB = """
import json, dataclasses
from hgca_cli.hf.places import hub_place
print(json.dumps(dataclasses.asdict(hub_place())))
"""


def hub(home: Path) -> dict[str, object]:
    """In a process of its own: huggingface_hub reads HF_HOME when it is imported."""
    import json

    variables = {name: one for name, one in environment(HF_HOME=str(home)).items() if name != "HF_HUB_CACHE"}
    done = subprocess.run([sys.executable, "-c", HUB], capture_output=True, text=True, check=True, env=variables)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_hubs_cache(tmp_path: Path) -> None:
    nothing = hub(tmp_path / "none")
    assert nothing["models"] == [] and nothing["odd"] == [] and not (tmp_path / "none").exists()
    assert nothing["chosen"] == "HF_HOME" and nothing["path"] == str(tmp_path / "none" / "hub")
    for name, files in {"models--org--whole": CONFIG, "models--org--part": {"config.json": "{}"},
                        "datasets--org--data": {"x": "y"}}.items():  # fmt: skip
        write(tmp_path / "hub" / name / "snapshots/abc", files)
        write(tmp_path / "hub" / name, {"refs/main": "abc"})
    write(tmp_path / "hub/models--org--part/blobs", {"f00.incomplete": "12345"})
    write(tmp_path / "hub/models--org--broken", {"refs/main": "abc"})
    found = hub(tmp_path)
    models = {one["name"]: one["whole"] for one in found["models"]}  # type: ignore[attr-defined]
    assert models == {"org/part": False, "org/whole": True}
    assert [one["bytes"] for one in found["leftovers"]] == [5]  # type: ignore[attr-defined]
    assert len(found["odd"]) == 1 and "broken" in str(found["odd"])  # type: ignore[arg-type]


def test_how_a_model_wants_to_be_sampled(tmp_path: Path) -> None:
    assert generation_settings(tmp_path) == {}
    write(tmp_path, {"generation_config.json": '{"do_sample": true, "temperature": 0.6, "top_k": 20}'})
    assert {"temperature": 0.6, "top_k": 20}.items() <= generation_settings(tmp_path).items()
    write(tmp_path, {"generation_config.json": "{"})
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be read"):
        generation_settings(tmp_path)


def test_weights_that_were_packed_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert places.packed_models() == ()
    index = '{"model": "org/eight", "quant": "q4"}'
    write(tmp_path / "cache/packed/eight-1-q4", {"index.json": index, "weights.bin": "x" * 100})
    write(tmp_path / "cache/packed/odd", {"weights.bin": "12"})
    write(tmp_path / "cache/packed/.making-z", {"weights.bin": "123"})
    told = [(one.name, one.bytes, one.whole) for one in places.packed_models()]
    assert told == [("org/eight --quant q4", 100 + len(index), True), ("odd", 2, False)]
    (making,) = places.converted_places()[0].leftovers
    assert making.bytes == 3
