"""Models that shall go: by name, by alias, packed weights with them or alone; a link's target stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hgca_cli.errors import ModelError
from hgca_cli.hf import removing
from hgca_cli.hf.places import CONVERTED, HUB, PACKED
from hgca_cli.hf.registry import resolve
from hgca_cli.hf.removing import of_name, remove
from tests.models import write_gguf

REVISIONS = ("0" * 40, "1" * 40)


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A converted model, one fetched in two revisions, packed weights of both, and a link."""
    root, hub = tmp_path / "cache", tmp_path / "hub"
    monkeypatch.setenv("HGCA_CACHE_DIR", str(root))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(removing, "aliases", lambda: {"big": "org/big"})
    write(root / "models/small-0123/config.json", "{}")
    write(root / "models/small-model-4567/config.json", "{}")
    write(tmp_path / "elsewhere/config.json", "{}")
    (root / "models/linked").symlink_to(tmp_path / "elsewhere")
    for number, model in enumerate(("org/big", "small-0123")):
        write(root / f"packed/{number}/index.json", json.dumps({"model": model, "quant": "q4"}))
    made = {"model": "../small-model.gguf", "folder": str(root / "models/small-model-4567"), "quant": "file"}
    write(root / "packed/2/index.json", json.dumps(made))
    repo = hub / "models--org--big"
    for revision in REVISIONS:
        blob = write(repo / "blobs" / revision[:4], revision)
        (repo / "snapshots" / revision).mkdir(parents=True)
        (repo / "snapshots" / revision / "config.json").symlink_to(blob)
        write(repo / "refs" / revision[:2], revision)
    return root


def names(found: list[tuple[str, object]]) -> list[tuple[str, str]]:
    return [(kind, one.name) for kind, one in found]  # type: ignore[attr-defined]


def test_a_model_is_found_by_its_names(cache: Path) -> None:
    big = [(HUB, "org/big"), (PACKED, "org/big --quant q4")]
    assert names(of_name("org/big")) == names(of_name("big")) == big
    assert names(of_name("big", packed_only=True)) == names(of_name("org/big --quant q4")) == big[1:]
    assert names(of_name("small")) == [(CONVERTED, "small-0123")]
    assert names(of_name("small-0123")) == [(CONVERTED, "small-0123"), (PACKED, "small-0123 --quant q4")]
    packed = [(PACKED, "../small-model.gguf --quant file")]
    for name in ("small-model", "small-model-4567", "../small-model.gguf"):  # of a file that is gone by now
        assert names(of_name(name)) == [(CONVERTED, "small-model-4567"), *packed]
        assert names(of_name(name, packed_only=True)) == packed
    assert names(of_name("../small-model.gguf --quant file")) == packed
    for wrong in ("other", "", "org", "sma", "../models/small-0123"):
        with pytest.raises(ModelError, match="no model"):
            of_name(wrong)
    with pytest.raises(ModelError, match="no packed weights of model 'small'"):
        of_name("small", packed_only=True)


def test_a_file_is_known_by_its_path(cache: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(ModelError, match="no model"):
        of_name(str(file))
    folder = resolve(str(file)).path
    assert names(of_name(str(file))) == [(CONVERTED, folder.name)]


def test_what_is_removed_is_gone_and_nothing_else(cache: Path, tmp_path: Path) -> None:
    for kind, one in of_name("big"):
        remove(kind, one)
    assert not (tmp_path / "hub/models--org--big").exists() and sorted(path.name for path in cache.glob("*/*")) == [
        "1", "2", "linked", "small-0123", "small-model-4567",
    ]  # fmt: skip
    for kind, one in [*of_name("linked"), *of_name("small")]:
        remove(kind, one)
    assert (tmp_path / "elsewhere/config.json").exists()
    assert sorted(path.name for path in cache.glob("*/*")) == ["1", "2", "small-model-4567"]
