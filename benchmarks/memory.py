"""Peak memory of a run against its plan, and the time left that was told against the time it took.

    python benchmarks/memory.py --text book.txt --ctx 8192 --new 64 [--select cluster] [--keep rows.pt] [--record]

Reads a prompt that fills the context but for the answer, decodes, and compares the process's peak with what the planner
said before anything was loaded: weights, window and store by the KVLayout, plus its stated constants. Exits with 1 if
they are more than 10 % apart. --keep writes the prompt's rows as benchmarks/decode.py keeps them (--keep of that one).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from hgca_cli.commands.setup import ModelChoice, plan_model, start_engine
from hgca_cli.config import SamplingSettings
from hgca_cli.events import Done, Event, Notice, PrefillProgress
from hgca_cli.hardware.settings import PlanRequest
from hgca_cli.measure.machine import where_and_when
from hgca_cli.ui.eta import Eta

RESULTS = Path(__file__).parent / "results" / "memory.jsonl"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--ctx", type=int, default=8192)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--select", help="default: the planner's")
    parser.add_argument("--yarn", action="store_true", help="stretch positions")
    parser.add_argument("--keep", type=Path, help="directory for the prompt's rows")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    choice = ModelChoice(options.model)
    request = PlanRequest(context=options.ctx, window=options.window, select=options.select, yarn=options.yarn)
    files, plan = plan_model(choice, request, notice)
    engine = start_engine(choice, files, plan)
    ids = engine.loaded.tokenizer.encode(options.text.read_text(encoding="utf-8-sig"))[: options.ctx - options.new]
    sequence = engine.new_sequence()
    sampling = SamplingSettings(temperature=0.0, max_tokens=options.new)
    done, progress = None, Progress()
    for event in engine.answer(sequence, ids, sampling, threading.Event()):
        notice(event)
        progress.add(event)
        done = event if isinstance(event, Done) else done
    assert done is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    planned = sum(plan.host_bytes.values())
    result = {"planned_bytes": plan.host_bytes, "planned": planned, "peak": peak, "ratio": round(peak / planned, 4)}
    result |= {"window": done.rows.window, "store": done.rows.store, "prefill_seconds": round(done.prefill_seconds, 1)}
    result |= {"new": done.completion_tokens, "tok_s": round(done.tokens_per_second, 2), "eta": progress.report()}
    print(json.dumps(result))
    if options.record:
        settings = {
            name: getattr(plan, name) for name in ("context", "select", "dtype", "kv_dtype", "chunk", "yarn_context")
        }
        line = {"benchmark": "memory", **where_and_when(plan.threads), "model": options.model} | settings | result
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
    if options.keep is not None:
        every = sequence.cache.every_row()
        assert every is not None
        keys, values = ([part[:, : len(ids)].bfloat16() for part in parts] for parts in zip(*every, strict=True))
        name = f"rows-{engine.loaded.fingerprint}-{len(ids)}{'-yarn' * options.yarn}.pt"
        torch.save({"ids": ids, "keys": keys, "values": values}, options.keep / name)
    return 0 if abs(peak / planned - 1) <= 0.1 else 1


def notice(event: Event) -> None:
    """What a user would be told."""
    if isinstance(event, Notice):
        print(event.text, flush=True)


class Progress:
    """The time left, as it was told along the way, and seconds of the chunks."""

    def __init__(self) -> None:
        self._eta = Eta()
        self._told: list[tuple[PrefillProgress, float]] = []

    def add(self, event: Event) -> None:
        """One event."""
        if isinstance(event, PrefillProgress) and (left := self._eta.add(event)) is not None:
            self._told.append((event, left))
            print(f"{event.processed:,} of {event.total:,}, {event.seconds:.0f} s, {left:.0f} s left", flush=True)

    def report(self) -> list[dict[str, Any]]:
        """At about a twentieth, a quarter, half and three quarters of the tokens: the time told over the time it took."""
        last = self._told[-1][0]
        found = []
        for share in (0.05, 0.25, 0.5, 0.75):
            event, left = next(one for one in self._told if one[0].processed >= share * last.total)
            took = max(1e-9, last.seconds - event.seconds)
            flat = event.seconds * (last.total - event.processed) / event.processed
            told = {"told": round(left), "took": round(took), "flat_rate_would_tell": round(flat)}
            found.append({"read": round(event.processed / last.total, 3)} | told)
        return found


if __name__ == "__main__":
    sys.exit(main())
