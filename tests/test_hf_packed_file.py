"""Weights of a quantised GGUF file, held in the bits the file had for them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from hgca_cli.commands import chat
from hgca_cli.commands.describe import describe
from hgca_cli.errors import ModelError
from hgca_cli.hardware.settings import PlanRequest
from hgca_cli.hf import gguf_convert, packed
from hgca_cli.hf.grid import Grid, floats, round_to_grid, tiles_shape
from hgca_cli.hf.linear import QuickLinear
from hgca_cli.hf.load import load_model
from hgca_cli.hf.packing import TYPES_FILE, in_file
from hgca_cli.hf.registry import ModelFiles, resolve
from tests.cli_process import here, records
from tests.models import change_weights, write_gguf, write_model

KINDS = gguf.GGMLQuantizationType


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HGCA_CACHE_DIR", str(tmp_path / "cache"))


def numbers_of(kind: KINDS, rows: int, inputs: int, seed: int = 0) -> Tensor:
    """What blocks of a GGUF type with bytes drawn at random hold, f32 [rows, inputs], of sizes as weights have them."""
    draw = np.random.default_rng(seed)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = draw.integers(0, 256, (rows, inputs // block, size), dtype=np.uint8)
    scale = draw.uniform(1e-4, 3e-4, (rows, inputs // block, 1)).astype(np.float16).view(np.uint8)
    if kind is KINDS.Q4_K:
        data[..., :2], data[..., 2:4] = scale, scale
    elif kind is KINDS.Q6_K:
        data[..., -2:] = scale
    else:
        data[..., :2] = scale
    return torch.from_numpy(gguf.quants.dequantize(data.reshape(rows, -1), kind).reshape(rows, inputs))


def held(weight: Tensor, bits: int) -> tuple[float, Tensor]:
    """What rounding onto a grid lost, and the numbers that are left."""
    grid = Grid(torch.empty(tiles_shape(weight, bits), dtype=torch.uint8), bits)
    return round_to_grid(weight, bits, grid.tiles), floats(grid, torch.arange(len(weight)))


@pytest.mark.parametrize("kind", [KINDS.Q4_0, KINDS.Q4_K])
def test_four_bits_hold_what_the_file_had_better_than_bf16(kind: KINDS, isa: str) -> None:
    exact = numbers_of(kind, 48, 512)
    rounded = exact.bfloat16()
    lost, got = held(rounded, 4)
    assert lost <= packed.ON_GRID / 2
    assert float((got - exact).norm()) < 0.8 * float((rounded.float() - exact).norm())


@pytest.mark.parametrize("kind", [KINDS.Q6_K, KINDS.Q5_0, KINDS.Q8_0])
def test_finer_numbers_are_told_apart(kind: KINDS, isa: str) -> None:
    rounded = numbers_of(kind, 32, 512).bfloat16()
    assert held(rounded, 4)[0] > 4 * packed.ON_GRID
    lost, got = held(rounded, 8)
    off = ((got - rounded.float()).norm() / rounded.float().norm()).item()
    assert off <= lost < packed.ON_GRID  # of one tile, where most


def test_one_row_off_the_grid_is_found(isa: str) -> None:
    weight = numbers_of(KINDS.Q4_K, 48, 256).bfloat16()
    weight[40] = torch.randn(256).bfloat16() * weight.float().std()
    assert held(weight, 4)[0] > packed.ON_GRID


def bits_of(model: torch.nn.Module) -> dict[str, int]:
    """By name of a layer, without its number, where layers agree."""
    return {
        name.rpartition(".")[2]: layer.quick.grid.bits
        for name, layer in model.named_modules()
        if isinstance(layer, QuickLinear) and layer.quick.grid is not None
    }


def test_each_matrix_has_the_bits_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name, one in tensors.items():
            if name.endswith("proj.weight") and one.shape[1] == 32:
                four = numbers_of(KINDS.Q4_0, *one.shape) * 10
                if "up_proj" in name:
                    four[-1] = torch.randn(32) / 10  # one row the first ones do not tell of
                tensors[name] = torch.randn(one.shape) / 10 if "v_proj" in name else four
            tensors[name] = tensors[name].bfloat16()

    monkeypatch.setattr(packed, "SAMPLE", 16)
    files = ModelFiles("tiny", write_model(tmp_path))
    change_weights(files.path, change)
    loaded, plain = load_model(files, quant="file"), load_model(files)
    found = bits_of(loaded.model)
    assert found == {"q_proj": 4, "k_proj": 4, "v_proj": 8, "o_proj": 4, "gate_proj": 4, "up_proj": 8, "lm_head": 8}
    assert loaded.fingerprint != plain.fingerprint and loaded.quant == "file"
    ids = torch.arange(5, 45).unsqueeze(0)
    with torch.inference_mode():
        got, want = loaded.model(ids).logits, plain.model(ids).logits
    assert float((got - want).norm()) < 0.02 * float(want.norm())


def test_a_conversion_notes_the_files_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_convert, "FULL_PRECISION_BYTES", 0)  # as of a large model: kept in bf16
    files = resolve(str(write_gguf(tmp_path / "q4.gguf", quant=KINDS.Q4_0)))
    told = json.loads((files.path / TYPES_FILE).read_text())
    matrices = 2 * (
        32 * 32 * 2 + 32 * 16 * 2 + 48 * 32 * 2
    )  # of both layers, but down_proj: 48 numbers are no whole blocks
    assert {key: told[key] for key in ("layers", "head")} == {
        "layers": {"Q4_0": matrices, "F32": 2 * 32 * 48},
        "head": {"Q4_0": 320 * 32},
    }
    assert in_file(files.path) == {"grid4": matrices + 320 * 32, "grid8": 2 * 32 * 48}
    model = describe(files, False)
    assert model.own_dtype == "bf16" and dict(model.in_file)["grid4"] == matrices + 320 * 32
    assert set(bits_of(load_model(files, quant="file").model).values()) == {4}


def test_numbers_kept_in_full_are_found_without_it(tmp_path: Path) -> None:
    files = resolve(str(write_gguf(tmp_path / "q8.gguf", quant=KINDS.Q8_0)))
    model = describe(files, False)
    assert in_file(files.path) == dict(model.in_file) and "grid8" in dict(model.packed)
    assert (
        records(here("chat", "-m", str(files.path), "--plan", "--json"))[0]["quant"] == "none"
    )  # read beside the floats, exactly
    assert bits_of(load_model(files, quant="file").model)["q_proj"] == 8


@pytest.mark.parametrize(
    "text",
    [
        None, "", "[]", '{"layers": 3, "head": {}}', '{"layers": {"Q4_K": "many"}, "head": {}}',
        '{"layers": {"Q4_K": 5, "F16": 6}, "head": {"Q6_K": 4}}', '{"layers": {}}',
    ],
)  # fmt: skip
def test_what_tells_nothing_of_a_file(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / TYPES_FILE).write_text(text)
    assert in_file(tmp_path) == {}


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as conversion leaves it: bf16, most of it on a grid of 4 bits."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name, one in tensors.items():
            if name.endswith("proj.weight") and one.shape[1] == 32:
                tensors[name] = numbers_of(KINDS.Q4_0, *one.shape) * 10
            tensors[name] = tensors[name].bfloat16()

    path = write_model(tmp_path_factory.mktemp("quantised") / "model")
    change_weights(path, change)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    (path / TYPES_FILE).write_text(json.dumps({"layers": {"Q4_0": 20480}, "head": {"Q6_K": 10240}}))
    return path


def test_a_chat_holds_them_so_unless_something_else_is_asked_for(quantised: Path) -> None:
    words = ("chat", "-m", str(quantised), "-p", "the cat", "-n", "8", "--temp", "0")
    done = here(*words)
    assert done.returncode == 0 and done.stdout == here(*words, "--quant", "file").stdout, done.stderr
    for flags, want in (
        ((), "file"), (("--quant", "auto"), "file"), (("--quant", "none"), "none"), (("--dtype", "fp32"), "none"),
        (("--dtype", "bf16"), "none"), (("--quant", "q8"), "q8"),
    ):  # fmt: skip
        plan = records(here(*words[:3], "--plan", "--json", *flags))[0]
        assert plan["quant"] == want, flags
    shown = here(*words[:3], "--plan").stdout
    assert b"cpu fp32, weights as in the file" in shown and b"--quant file" in shown.splitlines()[-1]
    assert b"quant: the bits the file has" in shown


def test_a_job_goes_on_with_them(quantised: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "the cat"}\n{"prompt": "a dog"}\n')
    words = ("batch", str(tmp_path / "in.jsonl"), "-m", str(quantised), "-n", "4", "-o", str(tmp_path / "out.jsonl"))
    assert here(*words).returncode == 0
    out = tmp_path / "out.jsonl"
    out.write_bytes(out.read_bytes().splitlines(keepends=True)[0])  # as if it had been killed before the second
    assert here(*words, "--quant", "q8").returncode == 2  # other weights give other answers
    assert here(*words).returncode == 0 and out.read_bytes().count(b"\n") == 2


def test_a_session_does_not_ask_for_them(quantised: Path, tmp_path: Path) -> None:
    words, place = ("chat", "-m", str(quantised), "-n", "4", "--temp", "0", "--json"), {"HGCA_DATA_DIR": str(tmp_path)}
    assert records(here(*words, "--session", "one", "the cat", **place))[0]["quant"] == "file"
    assert json.loads(here("sessions", "show", "one", "--json", **place).stdout)["quant"] == "file"
    again = records(here(*words, "--session", "one", "a dog", **place))
    assert again[0]["quant"] == "file" and again[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    there = SimpleNamespace(record=SimpleNamespace(quant="file", model=str(quantised)))
    request = PlanRequest(device="cuda")  # where nobody packs anything
    context: Any = SimpleNamespace(get_parameter_source=lambda _: None)
    assert chat._packed_as(context, there, str(quantised), request) == request  # type: ignore[arg-type]


def test_a_file_that_is_not_known_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "plain")
    run = here("chat", "-m", str(path), "-p", "x", "--quant", "file")
    assert run.returncode == 5 and b"not known to come from a quantised GGUF file" in run.stderr
    assert run.stderr.count(b"\n") == 1


def test_a_damaged_weight_is_named(quantised: Path, tmp_path: Path) -> None:
    files = ModelFiles("tiny", write_model(tmp_path))

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = math.nan

    change_weights(files.path, spoil)
    with pytest.raises(ModelError, match=r"up_proj\.weight holds NaN"):
        load_model(files, quant="file")
