"""The dashboard on a terminal: an answer scrolls above it, and nothing of it is left, however the answer ends."""

from __future__ import annotations

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
from hgca_cli.engine import decode
from hgca_cli.engine.engine import Engine
from hgca_cli.errors import ModelError
answer = Engine.answer
def failing(self, *args, **named):
    for count, event in enumerate(answer(self, *args, **named)):
        if count == 400 and not hasattr(self, "failed"):
            self.failed = True
            raise {"error": ModelError("logits are not finite.", "Try another model."), "twice": KeyboardInterrupt()}[END]
        yield event
Engine.answer = failing
sys.exit(app.run(sys.argv[1:]))
"""
WRITING = """
import sys, time
from hgca_cli import app
from hgca_cli.engine.engine import Engine
from hgca_cli.events import Text
SAID = "# A heading\\n\\nSome **bold** words. " + "More of them follow here. " * 8 + "\\n\\n"
SAID += "".join(f"* item {n} is here, with `code`\\n" for n in range(12)) + "\\n## Code\\n\\n```python\\n"
SAID += "".join(f"line_{n} = {n}\\n" for n in range(30)) + "```\\n\\n| a | b |\\n|---|---|\\n| 1 | 2 |\\n\\nEND OF IT\\n"
answer = Engine.answer
def writing(self, *args, **named):
    said = iter([SAID[at : at + 5] for at in range(0, len(SAID), 5)])
    for event in answer(self, *args, **named):
        if isinstance(event, Text):
            time.sleep(0.01)
            if (piece := next(said, None)) is None:
                args[3].set()
                continue
            event = Text(piece)
        yield event
Engine.answer = writing
sys.exit(app.run(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("dashboard") / "model")


@pytest.fixture
def start(model: str, tmp_path: Path):  # type: ignore[no-untyped-def]
    started: list[Terminal] = []

    def run(*words: str, script: str = "", shell: bool = False, **env: str) -> Terminal:
        program = ["-c", script] if script else ["-m", "hgca_cli"]
        chat = [
            "chat",
            "-m",
            model,
            "--dashboard",
            "full",
            "--select",
            "scan",
            "--window",
            "16",
            "--ctx",
            "20k",
            "-n",
            "19000",
            *words,
        ]
        more = {"HGCA_DATA_DIR": str(tmp_path / "data"), "PROMPT_TOOLKIT_NO_CPR": "1", "PYTHONIOENCODING": "utf-8"}
        command = [sys.executable, *program, *chat]
        terminal = Terminal(["bash", "--norc"] if shell else command, env=environment(**more | env))
        started.append(terminal)
        if shell:
            terminal.send(f"clear; {shlex.join(command)}\r")
        terminal.until_text(">>>")
        return terminal

    yield run
    for terminal in started:
        terminal.child.close(force=True)


def is_whole(terminal: Terminal) -> bool:
    """Every line of the block is where it belongs, and is there once."""
    names = [line[:9].strip() for line in block_of(terminal)[1:7]]
    shown = "\n".join(terminal.screen.display)
    return names == ["writing", "token", "rows", "bytes", "read", "machine"] and shown.count("machine  cpu") == 1


def test_an_answer_scrolls_above_it_and_ctrl_c_restores_the_screen(start) -> None:  # type: ignore[no-untyped-def]
    terminal = start()
    terminal.send("the cat\r")
    terminal.until(lambda: is_whole(terminal), "dashboard")
    terminal.until_text("heads    2 layers x 2")
    terminal.until(lambda: terminal.screen.margins is not None and terminal.screen.margins.bottom == 11, "region")
    for columns, rows in ((100, 30), (80, 24), (200, 50)):
        terminal.resize(columns, rows)
        terminal.until(lambda: is_whole(terminal), f"dashboard at {columns}x{rows}")
    terminal.resize(60, 20)
    terminal.until_text("dashboard needs 80x24, this is 60x20")
    terminal.resize(90, 25)
    terminal.until(lambda: is_whole(terminal), "dashboard again")
    terminal.child.sendintr()
    terminal.until_text("interrupted", ">>>")
    terminal.until(lambda: terminal.as_before, "screen as before")
    terminal.send("/dashboard\r")
    terminal.until_text("machine  cpu", "dashboard full;")
    terminal.send("/dashboard line\r")
    terminal.until_text("dashboard line, from the next answer on")
    terminal.send("/dashboard lien\r")
    terminal.until_text("no such choice 'lien'")
    terminal.send("/exit\r")
    terminal.until(lambda: not terminal.child.isalive(), "end")
    assert terminal.child.exitstatus == 0 and terminal.screen.margins is None and not terminal.screen.cursor.hidden


@pytest.mark.parametrize("end", ["error", "terminated", "twice"])
def test_however_an_answer_ends(end: str, start) -> None:  # type: ignore[no-untyped-def]
    terminal = start(script="" if end == "terminated" else BROKEN.replace("END", repr(end)))
    terminal.send("the cat\r")
    if end == "error":
        terminal.until_text("error: logits are not finite")
        terminal.until(lambda: terminal.as_before, "screen as before")
        terminal.until_text(">>>")
        return
    if end == "terminated":
        terminal.until(lambda: is_whole(terminal), "dashboard")
        terminal.child.kill(signal.SIGTERM)
    terminal.until(lambda: not terminal.child.isalive(), "end")
    terminal.until(lambda: terminal.as_before, "screen as before")
    assert terminal.child.exitstatus == (143 if end == "terminated" else 130)


def test_a_stopped_program_leaves_the_shell_its_screen(start) -> None:  # type: ignore[no-untyped-def]
    terminal = start(shell=True)
    terminal.send("the cat\r")
    terminal.until(lambda: is_whole(terminal), "dashboard")
    terminal.child.send(b"\x1a")
    terminal.until_text("Stopped")
    terminal.until(lambda: terminal.as_before, "screen as before")
    terminal.send("fg\r")
    terminal.until(lambda: is_whole(terminal), "dashboard again")
    terminal.send("not seen")
    terminal.look(2.0)
    assert "not seen" not in terminal.text
    terminal.child.sendintr()  # and with it goes what was typed
    terminal.until_text("interrupted", ">>>")
    terminal.until(lambda: terminal.as_before, "screen as before")
    terminal.send("/exit\r")
    terminal.until(lambda: "bash" in terminal.flat.rpartition(">>> /exit")[2], "shell")
    terminal.send("stty -a\r")
    terminal.until_text(" echo ")


def test_what_is_typed_meanwhile_waits_for_the_prompt(start) -> None:  # type: ignore[no-untyped-def]
    terminal = start(script=WRITING)  # at its own pace: a fast machine would be done before anything is typed
    terminal.send("the cat\r")
    terminal.until(lambda: is_whole(terminal), "dashboard")
    terminal.send("typed ahead")
    terminal.look(1.0)
    assert "typed ahead" not in terminal.text
    terminal.until(lambda: is_whole(terminal), "dashboard still")
    terminal.until_text("END OF IT", ">>> typed ahead")


def test_markdown_scrolls_above_it(start) -> None:  # type: ignore[no-untyped-def]
    """An answer with everything in it, larger than the screen, at sizes that change in its midst: nothing is lost or torn."""
    terminal = start("--markdown", "on", script=WRITING)
    for columns, rows in ((80, 24), (200, 50)):
        terminal.resize(columns, rows)
        terminal.send("the cat\r")
        terminal.until(lambda: is_whole(terminal), f"dashboard at {columns}x{rows}")
        terminal.until_text("END OF IT", ">>>")
        terminal.until(lambda: terminal.as_before, "screen as before")
        written = terminal.everything.rpartition(">>> the cat")[2]
        assert [written.count(f"item {number} is here") for number in range(12)] == [1] * 12
        assert [written.count(f"line_{number} = {number}") for number in range(30)] == [1] * 30
        assert "```" not in written and "##" not in written and "machine" not in written
        assert "\nA heading\n" in written and " \u2022 item 0 is here" in written
    terminal.send("the cat\r")
    terminal.until(lambda: is_whole(terminal), "dashboard")
    for columns, rows in ((100, 30), (80, 24), (120, 40)):
        terminal.look(0.7)
        terminal.resize(columns, rows)
    terminal.until_text("END OF IT", ">>>")
    terminal.until(lambda: terminal.as_before, "screen as before")


@pytest.mark.parametrize("case", ["ascii", "no colour", "dumb", "plain"])
def test_poorer_terminals(case: str, start) -> None:  # type: ignore[no-untyped-def]
    more = {"ascii": {"PYTHONIOENCODING": "ascii"}, "no colour": {"NO_COLOR": "1"}, "dumb": {"TERM": "dumb"}}
    words = ["-n", "60" if case in ("dumb", "plain") else "19000", *(["--plain"] if case == "plain" else [])]
    terminal = start(*words, **more.get(case, {}))
    terminal.send("the cat " * 20 + "\r")
    if case in ("dumb", "plain"):
        terminal.until_text("of the model", "rows", "machine", ">>>")
        assert terminal.screen.margins is None
        return
    terminal.until(lambda: is_whole(terminal), "dashboard")
    drawn = "".join(block_of(terminal))
    if case == "ascii":
        assert drawn.isascii()
    else:
        colors = {cell.fg for line in terminal.screen.buffer.values() for cell in line.values()}
        assert colors == {"default"} and "█" in drawn + "▁"


def test_what_is_refused(model: str) -> None:
    for words, text in (
        (["--dashboard", "half"], "Choose from auto, line, full, off"),
        (["--dashboard", "full", "--json"], "--dashboard full and --json exclude each other"),
        (["--dashboard", "full", "--quiet"], "--dashboard full and --quiet exclude each other"),
    ):
        done = here("chat", "-m", model, "-p", "x", *words)
        assert done.returncode == 2 and text in done.stderr.decode()
    done = here("chat", "-m", model, "-p", "the cat", "-n", "3", "--dashboard", "full")
    assert done.returncode == 0 and b"machine  cpu" in done.stderr and b"\x1b" not in done.stderr
