"""What a layer costs one token beyond its weights and its rows: measured on a random model, of more and of fewer layers."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from hgca_cli.hardware.timing import typical
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.probe_model import WIDER, ProbeModel

MANY, FEW = 12, 4  # layers
ROWS, WINDOW = 512, 256  # so few that reading them is little beside the rest
TURNS = 4


@dataclass(frozen=True)
class Overhead:
    """Microseconds: of a layer, of a layer's choice of rows from the store besides, of a token besides."""

    layer_us: float
    store_us: float
    token_us: float


@dataclass(frozen=True)
class TakenOff:
    """Seconds that are no overhead: of a byte of weights, and of a row of a layer that is in the window, scored, or read."""

    byte: float = 0.0
    near: float = 0.0
    scored: float = 0.0
    read: float = 0.0


def overhead(tokens: int, taken_off: TakenOff, device: str = "cpu", *, graphs: bool = True) -> Overhead:
    """Typical of `tokens` tokens, without what the weights and rows took that were read. graphs: on a GPU, CUDA graphs."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    seconds: dict[tuple[int, str], float] = {}
    read = 0.0
    for layers in (MANY, FEW):
        model = ProbeModel(layers, device, dtype, wider=1 if device == "cpu" else WIDER)
        caches = {
            "near": model.filled(WINDOW // 2, WINDOW, "exact"),
            "store": model.filled(ROWS + WINDOW, WINDOW, "scan"),
        }
        for which, taken in _turns(model, caches, tokens, graphs).items():
            seconds[layers, which] = typical(taken)
        read = caches["store"].rows().read_share * ROWS
    layer = (seconds[MANY, "near"] - seconds[FEW, "near"]) / (MANY - FEW)
    stored = (seconds[MANY, "store"] - seconds[FEW, "store"]) / (MANY - FEW)
    token = seconds[FEW, "near"] - FEW * layer
    rows = taken_off.near * (WINDOW // 2)
    more = taken_off.near * (WINDOW // 2) + taken_off.scored * ROWS + taken_off.read * read
    return Overhead(
        max(0.0, layer - taken_off.byte * 2 * model.layer_numbers - rows) * 1e6,
        max(0.0, stored - layer - more) * 1e6,
        max(0.0, token - taken_off.byte * 2 * model.head_numbers) * 1e6,
    )


def _turns(model: ProbeModel, caches: dict[str, HybridCache], tokens: int, graphs: bool) -> dict[str, list[float]]:
    """Seconds of each token, the caches taking turns; the first turn warms up."""
    taken: dict[str, list[float]] = {name: [] for name in caches}
    steps = {name: model.graph(cache) if graphs else None for name, cache in caches.items()}
    each = max(1, tokens // TURNS)
    for turn in range(TURNS + 1):
        for name, cache in caches.items():
            token = 1
            for _ in range(each):
                began = time.perf_counter()
                token = model.step(cache, token, steps[name])
                if turn:
                    taken[name].append(time.perf_counter() - began)
    return taken
