"""What following the query costs beside reading: the index while a prompt is read, and the quality meter while decoding.

    python benchmarks/meter.py --text book.txt --rows 7168 --new 160

A text is read in chunks, and the seconds in which new rows get their index are taken out of it (clustering runs in a thread
of its own and is not in them). Then its next tokens are fed one by one, three times from the same rows, in turns of 16: with
the meter as it is, without it, and with every layer of every token metered, which says what mass was kept truly; each of
the three comes first in its turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import hgca_cli.hf.attention
from hgca_cli import native
from hgca_cli.attention.select.contract import Selector
from hgca_cli.config import CacheSettings
from hgca_cli.engine.sequence import Sequence
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.load import LoadedModel, load_model
from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.registry import resolve
from hgca_cli.hf.shape import kv_layout
from hgca_cli.measure.machine import where_and_when

TURN = 16  # tokens: as many as the meter waits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=7168)
    parser.add_argument("--new", type=int, default=160, help="tokens fed one by one")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--select", nargs="+", default=["scan", "two-level"])
    parser.add_argument("--threads", type=int, default=native.usable_processors())
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/meter.jsonl")
    options = parser.parse_args()
    native.share_openmp(False)
    native.set_threads(options.threads)
    torch.set_num_threads(options.threads)
    loaded = load_model(resolve(options.model), device="cpu", dtype="fp32")
    quicken(loaded.model)
    loaded.model.set_attn_implementation(hgca_cli.hf.attention.NAME)
    ids = loaded.tokenizer.encode(options.text.read_text(encoding="utf-8-sig"))[: options.rows + options.new]
    if len(ids) < options.rows + options.new:
        raise SystemExit(f"the text has {len(ids):,} tokens, {options.rows + options.new:,} are needed.")
    for select in options.select:
        settings = CacheSettings(window=options.window, context=len(ids) + 1, select=select, kv_dtype="bf16")
        line = measure(loaded, settings, ids, options.rows, options.chunk)
        print(
            f"{select:10} prompt {line['prompt_s']:.1f} s, index {line['index_s']:.2f} s = {line['index_share']:.1%}; "
            f"meter {line['metered']:.4f} of {line['measurements']} measurements, truly {line['truly']:.4f}; "
            f"a token {line['ms']:.2f} ms with it, {line['ms_without']:.2f} without: {line['cost']:+.1%}"
        )
        if options.record:
            at = {"benchmark": "meter", "model": options.model, "select": select, "rows": options.rows}
            with Path(__file__).with_name("results").joinpath("meter.jsonl").open("a") as file:
                file.write(json.dumps(at | line | where_and_when(options.threads)) + "\n")


def measure(
    loaded: LoadedModel, settings: CacheSettings, ids: list[int], rows: int, chunk: int
) -> dict[str, float | int]:
    """The figures of one policy."""
    size = loaded.dtype.itemsize
    cache = HybridCache(kv_layout(loaded.model.config, size, size), settings)
    sequence = Sequence(cache)
    index: list[float] = []
    cache.expect(rows)
    began = time.perf_counter()
    for first in range(0, rows, chunk):
        sequence.forward(loaded, torch.tensor([ids[first : min(rows, first + chunk)]]))
        if first == 0:
            for layer in cache.layers:
                time_index(layer.states[0].selector, index)
    prompt = time.perf_counter() - began
    index_seconds = sum(index)
    index.clear()

    meter = cache.meter
    meter.early = 0  # as in the midst of an answer
    due, is_free = meter.due, meter.is_free
    kinds: dict[str, tuple[Callable[..., bool], Callable[[int], bool]]] = {
        "with": (due, is_free),
        "without": (lambda *_: False, lambda _: True),
        "every": (lambda *_: True, lambda _: False),
    }
    took: dict[str, list[float]] = {name: [] for name in kinds}
    kept: dict[str, tuple[float, int]] = dict.fromkeys(kinds, (0.0, 0))
    names = list(kinds)
    for first in range(rows, len(ids) - TURN + 1, TURN):
        names.append(names.pop(0))  # who comes first finds a window that is as full as it will be
        for turn, name in enumerate(names):
            if turn:
                assert sequence.cache.rewind(first)
            meter.due, meter.is_free = kinds[name]  # type: ignore[method-assign]
            meter.reset()
            began = time.perf_counter()
            for token in ids[first : first + TURN]:
                sequence.forward(loaded, torch.tensor([[token]]))
            took[name].append((time.perf_counter() - began) / TURN)
            kept[name] = (kept[name][0] + meter.kept, kept[name][1] + meter.count)
    ms = {name: statistics.median(seconds) * 1e3 for name, seconds in took.items()}
    return {
        "prompt_s": prompt,
        "index_s": index_seconds,
        "index_share": index_seconds / (prompt - index_seconds),
        "metered": kept["with"][0] / max(1, kept["with"][1]),
        "measurements": kept["with"][1],
        "truly": kept["every"][0] / kept["every"][1],
        "ms": ms["with"],
        "ms_without": ms["without"],
        "cost": statistics.median(a / b for a, b in zip(took["with"], took["without"], strict=True)) - 1,
    }


def time_index(selector: Selector, into: list[float]) -> None:
    """Let a policy tell how long new rows took."""
    stored = selector.stored

    def timed(store: object) -> None:
        began = time.perf_counter()
        stored(store)  # type: ignore[arg-type]
        into.append(time.perf_counter() - began)

    selector.stored = timed  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    main()
