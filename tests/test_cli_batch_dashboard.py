"""The dashboard of `hgca batch` on a terminal: answers go on under it, and nothing of it is left, however the job ends."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from pathlib import Path

import pytest

from tests.cli_process import environment, here, save_tiny
from tests.screens import Terminal, block_of

BROKEN = """
import sys
from hgca_cli import app
from hgca_cli.engine.batch import Batch
from hgca_cli.errors import DoesNotFitError
run = Batch.run
def failing(self, *args):
    for count, event in enumerate(run(self, *args)):
        if count == 400:
            raise {"error": DoesNotFitError("no memory is left.", "Get some."), "twice": KeyboardInterrupt()}[END]
        yield event
Batch.run = failing
sys.exit(app.run(sys.argv[1:]))
"""
OFTEN = """
import sys
from hgca_cli import app
from hgca_cli.ui import job
job.WORDS_SECONDS = 0.5
sys.exit(app.run(sys.argv[1:]))
"""
NAMES = ["job", "writing", "token", "rows", "bytes", "read", "machine", "slots"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("dashboard") / "model")


@pytest.fixture
def start(model: str, tmp_path: Path):  # type: ignore[no-untyped-def]
    started: list[Terminal] = []
    source = tmp_path / "in.jsonl"
    rows = [{"id": f"row-{at}", "prompt": "the cat " * 30, "max_tokens": 250} for at in range(400)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*words: str, script: str = "", shell: bool = False, **env: str) -> Terminal:
        program = ["-c", script] if script else ["-m", "hgca_cli"]
        job = ["batch", str(source), "-m", model, "--select", "scan", "--window", "16", "--ctx", "400"]
        command = [sys.executable, *program, *job, "--concurrency", "3", "--dashboard", "full", *words]
        terminal = Terminal(
            ["bash", "--norc"] if shell else command, env=environment(**{"PYTHONIOENCODING": "utf-8"} | env)
        )
        started.append(terminal)
        if shell:
            terminal.send(f"clear; {shlex.join(command)}\r")
        return terminal

    yield run
    for terminal in started:
        terminal.child.close(force=True)


def is_whole(terminal: Terminal) -> bool:
    """Every line of the block is where it belongs, is there once, and sequences are among them."""
    names = [line[:9].strip() for line in block_of(terminal)[1:9]]
    shown = "\n".join(terminal.screen.display)
    return names == NAMES and shown.count("machine  cpu") == 1 and block_of(terminal)[9].startswith("row-")


def test_figures_stand_under_what_is_said_and_ctrl_c_restores_the_screen(start) -> None:  # type: ignore[no-untyped-def]
    terminal = start()
    terminal.until(lambda: is_whole(terminal), "dashboard")
    terminal.until(lambda: "of 400 rows" in terminal.flat and "quality" in terminal.flat, "shares")
    terminal.until(lambda: "400 rows, up to 3 at once" in terminal.everything, "what was said first")
    terminal.until_text("slots    3 of 3: ")
    terminal.until(lambda: "tok/s" in terminal.flat and "rest, prompts" in terminal.flat, "a token's time")
    for columns, rows in ((100, 30), (80, 24), (200, 50)):
        terminal.resize(columns, rows)
        terminal.until(lambda: is_whole(terminal), f"dashboard at {columns}x{rows}")
    terminal.resize(60, 20)
    terminal.until_text("dashboard needs 80x24, this is 60x20")
    terminal.resize(100, 30)
    terminal.until(lambda: is_whole(terminal), "dashboard again")
    terminal.send("typed meanwhile")
    terminal.look(0.7)
    assert "typed" not in terminal.text
    terminal.until(lambda: is_whole(terminal), "dashboard still")
    terminal.child.sendintr()
    terminal.until_text("interrupted; go on with: hgca batch")
    terminal.until(lambda: not terminal.child.isalive(), "end")
    assert terminal.as_before and terminal.child.exitstatus == 130


@pytest.mark.parametrize("end", ["error", "terminated", "twice"])
def test_however_a_job_ends(end: str, start) -> None:  # type: ignore[no-untyped-def]
    terminal = start(script="" if end == "terminated" else BROKEN.replace("END", repr(end)))
    if end == "terminated":
        terminal.until(lambda: is_whole(terminal), "dashboard")
        terminal.child.kill(signal.SIGTERM)
    terminal.until(lambda: not terminal.child.isalive(), "end")
    terminal.until(lambda: terminal.as_before, "screen as before")
    told = {"error": "error: no memory is left", "terminated": "go on with", "twice": "rows, up to 3"}[end]
    assert told in terminal.flat
    assert terminal.child.exitstatus == {"error": 4, "terminated": 143, "twice": 130}[end]


def test_a_stopped_job_leaves_the_shell_its_screen(start) -> None:  # type: ignore[no-untyped-def]
    terminal = start(shell=True)
    terminal.until(lambda: is_whole(terminal), "dashboard")
    terminal.child.send(b"\x1a")
    terminal.until_text("Stopped")
    terminal.until(lambda: terminal.as_before, "screen as before")
    terminal.send("fg\r")
    terminal.until(lambda: is_whole(terminal), "dashboard again")
    terminal.child.sendintr()
    terminal.until_text("go on with")
    terminal.until(lambda: terminal.as_before, "screen as before")
    terminal.send("stty -a\r")
    terminal.until_text(" echo ")


@pytest.mark.parametrize("case", ["ascii", "no colour", "dumb", "plain"])
def test_poorer_terminals(case: str, start) -> None:  # type: ignore[no-untyped-def]
    more = {"ascii": {"PYTHONIOENCODING": "ascii"}, "no colour": {"NO_COLOR": "1"}, "dumb": {"TERM": "dumb"}}
    words = ["--plain"] if case == "plain" else []
    terminal = start(*words, script=OFTEN, **more.get(case, {}))
    if case in ("dumb", "plain"):
        terminal.until_text("of 400 rows", "prompt ", "machine", "slot     row-")
        assert terminal.screen.margins is None
        return
    terminal.until(lambda: is_whole(terminal), "dashboard")
    if case == "ascii":
        assert "".join(block_of(terminal)).isascii()
    else:
        colors = {cell.fg for line in terminal.screen.buffer.values() for cell in line.values()}
        assert colors == {"default"} and "░" in "".join(block_of(terminal))


def test_off_shows_no_progress_and_a_file_gets_no_dashboard(model: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('"the cat"\n')
    words = ("batch", str(tmp_path / "in.jsonl"), "-m", model, "-n", "9", "--overwrite")
    done = here(*words, "--dashboard", "full")
    assert done.returncode == 0 and b"machine" not in done.stderr and b"\x1b" not in done.stderr
    assert b"1 of 1 rows done" in done.stderr
    for more, text in (
        (["--dashboard", "half"], "Choose from auto, line, full, off"),
        (["--dashboard", "full", "--quiet"], "--dashboard full and --quiet exclude each other"),
    ):
        done = here(*words, *more)
        assert done.returncode == 2 and text in done.stderr.decode()


def test_without_progress_nothing_comes_between_beginning_and_end(start) -> None:  # type: ignore[no-untyped-def]
    terminal = start("--dashboard", "off", "--limit", "12")
    seen: list[bool] = []

    def ended() -> bool:
        seen.append("12 rows, up to 3" in terminal.text and "of 12" in terminal.text)
        return "rows done in" in terminal.flat

    terminal.until(ended, "table")
    assert "running" not in terminal.flat and not any(seen[:-1])
