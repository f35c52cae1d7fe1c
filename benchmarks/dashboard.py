"""What the dashboard costs: the default model decodes with it and without it, in turns; or a picture of it.

    python benchmarks/dashboard.py [--rows 4096] [--columns 100 --lines 30] [--record]
    python benchmarks/dashboard.py --svg docs/dashboard.svg
    python benchmarks/dashboard.py --job [--svg docs/batch.svg] [--record]

Both sides print the same tokens of a text to a terminal (a pseudo-terminal whose other end is read by `cat`) and go on in the
same sequence. Printed is the median, over turns next to each other, of the rate with `--dashboard full` over the rate of a sink that
knows no dashboard, beside the same for `--dashboard line`, which shows what noise there is; and the time the dashboard's own thread
computes.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from balance import read, text_of

from hgca_cli.batch.tally import Tally
from hgca_cli.commands.board import with_board
from hgca_cli.commands.setup import ModelChoice, plan_model, start_engine
from hgca_cli.config import SamplingSettings
from hgca_cli.engine.batch import Batch, Progress
from hgca_cli.engine.batch_metrics import BatchReadings
from hgca_cli.engine.conversation import Conversation
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.member import Answer, Request
from hgca_cli.engine.sequence import Sequence
from hgca_cli.events import PrefillProgress, Text
from hgca_cli.hardware.settings import PlanRequest
from hgca_cli.hardware.usage import Usage
from hgca_cli.measure.machine import where_and_when
from hgca_cli.ui.board import Board
from hgca_cli.ui.console import HumanSink
from hgca_cli.ui.dashboard import block_rows
from hgca_cli.ui.drawing import SECONDS
from hgca_cli.ui.gauges import BLOCKS
from hgca_cli.ui.job import JobView
from hgca_cli.ui.job_dashboard import job_block
from hgca_cli.ui.job_snapshot import JobWatcher
from hgca_cli.ui.picture import save_lines, save_picture
from hgca_cli.ui.style import Style

MIDDLE = 1500  # characters of an answer
JOB_SLOTS = 6
SIDES = ("none", "line", "full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--select", default="scan")
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--lines", type=int, default=30)
    parser.add_argument("--turn", type=int, default=96, help="tokens of a turn")
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--svg", type=Path, help="save a picture of the dashboard in the middle of an answer, and end")
    parser.add_argument("--job", action="store_true", help="a picture of a job's dashboard")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/dashboard.jsonl")
    options = parser.parse_args()
    tokens = len(SIDES) * options.turn * (options.turns + 1)
    context = 1024 * -(-(options.rows + tokens + 1) // 1024)
    request = PlanRequest(window=options.window, context=context, select=options.select)
    choice = ModelChoice(options.model)
    files, plan = plan_model(choice, request, lambda event: None, profile="auto" if options.svg else "none")
    engine = start_engine(choice, files, plan, balance=options.svg is not None)
    if options.svg:
        (draw_job if options.job else draw)(engine, plan, options)
        return
    if options.job:
        job_in_turns(engine, plan, options)
        return
    ids = text_of(engine.loaded, None, options.rows + tokens)
    engine.sequence = read(engine, ids[: options.rows])
    with terminal(options.columns, options.lines):
        seconds, busy = in_turns(engine, plan, ids[options.rows :], options)
    told = {}
    for name in SIDES[1:]:
        ratios = [none / one for none, one in zip(seconds["none"], seconds[name], strict=True)]
        low, middle, high = quantiles(ratios, n=4)
        told[name] = {"ratio": middle, "quarter": low, "three_quarters": high}
        print(f"{name}: {middle:.4f} of the rate without any (quartiles {low:.4f} .. {high:.4f})")
    ms = 1e3 * median(seconds["none"])
    print(
        f"a token takes {ms:.1f} ms without it; its thread computes {busy:.2%} of the time, {len(seconds['none'])} turns"
    )
    if options.record:
        line = {"benchmark": "dashboard", "model": options.model, "select": options.select, "rows": options.rows}
        line |= {"columns": options.columns, "lines": options.lines, "turn": options.turn, "turns": options.turns}
        line |= {"token_ms": ms, "thread_share": busy, "sides": told}
        with Path(__file__).with_name("results").joinpath("dashboard.jsonl").open("a") as file:
            file.write(json.dumps(line | where_and_when(plan.threads)) + "\n")


def in_turns(engine: Engine, plan: Any, ids: list[int], options: Any) -> tuple[dict[str, list[float]], float]:
    """Seconds of a token in each turn of each side, and the share of its time the dashboard's thread computes. The first turn
    warms up.
    """
    boards = {name: shown_as(engine, plan, name) for name in SIDES}
    took: dict[str, list[float]] = {name: [] for name in SIDES}
    computing = passed = 0.0
    for turn in range(options.turns + 1):
        for name in SIDES[turn % 3 :] + SIDES[: turn % 3]:
            mine, ids = ids[: options.turn], ids[options.turn :]
            began, before = time.perf_counter(), getattr(boards[name], "computed", 0.0)
            seconds = write(engine, mine, boards[name])
            if turn:
                took[name].append(seconds)
            if turn and name == "full":
                passed += time.perf_counter() - began
                computing += boards["full"].computed - before  # type: ignore[union-attr]
    return took, computing / passed


def shown_as(engine: Engine, plan: Any, mode: str) -> Board | HumanSink:
    """What a chat shows on a terminal; none: without a dashboard that could be switched on."""
    style = Style(color=True, bar=True)
    sink = HumanSink(style, stats=False, stream=True, quiet=True)
    return sink if mode == "none" else with_board(sink, engine, plan, style, mode)


def write(engine: Engine, ids: list[int], shown: Board | HumanSink) -> float:
    """Seconds of a token: forward passes, and what is shown of them."""
    sequence = engine.sequence
    assert sequence is not None
    total = len(sequence.tokens)
    shown.show(PrefillProgress(total, total, total, 0.0))
    began = time.perf_counter()
    for token in ids:
        step(engine, sequence, token, shown)
    seconds = time.perf_counter() - began
    shown.close()
    return seconds / len(ids)


def step(engine: Engine, sequence: Sequence, token: int, shown: Board | HumanSink) -> None:
    """One token of an answer."""
    sequence.tokens.append(token)
    logits = sequence.forward(engine.loaded, torch.tensor([[token]]))
    int(logits.argmax())
    shown.show(Text(engine.loaded.tokenizer.decode([token])))


def draw(engine: Engine, plan: Any, options: Any) -> None:
    """Ask about one of this repository's documents, and save what a terminal shows in the middle of the answer."""
    question = "What is this document about? Explain it at length."
    conversation = Conversation(engine)
    document = Path(__file__).parent.parent / "docs" / "selection.md"
    text = engine.loaded.tokenizer.decode(engine.loaded.tokenizer.encode(document.read_text())[: options.rows])
    conversation.attach(document.name, text)
    style = Style(color=True, bar=True)
    shown = with_board(HumanSink(style, stats=False, stream=True, quiet=True), engine, plan, style, "off")
    said, drawn, taken = "", time.monotonic(), None
    stop = threading.Event()
    with terminal(options.columns, options.lines):
        for event in conversation.ask(question, SamplingSettings(temperature=0.7, max_tokens=1000), stop):
            shown.show(event)
            if not isinstance(event, Text):
                continue
            said += event.text
            if time.monotonic() - drawn >= SECONDS:
                taken, drawn = shown.snapshot(), time.monotonic()
            if len(said) > MIDDLE:
                stop.set()
        shown.close()
    assert taken is not None
    save_picture(taken, f">>> {question}\n{said}", options.svg, options.columns, options.lines)
    print(f"{options.svg}: {options.svg.stat().st_size:,} bytes")


def job_in_turns(engine: Engine, plan: Any, options: Any) -> None:
    """The same of a job: rows of few tokens, answered with its dashboard and with no progress at all, in turns."""
    seconds: dict[str, list[float]] = {"off": [], "full": []}
    ids = text_of(engine.loaded, None, 64 * JOB_SLOTS)
    asked = [
        Request(str(at), ids[64 * at : 64 * at + 64], SamplingSettings(temperature=0, max_tokens=options.turn))
        for at in range(JOB_SLOTS)
    ]
    with terminal(options.columns, options.lines):
        for turn in range(options.turns + 1):
            for mode in sorted(seconds, reverse=bool(turn % 2)):
                batch, tally = Batch(engine, JOB_SLOTS), Tally(JOB_SLOTS, 1)
                view = JobView(Style(color=True, bar=True), quiet=False, mode=mode)
                readings, used = BatchReadings(batch), Usage(plan.device).read
                view.watch(
                    JobWatcher(readings.take, readings.slots, used, tally, str, plan=plan, model="m", most=JOB_SLOTS)
                )
                began = time.perf_counter()
                for event in batch.run(iter(asked), threading.Event()):
                    if isinstance(event, Progress):
                        tally.written += event.written
                        view.progress(tally)
                took = time.perf_counter() - began
                view.close()
                if turn:
                    seconds[mode].append(took)
    low, middle, high = quantiles([off / full for off, full in zip(*seconds.values(), strict=True)], n=4)
    print(f"a job with --dashboard full: {middle:.4f} of the rate without (quartiles {low:.4f} .. {high:.4f})")
    if options.record:
        line = {"benchmark": "job dashboard", "model": options.model, "slots": JOB_SLOTS, "turn": options.turn}
        line |= {"turns": options.turns, "ratio": middle, "quarter": low, "three_quarters": high}
        with Path(__file__).with_name("results").joinpath("dashboard.jsonl").open("a") as file:
            file.write(json.dumps(line | where_and_when(plan.threads)) + "\n")


def draw_job(engine: Engine, plan: Any, options: Any) -> None:
    """Ask about parts of this repository's documents, several at once, and save what a terminal shows in the middle of it."""
    tokenizer = engine.loaded.tokenizer
    parts = [
        (f"{path.stem}-{at}", part)
        for path in sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
        for at, part in enumerate(path.read_text().split("\n## ")[1:9], 1)
    ]
    requests = []
    for name, part in parts:
        asked = f"{tokenizer.decode(tokenizer.encode(part)[:1800])}\n\nWhat is this about?"
        ids = tokenizer.encode_chat([{"role": "user", "content": asked}], add_generation_prompt=True)
        requests.append(Request(name, ids, SamplingSettings(max_tokens=100)))
    batch, tally, stop = (
        Batch(engine, JOB_SLOTS),
        Tally(len(parts), sum(len(one.ids) for one in requests)),
        threading.Event(),
    )
    readings = BatchReadings(batch)
    used = Usage(plan.device).read
    watcher = JobWatcher(
        readings.take, readings.slots, used, tally, str, plan=plan, model=engine.loaded.name, most=batch.slots
    )
    drawn, taken = time.monotonic(), watcher.sample()
    for event in batch.run(iter(requests), stop):
        if isinstance(event, Answer):
            tally.finish(len(event.request.ids), [event.done] if event.done is not None else [])
        elif isinstance(event, Progress):
            tally.read, tally.written = tally.read + event.read, tally.written + event.written
            if time.monotonic() - drawn >= SECONDS and event.writing > JOB_SLOTS // 2:
                taken, drawn = watcher.sample(), time.monotonic()
        if tally.done == JOB_SLOTS + 2:
            stop.set()
    height = block_rows(options.columns, options.lines)
    lines = job_block(taken, options.columns, height, BLOCKS)
    said = f"$ hgca batch questions.jsonl --dashboard full\n{len(parts)} rows, up to {JOB_SLOTS} at once"
    save_lines(lines, said, options.svg, options.columns, height + 3, "hgca batch --dashboard full")
    print(f"{options.svg}: {options.svg.stat().st_size:,} bytes")


@contextmanager
def terminal(columns: int, lines: int) -> Iterator[None]:
    """Standard output and error are a terminal of this size, which somebody reads."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    before = sys.stdout, sys.stderr
    with subprocess.Popen(["cat"], stdin=ours, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as reader:
        os.close(ours)
        sys.stdout, sys.stderr = os.fdopen(theirs, "w"), os.fdopen(os.dup(theirs), "w")
        try:
            yield
        finally:
            sys.stdout.close()
            sys.stderr.close()
            sys.stdout, sys.stderr = before
            reader.kill()


if __name__ == "__main__":
    main()
