"""What a chat costs over its engine: the time to the first word on the screen, and writing with Markdown and without, in turns.

    python benchmarks/chat.py [--prompt 512] [--rows 2048] [--record]

First word: a question about a document is asked as `hgca chat` does it, on a terminal with a bar and Markdown, until the terminal's
other end has the first byte of the answer; beside it the engine alone is given the same ids, until it has the first piece of text.
Writing: the same sequence is told documents with lists, code and headings, token by token; each piece is shown by a sink with Markdown,
or by one without. Printed are medians over turns next to each other; --aa shows what noise there is, as all sides are alike.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from balance import read, text_of
from dashboard import write

from hgca_cli.commands.inputs import Document
from hgca_cli.commands.setup import ModelChoice, plan_model, start_engine
from hgca_cli.commands.talk import Talk
from hgca_cli.config import SamplingSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.events import Text
from hgca_cli.hardware.settings import PlanRequest
from hgca_cli.measure.machine import where_and_when
from hgca_cli.ui.console import HumanSink
from hgca_cli.ui.style import Style

QUESTION = "What is this document about?"
FEW = SamplingSettings(temperature=0, max_tokens=4)
COLUMNS, LINES = 100, 30


class Screen:
    """The other end of a terminal. first: when it got the first byte since `forget`, None if it got none."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._came = threading.Event()
        self._first: float | None = None
        threading.Thread(target=self._read, daemon=True).start()

    def forget(self) -> None:
        self._came.clear()
        self._first = None

    @property
    def first(self) -> float:
        self._came.wait(60)
        assert self._first is not None, "nothing was shown"
        return self._first

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._file, 1 << 16)
            except OSError:
                return
            if data and self._first is None:
                self._first = time.perf_counter()
                self._came.set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the document that is asked about")
    parser.add_argument("--questions", type=int, default=15)
    parser.add_argument("--rows", type=int, default=2048, help="before what is written")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--select", default="scan")
    parser.add_argument("--turn", type=int, default=96, help="tokens of a turn")
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--aa", action="store_true", help="compare without Markdown with itself")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/chat.jsonl")
    options = parser.parse_args()
    tokens = 2 * options.turn * (options.turns + 1)
    context = 1024 * -(-(options.rows + tokens + options.prompt + 256) // 1024)
    request = PlanRequest(window=options.window, context=context, select=options.select)
    choice = ModelChoice(options.model)
    files, plan = plan_model(choice, request, lambda event: None, profile="none")
    engine = start_engine(choice, files, plan)
    ids = text_of(engine.loaded, None, options.rows + tokens)
    with terminals() as screen:
        alone, shown = first_words(engine, ids, options, screen)
        sequence = engine.sequence = read(engine, ids[: options.rows])
        off, on = in_turns(engine, ids[options.rows :], options)
        sequence.close()
    starts = [ours / theirs for ours, theirs in zip(shown, alone, strict=True)]
    rates = [without / rendered for without, rendered in zip(off, on, strict=True)]
    print(f"first word: {told(starts)} of the engine's {1e3 * median(alone):.0f} ms, {options.questions} questions")
    print(
        f"writing with Markdown: {told(rates)} of the rate without ({1e3 * median(off):.1f} ms a token), {options.turns} turns"
    )
    if options.record:
        line = {"benchmark": "chat", "model": options.model, "select": options.select, "prompt": options.prompt}
        line |= {"questions": options.questions, "rows": options.rows, "turn": options.turn, "turns": options.turns}
        line |= {"engine_ttft_ms": 1e3 * median(alone), "token_ms": 1e3 * median(off)}
        line |= {"ttft_ratio": list(quantiles(starts)), "markdown_ratio": list(quantiles(rates)), "alike": options.aa}
        with Path(__file__).with_name("results").joinpath("chat.jsonl").open("a") as file:
            file.write(json.dumps(line | where_and_when(plan.threads)) + "\n")


def told(ratios: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = quantiles(ratios, n=4)
    return f"{middle:.4f} (quartiles {low:.4f} .. {high:.4f})"


def first_words(engine: Engine, ids: list[int], options: Any, screen: Screen) -> tuple[list[float], list[float]]:
    """Seconds to the first piece of text of the engine alone, and to the first byte on the screen. The first turn warms up."""
    text = engine.loaded.tokenizer.decode(ids[: options.prompt])
    alone: list[float] = []
    shown: list[float] = []
    for turn in range(options.questions + 1):
        both = []
        for side in (0, 1) if turn % 2 else (1, 0):
            talk = Talk(engine, None, FEW, {}, sink_of("auto"), unechoed=True)
            talk.attach(Document("document", text))
            screen.forget()
            if side:
                time.sleep(0.05)  # what is on its way to the screen has come
                screen.forget()
                began = time.perf_counter()
                talk.answer(QUESTION)
                both.append((side, screen.first - began))
            else:
                both.append((side, engine_alone(talk)))
            talk.clear()
        if turn:
            alone.append(dict(both)[0])
            shown.append(dict(both)[1])
    return alone, shown


def engine_alone(talk: Talk) -> float:
    """Seconds until the engine has the first piece of an answer to the question and what is attached."""
    engine, (document, _) = talk.engine, talk.attached[0]
    asked = [{"role": "user", "content": f"{document.name}:\n\n{document.text.strip()}\n\n{QUESTION}"}]
    prompt = engine.loaded.tokenizer.encode_chat(asked, add_generation_prompt=True)
    sequence = engine.new_sequence()
    began = time.perf_counter()
    for event in engine.answer(sequence, prompt, FEW, threading.Event()):
        if isinstance(event, Text):
            break
    seconds = time.perf_counter() - began
    sequence.close()
    return seconds


def in_turns(engine: Engine, ids: list[int], options: Any) -> tuple[list[float], list[float]]:
    """Seconds of a token without Markdown and with it, of each turn. The first turn warms up."""
    sinks = sink_of("off"), sink_of("off" if options.aa else "on")
    took: tuple[list[float], list[float]] = ([], [])
    for turn in range(options.turns + 1):
        for side in (0, 1) if turn % 2 else (1, 0):
            mine, ids = ids[: options.turn], ids[options.turn :]
            seconds = write(engine, mine, sinks[side])
            if turn:
                took[side].append(seconds)
    return took


def sink_of(markdown: str) -> HumanSink:
    """What a chat shows on a terminal."""
    sink = HumanSink(Style(color=True, bar=True), stats=False, stream=True, quiet=False)
    sink.render(markdown)
    return sink


@contextmanager
def terminals() -> Iterator[Screen]:
    """Standard output and error are two terminals: the answer's, whose other end this gives, and one for the rest."""
    pairs = [pty.openpty() for _ in range(2)]
    screens = [Screen(ours) for ours, _ in pairs]
    for _, theirs in pairs:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (os.fdopen(theirs, "w") for _, theirs in pairs)
    try:
        yield screens[0]
    finally:
        sys.stdout.close()
        sys.stderr.close()
        sys.stdout, sys.stderr = before


if __name__ == "__main__":
    main()
