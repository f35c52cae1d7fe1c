"""How a model's weights will be held once it is loaded in fp32 on the CPU, told from a few rows of each matrix."""

from __future__ import annotations

from pathlib import Path

from hgca_cli.hf.checks import check_weights, tensor_bytes

ROWS, COLUMNS = 16, 1024  # of a matrix, looked at


def packed_numbers(path: Path) -> dict[str, int]:
    """Numbers of a model directory's matrices by what holds them for one token: "fp32", "bf16", "grid8" or "grid4".

    An embedding that is not the output layer's weights, too, is never multiplied and does not count.
    Raises ModelError for damaged files.
    """
    from safetensors import safe_open

    found: dict[str, int] = {}
    files = check_weights(path)
    head = any("lm_head" in name for file in files for name in tensor_bytes(file))
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no dict)
                part = tensors.get_slice(name)
                shape = part.get_shape()
                if len(shape) != 2 or (head and "embed" in name):
                    continue
                kind = "bf16" if part.get_dtype() != "F32" else _kind(part[:ROWS, :COLUMNS])
                found[kind] = found.get(kind, 0) + shape[0] * shape[1]
    return found


def _kind(rows: object) -> str:
    import torch

    from hgca_cli.hf.grid import find_grid, find_halves

    assert isinstance(rows, torch.Tensor)
    rows = rows.contiguous()
    if (grid := find_grid(rows)) is not None:
        return f"grid{grid.bits}"
    return "fp32" if find_halves(rows) is None else "bf16"
