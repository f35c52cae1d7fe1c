"""What will hold a model's weights is told from a few rows, and is what quickening then finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hgca_cli.commands.describe import describe
from hgca_cli.hardware.shapes import known_model
from hgca_cli.hf.load import load_model
from hgca_cli.hf.packing import packed_numbers
from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.registry import ModelFiles
from hgca_cli.hf.shape import experts_share
from tests.cli_process import save_tiny

EVEN = torch.arange(64, dtype=torch.float32).remainder(16)


def grid(rows: int, bits: int) -> torch.Tensor:
    codes = EVEN.repeat(rows, 2) if bits == 4 else torch.arange(128, dtype=torch.float32).repeat(rows, 1)
    return (codes * 0.25).contiguous()


@pytest.mark.parametrize(
    ("tensors", "kinds"),
    [
        ({"a.weight": torch.randn(40, 64)}, {"fp32": 2560}),
        ({"a.weight": torch.randn(40, 64).bfloat16().float()}, {"bf16": 2560}),
        ({"a.weight": torch.randn(40, 64).bfloat16()}, {"bf16": 2560}),
        ({"a.weight": grid(20, 4)}, {"grid4": 2560}),
        ({"a.weight": torch.randn(8, 8), "norm.weight": torch.randn(64)}, {"fp32": 64}),
        ({"model.embed_tokens.weight": torch.randn(9, 8), "a.weight": torch.randn(8, 8)}, {"fp32": 136}),
        (
            {"model.embed_tokens.weight": torch.randn(9, 8), "lm_head.weight": torch.randn(9, 8).bfloat16()},
            {"bf16": 72},
        ),
    ],
)
def test_kinds_of_weights(tensors: dict[str, torch.Tensor], kinds: dict[str, int], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    assert packed_numbers(tmp_path) == kinds


def test_a_model_published_in_16_bits_needs_no_look(tmp_path: Path) -> None:
    files = ModelFiles("tiny", Path(save_tiny(tmp_path / "m")))
    found = describe(files, False)
    assert found.own_dtype == "fp32" and dict(found.packed).keys() == {"fp32"}
    assert found.tied is False and found.body + 2 * found.head == found.parameters


@pytest.mark.model
def test_the_default_model_is_found_on_its_grids(default_model: Path) -> None:
    files = ModelFiles("smollm2-135m", default_model)
    found = describe(files, False)
    packed = dict(found.packed)
    assert set(packed) <= {"grid4", "grid8"} and found.tied
    assert found == known_model("smollm2-135m"), "profiles/models/models.toml tells of the same model"
    assert sum(packed.values()) == pytest.approx(found.parameters, rel=0.01)
    taken = quicken(load_model(files).model)
    assert taken == pytest.approx(packed.get("grid4", 0) * 20 / 32 + packed.get("grid8", 0) * 34 / 32, rel=0.02)


class Experts:
    hidden_size, moe_intermediate_size, num_hidden_layers = 64, 32, 2
    num_local_experts, num_experts_per_tok = 8, 2


def test_experts_that_are_not_chosen_are_not_read() -> None:
    experts = 3 * 64 * 32 * 8 * 2
    assert experts_share(Experts, 2 * experts) == (0.5, 0.25)
    assert experts_share(object(), 100) == (0.0, 1.0)
