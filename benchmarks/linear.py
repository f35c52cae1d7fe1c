"""All linear layers of a model with one token: by torch, by the C library as they are, in as few bytes as hold them, in blocks; and
with several tokens.

    python benchmarks/linear.py [--model smollm2-135m] [--dtype fp32] [--threads 2] [--openmp] [--vectors 16 512] [--record]

Milliseconds a token and GB/s of weights (as torch has them), medians of turns that take each side once. `in blocks` is
what a model calls: gated feed-forward blocks as such, with what is between their layers. `read` is what as many torch
threads read of a buffer of 1 GiB meanwhile. Of several vectors: 1e9 products of weights with numbers a second, the ceiling being two
of 8 floats a cycle with AVX2.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

from hgca_cli import native
from hgca_cli.hardware.timing import ReadProbe, bandwidths, interleave
from hgca_cli.hf.gated import Gated
from hgca_cli.hf.linear import Weights
from hgca_cli.hf.load import load_model
from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.registry import resolve
from hgca_cli.measure.machine import where_and_when

RESULTS = Path(__file__).parent / "results" / "linear.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--openmp", action="store_true", help="torch's threads do the library's work")
    parser.add_argument("--vectors", type=int, nargs="*", default=[4, 16, 64, 512], help="at once")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    native.set_threads(options.threads)
    native.share_openmp(options.openmp)
    torch.set_num_threads(options.threads)

    model = load_model(resolve(options.model), device="cpu", dtype=options.dtype).model
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    if not layers:
        parser.error(f"{options.model} has no layer of plain weights; packed ones are measured by quant.py")
    widths = {layer.in_features for layer in layers}
    shared = {width: torch.randn(1, 1, width).to(layers[0].weight.dtype) for width in widths}
    vectors = [shared[layer.in_features] for layer in layers]
    plain = [Weights(layer.weight, layer.bias) for layer in layers]
    size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    copies = quicken(model)
    own = set(layers)
    blocks = [module for module in model.modules() if isinstance(module, Gated) and own & set(module.modules())]
    inside = {layer for block in blocks for layer in block.modules()}
    called = [*blocks, *(layer for layer in layers if layer not in inside)]
    given = [shared[next(layer.in_features for layer in one.modules() if layer in own)] for one in called]
    probe = ReadProbe(options.threads)
    sides: dict[str, Callable[[], object]] = {
        "torch": lambda: [
            nn.functional.linear(x, layer.weight, layer.bias) for layer, x in zip(layers, vectors, strict=True)
        ],
        "as they are": lambda: [weights.product(x) for weights, x in zip(plain, vectors, strict=True)],
        "quickened": lambda: [layer(x) for layer, x in zip(layers, vectors, strict=True)],
        "in blocks": lambda: [one(x) for one, x in zip(called, given, strict=True)],
        **probe.sides(),
    }
    with torch.inference_mode():
        seconds = interleave(sides, options.times)
        several = [several_vectors(layers, count, options.times // 3) for count in options.vectors]
    print(f"{len(layers)} layers, {size / 1e6:.0f} MB as {options.dtype}, {copies / 1e6:.0f} MB in second copies")
    results = {}
    for name in ("torch", "as they are", "quickened", "in blocks"):
        took = median(seconds[name])
        results[name] = {"ms": round(1e3 * took, 2), "gb_s": round(size / took / 1e9, 1)}
        print(f"  {name:14}{1e3 * took:>8.2f} ms{size / took / 1e9:>8.1f} GB/s")
    read = bandwidths(probe.rates(seconds))[-1].median_gb_s
    print(f"  {'read':14}{read:>19.1f} GB/s")
    if options.record:
        line = {
            "benchmark": "linear",
            **where_and_when(options.threads),
            "model": options.model,
            "dtype": options.dtype,
        }
        line |= {
            "openmp": options.openmp,
            "bytes": size,
            "copies": copies,
            "read_gb_s": round(read, 1),
            "results": results,
            "several": several,
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


def several_vectors(layers: list[nn.Linear], count: int, times: int) -> dict[str, float]:
    """1e9 products a second of all layers but the last, as a prompt or a batch has them: torch's, and the model's own."""
    layers = layers[:-1]
    shared = {width: torch.randn(1, count, width) for width in {layer.in_features for layer in layers}}
    given = [shared[layer.in_features] for layer in layers]
    sides: dict[str, Callable[[], object]] = {
        "torch": lambda: [
            nn.functional.linear(x, layer.weight, layer.bias) for layer, x in zip(layers, given, strict=True)
        ],
        "quickened": lambda: [layer(x) for layer, x in zip(layers, given, strict=True)],
    }
    seconds = interleave(sides, max(3, times))
    products = count * sum(layer.weight.numel() for layer in layers) / 1e9
    rates = {name: round(products / median(took), 1) for name, took in seconds.items()}
    print(f"  {count:>4} vectors: torch {rates['torch']:.1f}, quickened {rates['quickened']:.1f} products a ns")
    return {"vectors": count, **rates}


if __name__ == "__main__":
    main()
