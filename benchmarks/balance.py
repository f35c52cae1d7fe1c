"""What feedback while running costs and brings: the default model writes on after so many rows, with and without it, in turns.

    python benchmarks/balance.py [--rows 8192] [--select scan] [--neighbours 0 2] [--record]

Both sides hold the same rows and are given the same tokens of the text. First with rules that never move, so that only
measuring is left: the time its own code takes, and the median, over pairs of turns next to each other, of one side's time over
the other's (which is noise mostly). Then with the rules as they are, beside so many busy processes: tokens a second of both
sides, and the moves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hgca_cli import native
from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.engine.balance import Balance
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.feedback import Feedback
from hgca_cli.engine.sample import Sample
from hgca_cli.engine.sequence import Sequence
from hgca_cli.events import Balanced
from hgca_cli.hf.load import LoadedModel, load_model
from hgca_cli.hf.registry import resolve
from hgca_cli.measure.machine import where_and_when

CHUNK, TURN = 512, 16
DRAWN = SamplingSettings(temperature=1.0)


class Still(Balance):
    """Takes everything in, and never moves."""

    def sample(self, sample: Sample) -> list[Balanced]:
        self._climb._since %= 8  # no trial is ever due
        super().sample(sample)
        return []


class Counted(Feedback):
    """Feedback that never moves and tells how long its own code takes after each token."""

    def __init__(self, device: torch.device, threads: int) -> None:
        super().__init__(device)
        self._balance = Still(threads)
        self.took: list[float] = []

    def _after(self, sequence: Sequence, seconds: float) -> list[Balanced]:
        began = time.perf_counter()
        moves = super()._after(sequence, seconds)
        self.took.append(time.perf_counter() - began)
        return moves


class Writer:
    """One side: a sequence that is given tokens, as an answer is written. Without feedback, nothing is measured."""

    def __init__(self, loaded: LoadedModel, sequence: Sequence, tokens: list[int], feedback: Feedback | None) -> None:
        self._loaded, self._sequence, self._ids = loaded, sequence, tokens
        fed = self._feed()
        self._tokens = fed if feedback is None else feedback.watch(fed, sequence, DRAWN, fresh=True)
        self.moves: list[Balanced] = []

    def write(self, tokens: int) -> float:
        """Seconds of a token."""
        began, written = time.perf_counter(), 0
        while written < tokens:
            event = next(self._tokens)
            if isinstance(event, Balanced):
                self.moves.append(event)
            else:
                written += 1
        return (time.perf_counter() - began) / tokens

    def _feed(self) -> Generator[int, None, str]:
        for token in self._ids:
            logits = self._sequence.forward(self._loaded, torch.tensor([[token]]))
            yield int(logits.argmax())
        return "length"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, help="default: this repository's own documents, again and again")
    parser.add_argument("--rows", type=int, default=6144)
    parser.add_argument("--select", default="scan")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--quality", type=float, default=0.95)
    parser.add_argument("--threads", type=int, default=native.usable_processors())
    parser.add_argument("--measured", type=int, default=512, help="tokens of each side that tell what measuring costs")
    parser.add_argument("--tokens", type=int, default=1200, help="tokens of each side with the rules as they are")
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0])
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/balance.jsonl")
    options = parser.parse_args()
    native.set_threads(options.threads)
    torch.set_num_threads(options.threads)
    loaded = load_model(resolve(options.model), device="cpu", dtype="fp32")
    new = max(options.measured, options.tokens)
    settings = CacheSettings(
        window=options.window,
        context=options.rows + new + 1,
        select=options.select,
        quality=options.quality,
        kv_dtype="bf16",
    )
    engine = Engine(loaded, settings)
    ids = text_of(loaded, options.text, options.rows + new)
    first = read(engine, ids[: options.rows])
    rows = first.cache.every_row()
    assert rows is not None

    def sides(feedback: Feedback) -> dict[str, Writer]:
        made = {}
        for name in ("off", "auto"):
            sequence = engine.new_sequence()
            sequence.cache.fill(rows, loaded.device, CHUNK)
            made[name] = Writer(loaded, sequence, ids[options.rows :], feedback if name == "auto" else None)
        return made

    def record(line: dict[str, Any]) -> None:
        if options.record:
            at = {"benchmark": "balance", "model": options.model, "select": options.select, "rows": options.rows}
            with Path(__file__).with_name("results").joinpath("balance.jsonl").open("a") as file:
                file.write(json.dumps(at | line | where_and_when(options.threads)) + "\n")

    still = Counted(loaded.device, options.threads)
    took, _ = in_turns(sides(still), options.measured, options.threads)
    pairs = median(a / b for a, b in zip(took["auto"], took["off"], strict=True)) - 1
    ms, own = median(took["off"]) * 1e3, sum(still.took) / len(still.took) * 1e3
    print(f"measuring: {own * 1e3:.0f} us of a token of {ms:.1f} ms, {own / ms:.2%}; in pairs {pairs:+.2%}")
    record({"measuring_ms": own, "ms": ms, "in_pairs": pairs})
    for neighbours in options.neighbours:
        with busy(neighbours):
            took, moves = in_turns(sides(Feedback(loaded.device)), options.tokens, options.threads)
        rate = {name: 1 / (sum(seconds) / len(seconds)) for name, seconds in took.items()}
        late = {name: 1 / median(seconds[len(seconds) // 2 :]) for name, seconds in took.items()}
        print(
            f"{neighbours} neighbours: off {rate['off']:.1f} tok/s, auto {rate['auto']:.1f}, "
            f"{rate['auto'] / rate['off']:.3f} times; of the later half {late['auto'] / late['off']:.3f}"
        )
        for move in moves:
            print(f"  {move.setting} {move.before:g} to {move.after:g}: {move.reason}")
        told = [[move.setting, move.before, move.after] for move in moves]
        record({"neighbours": neighbours, "off": rate["off"], "auto": rate["auto"], "late": late, "moves": told})


def text_of(loaded: LoadedModel, path: Path | None, tokens: int) -> list[int]:
    """So many tokens of a text."""
    documents = [path] if path else sorted(Path(__file__).parent.parent.glob("docs/*.md"))
    text = "\n".join(document.read_text(encoding="utf-8-sig") for document in documents)
    ids = loaded.tokenizer.encode(text[: 8 * tokens])
    if path is None:
        ids *= -(-tokens // len(ids))
    if len(ids) < tokens:
        raise SystemExit(f"the text has {len(ids):,} tokens, {tokens:,} are needed.")
    return ids[:tokens]


def read(engine: Engine, ids: list[int]) -> Sequence:
    """A sequence that has read these tokens."""
    sequence = engine.new_sequence()
    sequence.cache.expect(len(ids))
    for piece in torch.tensor([ids]).split(CHUNK, dim=1):
        sequence.forward(engine.loaded, piece)
    return sequence


def in_turns(sides: dict[str, Writer], tokens: int, threads: int) -> tuple[dict[str, list[float]], list[Balanced]]:
    """Seconds of a token in each turn of each side, and the moves. The first turn warms up."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    moved = threads
    for turn in range(tokens // TURN):
        names = list(sides) if turn % 2 else list(reversed(sides))
        for name in names:
            count = moved if name == "auto" else threads
            native.set_threads(count)
            torch.set_num_threads(count)
            seconds = sides[name].write(TURN)
            if name == "auto":
                moved = native.threads()
            if turn:
                took[name].append(seconds)
    native.set_threads(threads)
    torch.set_num_threads(threads)
    return took, sides["auto"].moves


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Meanwhile, so many processes that only count."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()


if __name__ == "__main__":
    main()
