"""Mixtures of experts from GGUF files: one tensor of the model's is two of the file's, and they are packed from there."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file

from hgca_cli.commands.describe import describe
from hgca_cli.hf import gguf_convert, gguf_stream, packed_files
from hgca_cli.hf.experts import QuickExperts
from hgca_cli.hf.gguf_waiting import Waiting
from hgca_cli.hf.load import load_model
from hgca_cli.hf.packing import in_file, packed_numbers
from hgca_cli.hf.registry import ModelFiles, resolve
from tests.mixtures import EXPERTS, INNER, LAYERS, tiny_mixture, write_mixture
from tests.models import in_floats, written

KINDS = gguf.GGMLQuantizationType
FIRST = "model.layers.0.mlp.experts.gate_up_proj"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_files, "SPARE_BYTES", 0)
    return tmp_path / "cache"


def as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_convert, "FULL_PRECISION_BYTES", 0)


@pytest.mark.parametrize("together", [False, True])
def test_the_weights_are_the_models(together: bool, tmp_path: Path) -> None:
    files = resolve(str(write_mixture(tmp_path / "tiny.gguf", together=together)))
    got, want = load_file(files.path / "model.safetensors"), tiny_mixture().state_dict()
    assert got.keys() == want.keys() and all(torch.equal(got[name], one) for name, one in want.items())
    assert load_model(files).model.config.moe_intermediate_size == INNER  # which transformers does not read


@pytest.mark.parametrize("kind", [KINDS.Q8_0, KINDS.Q4_1])
def test_small_ones_have_their_grid_found_again(kind: KINDS, tmp_path: Path) -> None:
    files = resolve(str(write_mixture(tmp_path / "tiny.gguf", kind)))
    held = packed_numbers(files.path)
    grid = "grid8" if kind is KINDS.Q8_0 else "grid4"
    assert held[grid] > LAYERS * EXPERTS * 3 * INNER * 64 and set(held) == {
        grid,
        "bf16",
    }  # the router's numbers, in floats
    assert describe(files, False).packs


@pytest.mark.parametrize("quant", ["file", "q8", "q4"])
@pytest.mark.parametrize("together", [False, True])
def test_they_are_packed_as_from_safetensors(
    together: bool, quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_large(monkeypatch)
    file = write_mixture(tmp_path / "q4.gguf", KINDS.Q4_1, together=together)
    files = resolve(str(file))
    waiting = Waiting.of(files.path)
    assert waiting is not None and FIRST in waiting.names
    with monkeypatch.context() as patch:
        patch.setattr(gguf_stream, "_may_wait", lambda *_: [])
        other = resolve(str(file.rename(tmp_path / "whole.gguf")))
        file.symlink_to(tmp_path / "whole.gguf")
    assert Waiting.of(other.path) is None
    want = load_file(other.path / "model.safetensors")
    assert all(torch.equal(waiting.numbers(name), want[name]) for name in waiting.names)
    got, wanted = load_model(files, quant=quant), load_model(other, quant=quant)
    mine, theirs = ([one for one in part.model.modules() if isinstance(one, QuickExperts)] for part in (got, wanted))
    assert len(mine) == LAYERS
    for one, two in zip(mine, theirs, strict=True):
        assert all(
            torch.equal(a, b) and a.dtype is torch.uint8
            for a, b in zip(one.parameters(), two.parameters(), strict=True)
        )
    assert written(got) == written(wanted)


def test_as_in_the_file_is_within_rounding_of_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_large(monkeypatch)
    files = resolve(str(write_mixture(tmp_path / "q4.gguf", KINDS.Q4_1)))
    assert set(in_file(files.path)) == {"grid4", "grid8"} and dict(describe(files, False).in_file) == in_file(
        files.path
    )
    loaded = load_model(files, quant="file")
    held = next(one for one in loaded.model.modules() if isinstance(one, QuickExperts))
    whole = load_model(files)  # written into safetensors by it
    want = in_floats(ModelFiles("whole", files.path)).model.model.layers[0].mlp.experts
    x, chosen, shares = torch.randn(3, 64), torch.tensor([[0, 1], [7, 2], [3, 4]]), torch.rand(3, 2)
    with torch.inference_mode():
        got, wanted = held(x, chosen, shares), want(x, chosen, shares)
    assert float((got - wanted).norm()) < 5e-3 * float(
        wanted.norm()
    )  # 16 bits of the numbers, found again to their 2^-9
    assert Waiting.of(files.path) is None and whole.quant == "none"
