"""Weights where they are in their files: the same model, and nothing that torch asks the system to be granted."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from hgca_cli.hf import gguf_convert, mapped, packed_files
from hgca_cli.hf import load as hf_load
from hgca_cli.hf.gguf_waiting import Waiting
from hgca_cli.hf.load import load_model
from hgca_cli.hf.mapped import nothing, tensors_of, too_large
from hgca_cli.hf.registry import ModelFiles, resolve
from tests.models import shard, write_gguf, write_model, written
from tests.tiny_engine import tiny_model


def test_tensors_are_those_of_the_file(tmp_path: Path) -> None:
    kinds = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    want = {str(kind): torch.arange(24).view(2, 3, 4).to(kind) for kind in kinds} | {"one": torch.tensor(3.5)}
    save_file(want, tmp_path / "a.safetensors", metadata={"format": "pt"})
    got = tensors_of(tmp_path / "a.safetensors")
    assert got.keys() == want.keys() == load_file(tmp_path / "a.safetensors").keys()
    assert all(torch.equal(got[name], one) and got[name].dtype is one.dtype for name, one in want.items())


def test_nothing_is_zeros_of_a_shape() -> None:
    large = nothing(torch.Size((1 << 10, 1 << 10, 1 << 12)), torch.bfloat16)  # 8 GiB
    assert large.shape == (1 << 10, 1 << 10, 1 << 12) and large.is_contiguous() and float(large[17, 3, 5]) == 0.0


@pytest.mark.parametrize("quant", ["none", "q8"])
def test_files_larger_than_the_memory_are_opened(quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ModelFiles("tiny", write_model(tmp_path, model=tiny_model().to(torch.bfloat16)))
    shard(tmp_path)
    want = load_model(files, quant=quant)
    assert not too_large(tmp_path.glob("*.safetensors"))
    monkeypatch.setattr(mapped, "LARGE", 0.0)

    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("unable to mmap")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", refused)
    got = load_model(files, quant=quant)
    for one, other in zip(got.model.parameters(), want.model.parameters(), strict=True):
        assert torch.equal(one, other)
    monkeypatch.setattr(hf_load, "too_large", lambda _: False)
    assert got.model.generation_config.to_dict() == want.model.generation_config.to_dict()
    assert written(got) == written(want)


def test_a_files_holes_are_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As safetensors a GGUF file's weights may be several times the memory: of 15 billion 30 GB were asked for, and refused."""
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_convert, "FULL_PRECISION_BYTES", 0)
    monkeypatch.setattr(packed_files, "SPARE_BYTES", 0)
    files = resolve(str(write_gguf(tmp_path / "q8.gguf", quant=gguf.GGMLQuantizationType.Q8_0)))
    assert Waiting.of(files.path) is not None

    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("unable to mmap")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", refused)
    assert len(written(load_model(files, quant="file"))) > 30
