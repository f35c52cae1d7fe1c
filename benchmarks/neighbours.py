"""A chat beside other busy processes: prompt and answer, with OpenMP's threads waiting as `hgca` has them, and as they come.

    python benchmarks/neighbours.py --model smollm2-135m --text book.txt [--busy 0 1 2] [--tokens 2048] [--new 100] [--record]

Each figure is of a process of its own, in turns, medians: tokens a second read and written beside so many processes that
compute without end (on two cores, two of them leave half of each to others). `asleep`: GOMP_SPINCOUNT as hgca_cli/__main__.py
sets it; `awake`: GNU OpenMP's own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from gguf_file import figures_of

from hgca_cli.__main__ import SPINS
from hgca_cli.measure.machine import where_and_when

RESULTS = Path(__file__).parent / "results" / "neighbours.jsonl"
HOW = {"awake": {}, "asleep": {"GOMP_SPINCOUNT": SPINS}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", required=True)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--new", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    for busy in options.busy:
        beside = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            turns = [{how: one(options, variables) for how, variables in HOW.items()} for _ in range(options.turns)]
        finally:
            for process in beside:
                process.kill()
                process.wait()
        told = {
            "benchmark": "neighbours",
            "model": options.model,
            "tokens": options.tokens,
            "busy": busy,
            **{
                how: {what: round(median(turn[how][what] for turn in turns), 1) for what in ("read", "write")}
                for how in HOW
            },
        }
        print(f"{busy} busy: " + ", ".join(f"{how} {told[how]}" for how in HOW), flush=True)
        if options.record:
            with RESULTS.open("a") as file:
                file.write(json.dumps(where_and_when(options.threads) | told) + "\n")


def one(options: argparse.Namespace, variables: dict[str, str]) -> dict[str, float]:
    told = [f"--{name}={getattr(options, name)}" for name in ("text", "tokens", "new", "threads")]
    words = [sys.executable, str(Path(__file__).with_name("gguf_file.py")), options.model, *told, "--one", "hgca"]
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    return figures_of(words, plain | variables)


if __name__ == "__main__":
    main()
