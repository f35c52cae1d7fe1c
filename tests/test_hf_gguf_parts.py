"""A model in several GGUF files, as llama.cpp's gguf-split leaves it: the first one names them all."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import pytest
import torch

from hgca_cli.errors import ModelError
from hgca_cli.hf import gguf_convert, gguf_tensors
from hgca_cli.hf.gguf_check import check_gguf, parts_of
from hgca_cli.hf.gguf_waiting import Waiting
from hgca_cli.hf.load import load_model
from hgca_cli.hf.registry import resolve
from tests.models import gguf_bytes, gguf_string, gguf_tensor, write_gguf

Q8 = gguf.GGMLQuantizationType.Q8_0
EACH, PARTS = 5, 5


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    (tmp_path / "parts").mkdir()
    found = parts_of(write_gguf(tmp_path / "parts/tiny.gguf", quant=Q8, each=EACH))
    assert len(found) == PARTS and all(one.exists() for one in found)
    return found


@pytest.mark.parametrize("theirs", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_it_is_the_model_in_one_file(
    large: bool, theirs: bool, parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_convert, "FULL_PRECISION_BYTES", 0 if large else 1 << 30)
    if theirs:  # transformers' own reader
        monkeypatch.setattr(gguf_tensors, "_names_by_theirs", lambda *_: {})
    whole = write_gguf(tmp_path / "whole.gguf", quant=Q8)
    assert {one.name for one in check_gguf(parts[0]).tensors} == {one.name for one in check_gguf(whole).tensors}
    files = resolve(str(parts[0]))
    assert resolve(str(parts[0].parent)).path == files.path  # a directory that holds nothing else
    waiting = Waiting.of(files.path)
    assert (waiting is not None) is (large and not theirs)
    for quant in ("file", "none") if large else ("none",):
        got, want = load_model(files, quant=quant), load_model(resolve(str(whole)), quant=quant)
        assert not got.model.config.tie_word_embeddings  # which the last part tells
        mine, state = got.model.state_dict(), want.model.state_dict()
        assert mine.keys() == state.keys() and all(torch.equal(one, state[name]) for name, one in mine.items())


def test_another_part_is_not_its_beginning(parts: list[Path], cache: Path) -> None:
    with pytest.raises(ModelError, match=rf"{parts[2].name} is part 3 of 5 of a model") as caught:
        resolve(str(parts[2]))
    assert parts[0].name in (caught.value.hint or "") and not cache.exists()
    renamed = parts[0].with_name("renamed.gguf")
    shutil.copy(parts[0], renamed)
    with pytest.raises(ModelError, match=r"renamed\.gguf is part 1 of 5 of a model"):
        resolve(str(renamed))


def test_a_part_is_missing_or_another_models(parts: list[Path], tmp_path: Path) -> None:
    parts[3].rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(ModelError, match=rf"part 1 of 5, and {parts[3].name} is missing") as caught:
        resolve(str(parts[0]))
    assert caught.value.hint
    shutil.copy(parts[2], parts[3])
    with pytest.raises(ModelError, match=rf"{parts[3].name} is not part 4"):
        resolve(str(parts[0]))
    parts[3].write_bytes((tmp_path / "elsewhere.gguf").read_bytes()[:-100])
    with pytest.raises(ModelError, match=rf"{parts[3].name} is cut short"):
        resolve(str(parts[0]))


def test_a_changed_part_is_another_model(parts: list[Path]) -> None:
    first = resolve(str(parts[0])).path
    parts[4].write_bytes(parts[4].read_bytes())  # fetched again
    assert resolve(str(parts[0])).path != first


def test_a_whole_file_may_be_named_like_a_part(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny-00001-of-00003.gguf")
    assert load_model(resolve(str(file))).name == str(file)


@pytest.mark.parametrize(("number", "count"), [(3, 3), (7, 2), (1, 0)])
def test_numbers_that_cannot_be(number: int, count: int, tmp_path: Path) -> None:
    pairs = [gguf_string(name) + b"\x02\0\0\0" + value.to_bytes(2, "little") for name, value in
             (("split.no", number), ("split.count", count))]  # fmt: skip
    file = tmp_path / "odd.gguf"
    file.write_bytes(gguf_bytes(pairs, [gguf_tensor("a", (32,))], data=b"\0" * 400))
    with pytest.raises(ModelError, match=rf"part {number + 1} of {max(1, count)}"):
        check_gguf(file)
