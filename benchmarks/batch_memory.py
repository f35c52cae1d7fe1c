"""Peak memory of a job with a long queue: rows of mixed length, as many at once as its limit has room for.

    python -m benchmarks.batch_memory [--rows 1000] [--longest 6000] [--limit 3G] [--seconds 240] [--record]
    python -m benchmarks.batch_memory --model tiny --limit 900M --seconds 0
    python -m benchmarks.batch_memory --alike 6000 --rows 64 --longest 100 --limit 3G

Runs `hgca batch` as a person would, and looks at the process's memory all the time: pages that rows have in common are counted
once. With --alike all begin with the same document of so many tokens. Lengths are spread evenly over their
logarithms; a third of the rows begin like the one before. After --seconds (0: when it is done) the job gets Ctrl-C, as a whole one
takes half an hour. Exits with 1 if the peak is beyond the limit.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from hgca_cli import native
from hgca_cli.measure.machine import where_and_when
from hgca_cli.units import format_bytes, parse_bytes
from tests.cli_process import ROOT, environment, save_tiny

RESULTS = Path(__file__).parent / "results" / "batch_memory.jsonl"
WORDS = ["the", "cat", "sat", "on", "mat"]  # a token each, also in the tiny model's vocabulary
LOOK_SECONDS = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="tiny: a random one")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--shortest", type=int, default=20)
    parser.add_argument("--longest", type=int, default=6000)
    parser.add_argument("--alike", type=int, default=0, help="tokens that all rows begin with, before their own")
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--slots", default="256", help="most rows at once, if there is room; auto: what pays")
    parser.add_argument("--limit", default="3G")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = measure(options, Path(folder))
    print(json.dumps(told, indent=1))
    if options.record:
        with RESULTS.open("a") as file:
            file.write(json.dumps({"benchmark": "batch_memory", **where_and_when(native.threads())} | told) + "\n")
    return 0 if told["peak"] <= told["limit"] else 1


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The job, and its peak."""
    rng = random.Random(options.seed)
    source, metrics = folder / "in.jsonl", folder / "metrics.json"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows_of(options, rng)))
    model = save_tiny(folder / "model") if options.model == "tiny" else options.model
    words = [
        "batch",
        str(source),
        "-m",
        model,
        "--ctx",
        "10k",
        "-n",
        str(options.new),
        "--temp",
        "0",
        "--metrics",
        str(metrics),
    ]
    words += ["--ram-limit", options.limit, "--concurrency", options.slots]
    env = environment(OMP_NUM_THREADS=str(psutil.cpu_count(logical=False)))
    running = subprocess.Popen([sys.executable, "-m", "hgca_cli", *words], env=env, cwd=ROOT, stderr=subprocess.PIPE)
    process, peak, began, told = psutil.Process(running.pid), 0, time.monotonic(), False
    while running.poll() is None:
        try:
            if process.memory_info().rss > peak:  # the other figure takes the system longer, and is never more
                peak = max(peak, process.memory_full_info().pss)
        except psutil.NoSuchProcess:
            break
        if not told and options.seconds and time.monotonic() - began > options.seconds:
            running.send_signal(signal.SIGINT)
            told = True
        time.sleep(LOOK_SECONDS)
    said = running.communicate()[1].decode()
    if running.returncode not in (0, 3, 130):
        sys.exit(said)
    summary = json.loads(metrics.read_text())
    limit = parse_bytes(options.limit, "--limit")
    print(f"{format_bytes(peak)} of {format_bytes(limit)}, {summary['concurrency']} at once", file=sys.stderr)
    return {
        "model": options.model, "queued": options.rows, "shortest": options.shortest, "longest": options.longest,
        "alike": options.alike, "new": options.new, "limit": limit, "peak": peak, "ratio": round(peak / limit, 4),
        "done": summary["done"], "failed": summary["failed"],
        "concurrency": summary["concurrency"], "prompt_tokens": summary["prompt_tokens"], "cached_tokens": summary["cached_tokens"],
        "seconds": summary["seconds"],
    }  # fmt: skip


def rows_of(options: argparse.Namespace, rng: random.Random) -> list[dict[str, Any]]:
    """Prompts of about so many tokens: every word is one of a usual vocabulary."""
    made: list[dict[str, Any]] = []
    before: list[str] = []
    document = [rng.choice(WORDS) for _ in range(options.alike)]
    for at in range(options.rows):
        length = round(math.exp(rng.uniform(math.log(options.shortest), math.log(options.longest))))
        shared = before[: length // 2] if at % 3 == 2 else []
        before = shared + [rng.choice(WORDS) for _ in range(length - len(shared))]
        made.append({"id": str(at), "prompt": " ".join(document + before)})
    return made


if __name__ == "__main__":
    sys.exit(main())
