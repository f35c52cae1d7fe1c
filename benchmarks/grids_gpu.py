"""Weights on a grid times a few vectors on a GPU, beside torch's product of the same weights in bf16.

    python benchmarks/grids_gpu.py [--tune] [--record]

For shapes of an 8B model's layers: microseconds of a product (of different matrices in turn, more than the caches hold, in a CUDA
graph; median of several), the GB/s it reads, torch's microseconds, and what making 16-bit numbers of a matrix takes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_sides import put_on_grid
from torch import Tensor, nn

from hgca_cli import native
from hgca_cli.hf import grid_triton
from hgca_cli.measure.machine import where_and_when

RESULTS = Path(__file__).parent / "results" / "grids_gpu.jsonl"
SHAPES = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336))  # outputs, inputs
VECTORS = (1, 2, 4, 8, 16)
LEAST_BYTES = 400 << 20  # of matrices that take turns
TURNS = 7
TRIED = ((64, 2), (64, 4), (128, 4), (128, 8), (256, 8), (256, 16))  # lines and warps


def microseconds(work: list[Callable[[], Tensor]]) -> float:
    """Of one of them, all in a graph."""
    for one in work[:3]:
        one()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in work:
            one()
    taken = []
    for _ in range(TURNS + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(1e3 * begin.elapsed_time(end) / len(work))
    return median(taken[1:])


def measure(bits: int, outputs: int, inputs: int, tune: bool, device: torch.device) -> list[dict[str, Any]]:
    count = max(2, LEAST_BYTES * 8 // (bits * outputs * inputs))
    layers: list[Any] = [nn.Linear(inputs, outputs, bias=False, device="meta") for _ in range(count)]
    for layer in layers:
        put_on_grid(layer, bits, device)
    grids = [layer.grid for layer in layers]
    wide = [torch.randn(outputs, inputs, dtype=torch.bfloat16, device=device) for _ in range(max(2, count // 3))]
    lines = []
    for vectors in VECTORS:
        x = torch.randn(vectors, inputs, dtype=torch.bfloat16, device=device)
        line: dict[str, Any] = {"bits": bits, "outputs": outputs, "inputs": inputs, "vectors": vectors}
        ours = [partial(grid_triton.product, one, outputs, x, None) for one in grids]
        took = microseconds(ours)
        line |= {"us": took, "gb_s": grids[0].tiles.numel() / took / 1e3}
        line["torch_us"] = microseconds([partial(nn.functional.linear, x, one) for one in wide])
        if tune and vectors in (1, 4):
            before = grid_triton.AT_ONCE, grid_triton.WARPS
            for grid_triton.AT_ONCE, grid_triton.WARPS in TRIED:
                key = f"{grid_triton.AT_ONCE}/{grid_triton.WARPS}"
                line[key] = microseconds(ours)
            grid_triton.AT_ONCE, grid_triton.WARPS = before
        lines.append(line)
    took = microseconds([partial(grid_triton.widen, one, 0, outputs, torch.bfloat16) for one in grids[:8]])
    lines.append({"bits": bits, "outputs": outputs, "inputs": inputs, "widen_us": took})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", action="store_true", help="other sizes of a program, too")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    device = torch.device("cuda", 0)
    lines = []
    for bits in (4, 8):
        for outputs, inputs in SHAPES:
            for line in measure(bits, outputs, inputs, options.tune, device):
                print(
                    "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()),
                    flush=True,
                )
                lines.append(line)
    if options.record:
        told = {"benchmark": "grids_gpu", **where_and_when(native.threads()), "gpu": torch.cuda.get_device_name(device)}
        with RESULTS.open("a") as file:
            file.write(json.dumps(told | {"lines": lines}) + "\n")


if __name__ == "__main__":
    main()
