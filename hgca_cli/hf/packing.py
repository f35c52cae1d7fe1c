"""How a model's weights will be held: on the CPU in fp32, told from a few rows of each matrix; packed, from the file they come from."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from hgca_cli.hf.checks import check_weights, tensor_bytes

ROWS, COLUMNS = 16, 1024  # of a matrix, looked at
# beside converted weights: numbers of the file's matrices by type, of layers and of the output layer
TYPES_FILE = "gguf.json"
FOUR_BITS = ("Q4_0", "Q4_1", "Q4_K")  # 16 codes that lie evenly, for 32 numbers: a grid of 4 bits; all others take 8
FLOATS = ("F16", "BF16", "F32", "F64")


def in_file(path: Path) -> dict[str, int]:
    """Numbers of a model directory's matrices by what holds them packed as the GGUF file had them: "grid8" or "grid4".

    Empty if they do not come from such a file, or if that held most of them as floats.
    """
    return held_as(told_of(path))


def told_of(path: Path) -> dict[str, Any]:
    """What a model directory tells of the GGUF file it was made from; empty if it was not, or tells nothing."""
    try:
        told = json.loads((path / TYPES_FILE).read_text(encoding="utf-8"))
        return told if isinstance(told, dict) else {}
    except (OSError, ValueError):
        return {}


def held_as(told: Any) -> dict[str, int]:
    """The same as in_file, of what is told (`Contents.types`)."""
    try:
        layers, head = ({str(kind): int(count) for kind, count in told[part].items()} for part in ("layers", "head"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    if 2 * sum(count for kind, count in layers.items() if kind in FLOATS) > sum(layers.values()):
        return {}
    found: dict[str, int] = {}
    for kind, count in (*layers.items(), *head.items()):
        grid = "grid4" if kind in FOUR_BITS else "grid8"
        found[grid] = found.get(grid, 0) + count
    return found


def packed_numbers(path: Path) -> dict[str, int]:
    """Numbers of a model directory's matrices by what holds them for one token: "fp32", "bf16", "grid8" or "grid4".

    An embedding that is not the output layer's weights, too, is never multiplied and does not count.
    Raises ModelError for damaged files.
    """
    from safetensors import safe_open

    from hgca_cli.hf.experts import FIRST, LAST

    found: dict[str, int] = {}
    files = check_weights(path)
    head = any("lm_head" in name for file in files for name in tensor_bytes(file))
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no dict)
                part = tensors.get_slice(name)
                shape = part.get_shape()
                experts = len(shape) == 3 and name.endswith((FIRST, LAST))
                if (len(shape) != 2 and not experts) or (head and "embed" in name):
                    continue
                kind = "bf16" if part.get_dtype() != "F32" else _kind(part[0:1][0] if experts else part)
                found[kind] = found.get(kind, 0) + prod(shape)
    return found


def _kind(matrix: Any) -> str:
    from hgca_cli.hf.grid import find_grid, find_halves

    rows = matrix[:ROWS, :COLUMNS].contiguous()
    if (grid := find_grid(rows)) is not None:
        return f"grid{grid.bits}"
    return "fp32" if find_halves(rows) is None else "bf16"
