"""A GGUF file's weights, tensor by tensor: what transformers' own reader makes of it, in less memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file

from hgca_cli.errors import ModelError
from hgca_cli.hf import gguf_convert, gguf_stream, gguf_tensors
from hgca_cli.hf.gguf_check import check_gguf
from hgca_cli.hf.gguf_stream import WEIGHTS, WeightsFile, write_weights
from hgca_cli.hf.registry import resolve
from tests.models import write_gguf

KINDS = gguf.GGMLQuantizationType
HEAD = "lm_head.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def weights(path: Path) -> dict[str, torch.Tensor]:
    """All of a directory's."""
    return {name: one for file in path.glob("*.safetensors") for name, one in load_file(file).items()}


def by_theirs(file: Path, target: Path, dtype: torch.dtype) -> Path:
    """What transformers' own reader makes of a file."""
    target.mkdir()
    gguf_convert._whole(file, target, dtype)
    return target


@pytest.mark.parametrize("leave_out", ["", HEAD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [KINDS.F32, KINDS.F16, KINDS.BF16, KINDS.Q4_0, KINDS.Q8_0])
def test_the_weights_are_those_of_transformers(
    kind: KINDS, dtype: torch.dtype, leave_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_tensors, "AT_ONCE", 100)  # numbers: some rows at once
    file, out = write_gguf(tmp_path / "tiny.gguf", quant=kind, leave_out=leave_out), tmp_path / "out"
    out.mkdir()
    assert write_weights(file, check_gguf(file), out, dtype) == []
    want = by_theirs(file, tmp_path / "theirs", dtype)
    got, wanted = weights(out), weights(want)
    assert got.keys() == wanted.keys() and (HEAD in got) is (not leave_out)
    assert all(torch.equal(got[name], one) and got[name].dtype is dtype for name, one in wanted.items())
    for name in ("config.json", "generation_config.json"):
        assert json.loads((out / name).read_text()) == json.loads((want / name).read_text())


def test_where_names_are_not_known_transformers_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[str] | None] = []

    def watched(*told: Any) -> list[str] | None:
        tried.append(write_weights(*told))
        return tried[-1]

    monkeypatch.setattr(gguf_stream, "write_weights", watched)
    real = gguf_tensors._names_by_theirs

    def one_less(*told: Any) -> dict[str, str]:
        return {name: to for name, to in real(*told).items() if "layers.1.mlp.down" not in to}

    with monkeypatch.context() as patch:
        patch.setattr(gguf_tensors, "_names_by_theirs", one_less)
        files = resolve(str(write_gguf(tmp_path / "tiny.gguf")))
    assert tried == [None] and [file.name for file in files.path.glob("*.safetensors")] == ["model.safetensors"]

    def of_another_transformers(*_: object) -> None:
        raise AttributeError("TENSOR_PROCESSORS")

    with monkeypatch.context() as patch:
        patch.setattr(gguf_tensors, "_names_by_theirs", of_another_transformers)
        again = resolve(str(write_gguf(tmp_path / "again.gguf")))
    assert tried == [None] and weights(again.path).keys() == weights(files.path).keys()


def test_another_shape_is_not_taken(tmp_path: Path) -> None:
    file, out = write_gguf(tmp_path / "tiny.gguf"), tmp_path / "out"
    out.mkdir()
    contents = check_gguf(file)
    turned = [one._replace(shape=one.shape[::-1]) for one in contents.tensors]
    assert write_weights(file, contents._replace(tensors=turned), out, torch.float32) is None
    assert not list(out.glob("*.safetensors"))


def test_what_is_not_there_is_named_as_before(tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", leave_out="model.norm.weight")
    with pytest.raises(ModelError, match=r"weights are missing: model\.norm\.weight"):
        resolve(str(file))
    assert list((cache / "models").iterdir()) == []


def test_a_tensor_is_written_before_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    floats, write = gguf_tensors._floats, WeightsFile.write

    def reading(tensor: Any, *part: Any) -> Any:
        done.append("read")
        return floats(tensor, *part)

    def writing(self: WeightsFile, name: str, weight: torch.Tensor) -> None:
        done.append("written")
        write(self, name, weight)

    monkeypatch.setattr(gguf_tensors, "_floats", reading)
    monkeypatch.setattr(WeightsFile, "write", writing)
    file, out = write_gguf(tmp_path / "tiny.gguf"), tmp_path / "out"
    out.mkdir()
    assert write_weights(file, check_gguf(file), out, torch.float32) == []
    assert done == ["read", "written"] * 21


def test_a_file_that_is_not_finished_is_gone(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), WeightsFile.new(tmp_path / WEIGHTS, {"a": (4, 3)}, torch.bfloat16):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
