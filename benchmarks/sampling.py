"""What drawing a token costs: tokens a second of answers that are greedy, and of such that are drawn, in turns, on the CPU.

    python benchmarks/sampling.py [--model smollm2-135m] [--tokens 200] [--turns 5] [--record]

Medians of the turns; one token after the other, no guesses. `ms` is what a token takes more than a greedy one.
"""

from __future__ import annotations

import argparse
import json
import threading
from pathlib import Path
from statistics import median
from typing import Any

from hgca_cli.commands.setup import ModelChoice, plan_model, start_engine
from hgca_cli.config import SamplingSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.events import Done
from hgca_cli.hardware.settings import PlanRequest
from hgca_cli.measure.machine import where_and_when

RESULTS = Path(__file__).parent / "results" / "sampling.jsonl"
TEXT = "Tell me a long story about a fox and a dog in the forest. "
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 0.7},
    "top-p 0.95": {"temperature": 0.7, "top_p": 0.95},
    "top-k 40": {"temperature": 0.7, "top_k": 40},
    "min-p 0.05": {"temperature": 0.7, "min_p": 0.05},
    "all, and penalties": {
        "temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1, "presence_penalty": 0.1,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=200, help="of an answer")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    choice = ModelChoice(options.model)
    files, plan = plan_model(choice, PlanRequest(device="cpu", context=4096), lambda _: None)
    engine = start_engine(choice, files, plan)
    engine.guesses = 0
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(options.turns + 1):
        for way, settings in WAYS.items():
            sampling = SamplingSettings(**settings, max_tokens=options.tokens, seed=turn)
            if (rate := answered(engine, sampling)) and turn:  # the first warms up
                rates[way].append(rate)
    found = {way: round(median(taken), 1) for way, taken in rates.items() if taken}
    more = {way: round(1000 / rate - 1000 / found["greedy"], 3) for way, rate in found.items()}
    for way, rate in found.items():
        print(f"{way:20} {rate:7.1f} tok/s, {rate / found['greedy']:.2f} of greedy, {more[way]:+.3f} ms a token")
    if options.record:
        line = {**where_and_when(plan.threads), "model": Path(options.model).name, "tok_s": found, "ms": more}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


def answered(engine: Engine, sampling: SamplingSettings) -> float | None:
    """Tokens a second of one answer."""
    sequence = engine.new_sequence()
    *_, done = engine.answer(sequence, engine.loaded.tokenizer.encode(TEXT), sampling, threading.Event())
    sequence.close()
    assert isinstance(done, Done)
    return done.tokens_per_second


if __name__ == "__main__":
    main()
