"""Experts published as floats of 4 bits: held as they are, and the very numbers that transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GptOssConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from hgca_cli.commands.describe import describe
from hgca_cli.errors import ModelError
from hgca_cli.hf import packed_files
from hgca_cli.hf.experts import QuickExperts, are_experts
from hgca_cli.hf.float4 import Floats4, published_so
from hgca_cli.hf.grid import FLOATS4, Grid, floats
from hgca_cli.hf.load import load_model, read_config
from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.registry import ModelFiles
from tests.mixtures import SHAPE, tiny_mixture
from tests.models import change_config, change_weights, write_model, written

EXPERTS = 4
CONFIG = GptOssConfig(**SHAPE, num_local_experts=EXPERTS, num_experts_per_tok=2)


def published(path: Path) -> Any:
    """A tiny gpt-oss as its publisher's files have it; returns the model of the same numbers, in floats."""
    model: Any = tiny_mixture(CONFIG)
    rng = torch.Generator().manual_seed(3)
    blocks: dict[str, Tensor] = {}
    for at, one in model.named_modules():
        for name in ("gate_up_proj", "down_proj") if are_experts(one) else ():
            experts, inputs, outputs = getattr(one, name).shape
            codes = torch.randint(256, (experts, outputs, inputs // 32, 16), generator=rng, dtype=torch.uint8)
            scales = torch.randint(120, 126, (experts, outputs, inputs // 32), generator=rng, dtype=torch.uint8)
            blocks |= {f"{at}.{name}_blocks": codes, f"{at}.{name}_scales": scales}
            getattr(one, name).copy_(convert_moe_packed_tensors(codes.clone(), scales.clone()))
    write_model(path, model=tiny_mixture(CONFIG, torch.bfloat16))

    def change(tensors: dict[str, Tensor]) -> None:
        for name in blocks:
            tensors.pop(name.rpartition("_")[0], None)
        tensors.update(blocks)

    change_weights(path, change)
    change_config(path, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens"]})
    return model


def experts_of(model: Any) -> list[Any]:
    return [one for one in model.modules() if isinstance(one, QuickExperts) or are_experts(one)]


def test_the_numbers_are_those_of_transformers(tmp_path: Path) -> None:
    model = published(tmp_path)
    found = Floats4(tmp_path, [tmp_path / "model.safetensors"])
    own = dict(model.named_parameters())
    assert len(found.names) == 2 * SHAPE["num_hidden_layers"] and found.names <= own.keys()
    for name in found.names:
        assert torch.equal(found.numbers(name).view(EXPERTS, -1, own[name].shape[1]), own[name].transpose(1, 2))


def test_the_model_computes_with_them(tmp_path: Path, isa: str) -> None:
    want = published(tmp_path)
    loaded = load_model(ModelFiles("tiny", tmp_path), quant="file")
    rng = torch.Generator().manual_seed(2)
    for got, own in zip(experts_of(loaded.model), experts_of(want), strict=True):
        assert got.experts.first.ones[0].grid.bits == FLOATS4
        for count in (1, 7, 70):
            x, shares = torch.randn(count, 64, generator=rng), torch.rand(count, 2, generator=rng)
            chosen = torch.stack([torch.randperm(EXPERTS, generator=rng)[:2] for _ in range(count)])
            with torch.inference_mode():
                assert float((got(x, chosen, shares) - own(x, chosen, shares)).norm()) < 2e-4 * float(
                    own(x, chosen, shares).norm()
                )
    quicken(loaded.model)
    assert len(written(loaded)) > 30 and loaded.quant == "file"


def test_they_are_kept_and_read_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_files, "LEAST", 0)
    monkeypatch.setattr(packed_files, "SPARE_BYTES", 0)
    published(tmp_path / "m")
    files = ModelFiles("tiny", tmp_path / "m")
    first = load_model(files, quant="file")
    monkeypatch.setattr(Floats4, "grid", None)
    second = load_model(files, quant="file")
    for one, two in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_every_code(rng: torch.Generator) -> None:
    from hgca_cli.hf.grid import float4_tiles

    codes = torch.arange(16, dtype=torch.uint8).repeat(2).view(1, 1, 32).repeat(16, 3, 1)
    tiles = float4_tiles(torch.full((16, 3, 1), 0.25), codes)
    got = floats(Grid(tiles, FLOATS4), torch.arange(16))
    want = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert (2 * got[5, :16]).tolist() == want + [-one for one in want]


@pytest.mark.parametrize("exponent", [0, 90, 200, 255])
def test_a_scale_that_cannot_be(exponent: int, tmp_path: Path) -> None:
    published(tmp_path)
    name = "model.layers.1.mlp.experts.down_proj_scales"
    change_weights(tmp_path, lambda tensors: tensors[name].view(-1)[5:6].fill_(exponent))
    with pytest.raises(ModelError, match="down_proj has scales beyond"):
        load_model(ModelFiles("tiny", tmp_path), quant="file")


def test_blocks_without_scales(tmp_path: Path) -> None:
    published(tmp_path)
    change_weights(tmp_path, lambda tensors: tensors.pop("model.layers.1.mlp.experts.down_proj_scales"))
    with pytest.raises(ModelError, match="no MXFP4 that is known here"):
        load_model(ModelFiles("tiny", tmp_path), quant="file")


def test_the_plan_holds_them_as_the_file_does(tmp_path: Path) -> None:
    published(tmp_path)
    files = ModelFiles("tiny", tmp_path)
    assert published_so(read_config(files)) and not published_so(GptOssConfig(**SHAPE))
    model = describe(files, False)
    experts = SHAPE["num_hidden_layers"] * EXPERTS * 3 * 64 * SHAPE["intermediate_size"]  # type: ignore[operator]
    assert dict(model.in_file)["float4"] == experts and model.packable("cpu") and not model.packable("cuda:0")
    assert model.parameters == sum(one.numel() for one in tiny_mixture(CONFIG).parameters())
    whole = load_model(files, quant="file").weights_bytes
    from hgca_cli.hardware.rates import WEIGHT_BYTES

    held = sum(count * WEIGHT_BYTES[kind] for kind, count in model.in_file) + model.head * WEIGHT_BYTES["grid8"]
    assert held == pytest.approx(whole, rel=0.15)  # norms, biases and routers are floats


def test_others_are_refused_as_before(tmp_path: Path) -> None:
    published(tmp_path)
    for quant in ("q8", "q4"):
        with pytest.raises(ModelError, match="quantised already"):
            load_model(ModelFiles("tiny", tmp_path), quant=quant)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"] == "mxfp4"
