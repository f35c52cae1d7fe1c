"""Peak memory of a run against its plan.

    python benchmarks/memory.py --text book.txt --ctx 8192 --new 64

Reads a prompt that fills the context but for the answer, decodes, and compares the process's peak with what the planner
said before anything was loaded: weights, window and store by the KVLayout, plus its stated constants. Exits with 1 if
they are more than 10 % apart.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import threading
from pathlib import Path

from hgca_cli.commands.setup import ModelChoice, plan_model, start_engine
from hgca_cli.config import SamplingSettings
from hgca_cli.events import Done
from hgca_cli.hardware.settings import PlanRequest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--ctx", type=int, default=8192)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    options = parser.parse_args()
    choice = ModelChoice(options.model)
    files, plan = plan_model(choice, PlanRequest(context=options.ctx, window=options.window), lambda event: None)
    engine = start_engine(choice, files, plan)
    ids = engine.loaded.tokenizer.encode(options.text.read_text(encoding="utf-8-sig"))[: options.ctx - options.new]
    sequence = engine.new_sequence()
    sampling = SamplingSettings(temperature=0.0, max_tokens=options.new)
    rows = None
    for event in engine.answer(sequence, ids, sampling, threading.Event()):
        rows = event.rows if isinstance(event, Done) else rows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    planned = sum(plan.host_bytes.values())
    held = {"window": rows.window, "store": rows.store} if rows else {}
    print(
        json.dumps({"planned_bytes": plan.host_bytes, "planned": planned, "peak": peak, "ratio": peak / planned} | held)
    )
    return 0 if abs(peak / planned - 1) <= 0.1 else 1


if __name__ == "__main__":
    sys.exit(main())
