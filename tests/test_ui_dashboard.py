"""The dashboard's lines at every size, its numbers, and what it hears. No terminal, no model."""

from __future__ import annotations

import io
import math
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len

from hgca_cli.errors import UsageError
from hgca_cli.events import Balanced, Done, Notice, PrefillProgress, Rows, Text
from hgca_cli.metrics import Metrics, Places, Spent, Used
from hgca_cli.ui import board as boards
from hgca_cli.ui import snapshot as snapshots
from hgca_cli.ui.board import Board
from hgca_cli.ui.console import HumanSink
from hgca_cli.ui.dashboard import block, block_rows, short, words
from hgca_cli.ui.gauges import ASCII, BLOCKS, bar, glyphs_for, heat_map, spark
from hgca_cli.ui.json_lines import JsonSink
from hgca_cli.ui.picture import save_picture
from hgca_cli.ui.pinned import Painter
from hgca_cli.ui.snapshot import Snapshot, Watcher
from hgca_cli.ui.style import Style

PLAN = SimpleNamespace(
    device="cpu", dtype="fp32", numbers="fp32", kv_dtype="bf16", context=8192, threads=2, select="scan", budget=None, quality=0.95,
    window=512, predicted=SimpleNamespace(read_gb_s=20.0), reasons={"window": "given", "select": "follows the query"},
)  # fmt: skip
HEADS = (None, (0.0, 0.04), (0.25, 1.0), (0.01, 0.02))
PLACES = Places(4, 500, 12, 3000, 2048, 20 << 20, 1 << 20, 60 << 20, 8 << 20)
METRICS = Metrics(
    device="cpu", tokens=3516, context=8192, threads=2, places=PLACES, spent=Spent(selection=0.002, attention=0.003),
    read_share=0.1234, bytes_share=0.25, quality=0.964, measured=7, asked=0.95, aim=0.94, heads=HEADS, read_bytes=10**7,
)  # fmt: skip
MOVE = Balanced("threads", 2, 1, "one is not slower")
WRITING = Snapshot(
    "tiny", PLAN, "writing", 50.0, (10.0, 50.0, 25.0), 1.5, None, None, METRICS, Used(1.9, 1 << 30), (MOVE,)
)
READING = replace(
    WRITING, phase="reading", rate=None, progress=PrefillProgress(8000, 1000, 2000, 2.0), left=12.0, moves=()
)
GPU = replace(
    WRITING,
    plan=SimpleNamespace(**vars(PLAN) | {"device": "cuda:0"}),
    metrics=replace(METRICS, device="cuda:0", to_host=1 << 20, to_device=1 << 10, evicted=5,
                    spent=Spent(0.004, 0.001, 0.002, 0.0005)),
    used=Used(1.0, 1 << 30, 2 << 30, 8 << 30, None),
    evicting=1 << 21,
)  # fmt: skip


def text_of(lines: list[list[tuple[str, str]]]) -> str:
    return "\n".join("".join(text for text, _ in line) for line in lines)


@pytest.mark.parametrize("snapshot", [WRITING, READING, GPU, replace(WRITING, metrics=None, used=None, rate=None)])
@pytest.mark.parametrize("glyphs", [BLOCKS, ASCII])
@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (100, 30), (200, 50)])
def test_it_fits(snapshot: Snapshot, glyphs: Any, columns: int, rows: int) -> None:
    height = block_rows(columns, rows)
    assert 12 <= height <= rows // 2
    lines = block(snapshot, columns, height, glyphs)
    shown = text_of(lines)
    assert len(lines) == height and all(cell_len(line) <= columns for line in shown.splitlines())
    assert glyphs is BLOCKS or shown.isascii()
    assert "tiny" in shown and ("scan, quality 0.95" in shown)


def test_what_it_says() -> None:
    shown = text_of(block(WRITING, 110, 15, BLOCKS))
    for part in (
        "50.0 tok/s", "first after 1.5 s", "3,516 of 8,192 (43%)", "20.0 ms", "selection 2.0", "attention 3.0",
        "rest of the model 15.0", "4 sinks | 500 window | 12 pending | 3,000 store (2,048 clustered)",
        "20.0 MiB on cpu | 1.0 MiB pending | 60.0 MiB store + 8.0 MiB index", "12.3% of the store, 25.0% of its bytes",
        "quality 96.4% (95.0% asked), aims at 94.0%, 7 readings", "cpu 1.9 of 2 threads, 1.0 GiB",
        "reads 2.0 of 20.0 GB/s; GPU, PCIe n/a", "4 layers x 2: mean 22.0% of the store, most 100.0% (layer 2, head 1)",
        "threads 2 to 1: one is not slower", "window 512: given",
    ):  # fmt: skip
        assert part in shown, part
    reading = text_of(block(READING, 80, 12, BLOCKS))
    assert "2,000 of 8,000 tokens, 500 tok/s, 0:12 left" in reading and "█" in reading
    gpu = text_of(block(GPU, 120, 15, BLOCKS))
    assert "window 4.0" in gpu and "hidden 0.5" in gpu
    assert "gpu      n/a, 2.0 GiB of 8.0 GiB; PCIe 50.0 MiB/s out, 50.0 KiB/s back, 2.0 MiB/s evicted" in gpu
    nothing = replace(WRITING, metrics=replace(METRICS, spent=Spent(), read_bytes=None, quality=None), rate=None)
    unknown = text_of(block(nothing, 80, 12, BLOCKS))
    assert "token    n/a" in unknown and "quality n/a" in unknown and "reads n/a of 20.0" in unknown


def test_words_have_every_number_and_no_drawing() -> None:
    said = "\n".join(words(WRITING))
    assert said.isascii() and "50.0 tok/s" in said and "3,000 store" in said and "most 100.0% (layer 2, head 1)" in said
    assert "#" not in said and "head 0" not in said


@pytest.mark.parametrize(
    ("columns", "rows", "height"), [(80, 24, 12), (79, 24, 1), (80, 23, 1), (60, 20, 1), (19, 30, 0), (80, 5, 0)]
)
def test_a_small_terminal_gets_a_line_that_says_so(columns: int, rows: int, height: int) -> None:
    assert block_rows(columns, rows) == height
    line = text_of([short(WRITING, columns, rows)])
    assert len(line) <= columns and line.startswith(f"dashboard needs 80x24, this is {columns}x{rows}"[:columns])
    assert columns < 60 or "50.0 tok/s" in line


def test_colours_are_codes_and_without_them_nothing_is_lost() -> None:
    lines = block(WRITING, 80, 12, BLOCKS)
    plain, colored = (Painter(80, color=color) for color in (False, True))
    assert [plain.paint(line) for line in lines] == text_of(lines).splitlines()
    assert "\x1b[32m" in "".join(colored.paint(line) for line in lines)
    assert (
        plain.paint([("wide 東京" * 20, "")]).startswith("wide 東京") and cell_len(plain.paint([("東" * 90, "")])) == 80
    )
    assert "\x1b" not in plain.paint([("a\x1b[2Jb", "")])


def test_the_encoding_decides() -> None:
    assert glyphs_for("utf-8") is BLOCKS and glyphs_for("ascii") is ASCII and glyphs_for("latin-1") is ASCII
    assert glyphs_for(None) is ASCII and glyphs_for("no such") is ASCII


def test_bars_fill_their_width_and_hide_no_part() -> None:
    assert bar([0.5, 0.25, 0.25], 20) == [10, 5, 5] and bar([0.3], 10) == [3]
    assert bar([0.001, 0.999], 10) == [1, 9] and bar([0.0, 1.0], 4) == [0, 4] and bar([1.0], 0) == [0]
    assert spark([1.0, 4.0, 2.0], 2, ASCII) == "@=" and spark([0.0], 5, ASCII) == " " and spark([], 5, BLOCKS) == ""


def test_heat_map_numbers() -> None:
    whole = heat_map(HEADS, 80, 8)
    assert whole is not None and whole.cells == [[None, 0.0, 0.25, 0.01], [None, 0.04, 1.0, 0.02]]
    assert whole.mean == pytest.approx(1.32 / 6) and whole.most == 1.0 and whole.at == (2, 1)
    small = heat_map(HEADS, 2, 1)  # the largest of what a cell stands for
    assert small is not None and small.cells == [[0.04, 1.0]]
    assert (small.layers_per_cell, small.heads_per_cell) == (2, 2) and small.mean == whole.mean
    assert heat_map([None, None], 9, 9) is None and heat_map([], 9, 9) is None
    many = heat_map([[head / 128 for head in range(128)]] * 126, 71, 5)
    assert many is not None and len(many.cells) <= 5 and len(many.cells[0]) <= 71
    shown = text_of(block(WRITING, 80, 12, ASCII)).splitlines()
    row = next(line for line in shown if line.startswith("head 1"))[9:]
    assert [row[i : i + 4] for i in range(0, 16, 4)] == [
        ASCII.levels[0 if share is None else ASCII.level(math.sqrt(share))] * 4 for share in whole.cells[1]
    ]


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_rates_are_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(snapshots, "time", clock)
    tokens, evicted = [10], [0]

    def read() -> Metrics:
        return replace(METRICS, tokens=tokens[0], evicted=evicted[0])

    watcher = Watcher(read, lambda: Used(None, 0), PLAN, "tiny")
    assert watcher.sample().phase == "waiting"
    watcher.begin()
    watcher.see(PrefillProgress(10, 0, 5, 1.0))
    assert watcher.sample().phase == "reading"
    watcher.see(PrefillProgress(10, 0, 10, 2.0))
    clock.now += 2.0
    watcher.see(Text("a"))
    assert watcher.sample().ttft == 2.0 and watcher.sample().rate is None
    for _ in range(20):  # 8 a second
        clock.now += 0.5
        tokens[0] += 4
        evicted[0] += 100
        taken = watcher.sample()
    assert taken.rate == pytest.approx(8.0) and taken.evicting == pytest.approx(200.0) and len(taken.history) == 20
    for _ in range(20):  # a token takes 5 s: the rate is still of two tokens
        clock.now += 2.5
        tokens[0] += _ % 2
        taken = watcher.sample()
    assert taken.rate == pytest.approx(0.2, rel=0.5)
    watcher.see(MOVE)
    watcher.see(Done("stop", 10, 0, 5, 1.0, 1.25, 2.0, Rows(1, 2, 0.5)))
    taken = watcher.sample()
    assert (taken.phase, taken.ttft, taken.rate, taken.moves) == ("waiting", 1.25, 2.0, (MOVE,))


def made(mode: str, *, bar: bool, sink: Any = None) -> Board:
    style = Style(color=False, bar=bar)
    watcher = Watcher(lambda: METRICS, lambda: Used(1.9, 1 << 30), PLAN, "tiny")
    inner = sink or HumanSink(style, stats=False, stream=True, quiet=False)
    return Board(inner, watcher, lambda: None, style, mode, as_json=sink is not None)


DONE = Done("stop", 10, 0, 5, 1.0, 1.25, 2.0, Rows(1, 2, 0.5), text="a")
ANSWER = (PrefillProgress(10, 0, 0, 0.0), PrefillProgress(10, 0, 10, 1.0), Text("a"), DONE)


def test_without_a_terminal_it_is_words_after_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    board = made("full", bar=False)
    for event in (Notice("note"), *ANSWER):
        board.show(event)
    board.close()
    out, err = capsys.readouterr()
    assert out == "a\n" and err.startswith("note\n") and "3,000 store" in err and "\x1b" not in err and err.isascii()
    board.switch("line")
    for event in ANSWER:
        board.show(event)
    assert capsys.readouterr().err == ""
    assert "\n".join(board.drawn(80, 24)).isascii()
    with pytest.raises(UsageError, match="line, full, off"):
        board.switch("none")


def test_programs_hear_everything(capsys: pytest.CaptureFixture[str]) -> None:
    board = made("off", bar=False, sink=JsonSink(stream=True, quiet=False))
    for event in ANSWER:
        board.show(event)
    board.close()
    assert [line.split('"')[3] for line in capsys.readouterr().out.splitlines()] == [
        "prefill",
        "prefill",
        "token",
        "done",
    ]


def test_off_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode, bars in (("off", False), ("line", True)):
        board = made(mode, bar=True)
        board.show(PrefillProgress(10, 0, 0, 0.0))
        assert (board._sink._bar is not None) == bars  # type: ignore[attr-defined]
        board.close()


def test_a_dashboard_that_fails_lets_the_answer_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("no")

    monkeypatch.setattr("hgca_cli.ui.pinned.os.get_terminal_size", lambda _: os.terminal_size((80, 24)))
    monkeypatch.setattr("hgca_cli.ui.pinned.Pinned._put", lambda self, text: None)
    monkeypatch.setattr("sys.stderr", Lively())
    monkeypatch.setattr(boards, "block", broken)
    board = made("full", bar=True)
    board.show(ANSWER[0])
    assert board._drawing is not None
    board._drawing.wait(20)
    for event in ANSWER[1:]:
        board.show(event)
    board.close()
    assert capsys.readouterr().out == "a\n"


class Lively(io.StringIO):
    def fileno(self) -> int:
        return 2

    def isatty(self) -> bool:
        return True


def test_a_picture(tmp_path: Any) -> None:
    save_picture(WRITING, "the answer " * 400, tmp_path / "one.svg", 80, 24)
    svg = (tmp_path / "one.svg").read_text()
    assert svg.startswith("<svg") and "50.0" in svg and "answer" in svg
