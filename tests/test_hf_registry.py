"""A model's name: what it may be, what it is never taken for, and how it gets here."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from hgca_cli.errors import DoesNotFitError, ModelError
from hgca_cli.events import Event, Notice
from hgca_cli.hf import hub, registry
from hgca_cli.hf.registry import DEFAULT, resolve
from tests.models import write_model


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


def test_a_name_that_is_nearly_one_is_told() -> None:
    for spec in ("smolm2-135m", "SmolLM2-135M"):
        with pytest.raises(ModelError, match=f"Did you mean {DEFAULT}?"):
            resolve(spec)
    with pytest.raises(ModelError) as caught:
        resolve("tiny")
    assert "Did you mean" not in str(caught.value)


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
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: ["config.json", "model.bin"])
    with pytest.raises(ModelError, match=r"no safetensors weights, nor a \.gguf file"):
        resolve("org/tiny")


def test_progress_of_a_fetch_is_told(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[Event] = []
    monkeypatch.setattr(hub, "TELL_EVERY_SECONDS", 0.0)
    bar = hub.progress("org/tiny", told.append)(total=4 << 20, unit="B", unit_scale=True, mininterval=0, name="x")
    time.sleep(0.01)
    bar.update(1 << 20)
    bar.close()
    assert Notice("fetching org/tiny: 1.0 MiB of 4.0 MiB") in told
    assert capfd.readouterr() == ("", "")
