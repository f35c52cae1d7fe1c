"""Weights times a vector, as a token needs them, and times many, as a prompt's chunk does; and a chunk's attention."""

from __future__ import annotations

from functools import partial

import torch

from hgca_cli import native
from hgca_cli.attention import dense, in_place
from hgca_cli.hardware.timing import repeat, typical
from hgca_cli.hf.grid import find_grid
from hgca_cli.hf.linear import Weights
from hgca_cli.hf.products import linear

SIDE = 2048  # of a square matrix of weights
MATRICES = 8  # as many of them are read one after another: more than a cache holds
CHUNK = 512
PAST = 4096
HEADS, HEAD_DIM = 8, 64


def linear_gb_s(times: int) -> dict[str, float]:
    """GB/s at which weights are read that are multiplied with one vector, by what holds them (rates.WEIGHTS)."""
    draw = torch.Generator().manual_seed(4)
    vector = torch.randn(SIDE, generator=draw)
    matrix = torch.randn(SIDE, SIDE, generator=draw)
    kept = {
        "fp32": [Weights(matrix.clone()) for _ in range(MATRICES)],
        "bf16": [Weights(matrix.bfloat16()) for _ in range(MATRICES)],
    } | _on_grids(2 * MATRICES)
    rates = {}
    for kind, several in kept.items():
        asked = vector.bfloat16() if kind == "bf16" else vector
        size = sum(one.copied or SIDE * SIDE * (4 if kind == "fp32" else 2) for one in several)

        def run(several: list[Weights] = several, asked: torch.Tensor = asked) -> None:
            for one in several:
                one.product(asked)

        rates[kind] = size / typical(repeat(run, times)) / 1e9
    return rates


def matmul_tflop_s(times: int, device: str = "cpu", dtypes: tuple[str, ...] = ("fp32", "bf16")) -> dict[str, float]:
    """1e12 operations a second of a chunk times weights, by dtype, as a model's layers multiply them (hf/products.py)."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    side, rows = (SIDE, CHUNK) if device == "cpu" else (8192, 4096)
    done = None if device == "cpu" else partial(torch.cuda.synchronize, device)
    rates = {}
    for name in dtypes:
        a = torch.randn(rows, side, device=device).to(kinds[name])
        b = torch.randn(side, side, device=device).to(kinds[name])
        seconds = repeat(lambda a=a, b=b: linear(a, b), times, after=done)  # type: ignore[misc]
        rates[name] = 2.0 * rows * side * side / typical(seconds) / 1e12
    return rates


def grid_tflop_s(times: int) -> dict[str, float]:
    """1e12 operations a second of a chunk times weights on a grid, by grid, where the library does that."""
    chunk = torch.randn(CHUNK, SIDE)
    rates = {}
    for kind, (weights,) in _on_grids(1).items():
        if weights.most >= CHUNK:
            seconds = typical(repeat(lambda weights=weights: weights.product(chunk), times))  # type: ignore[misc]
            rates[kind] = 2.0 * CHUNK * SIDE * SIDE / seconds / 1e12
    return rates


def prefill_attention_tflop_s(times: int, dtype: torch.dtype) -> float:
    """1e12 operations a second of a chunk's attention (fp32) to 4,096 rows of a dtype, by the library or torch, as prefill on the
    CPU runs it."""
    query = torch.randn(HEADS, CHUNK, HEAD_DIM)
    key, value = torch.randn(2, HEADS, PAST, HEAD_DIM).to(dtype)
    ours = native.Attention(query.transpose(0, 1).contiguous(), key, value, HEAD_DIM**-0.5)

    def run() -> None:
        if in_place.pays():
            native.attend(ours)
        else:
            rows = key.float(), value.float()  # torch's wants the queries' dtype
            dense.attend(query, *rows, scale=HEAD_DIM**-0.5)

    seconds = typical(repeat(run, times))
    return 4.0 * HEADS * HEAD_DIM * CHUNK * PAST / seconds / 1e12


def _on_grids(count: int) -> dict[str, list[Weights]]:
    """So many square matrices on each kind of grid."""
    codes = torch.randint(-127, 128, (SIDE, SIDE), generator=torch.Generator().manual_seed(4))
    kept = {}
    for kind, bits in (("grid8", 8), ("grid4", 4)):
        matrix = _on_a_grid(codes, bits)
        grid = find_grid(matrix)
        if grid is not None and grid.bits == bits:
            kept[kind] = [Weights(matrix, None, grid._replace(tiles=grid.tiles.clone())) for _ in range(count)]
    return kept


def _on_a_grid(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Weights that stand on a grid of 8 or 4 bits: each block of 32 holds the grid's outermost numbers."""
    if bits == 8:
        codes = codes.clone()
        codes[:, ::32] = 127
        return codes.float() * (1 / 64)
    codes = codes.abs() % 16
    codes[:, ::32], codes[:, 1::32] = 0, 15
    return codes.float() * (1 / 64) - 0.125
