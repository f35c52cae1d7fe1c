"""Lines a person types: an editor with history where there is a terminal for it, plain lines elsewhere."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from hgca_cli.errors import UsageError
from hgca_cli.ui.style import is_terminal

BLOCK = '"""'
PROMPT = ">>> "
EDITORS = ("editor", "nano", "vim", "vi")  # without VISUAL and EDITOR


class Reader(Protocol):
    """Reads messages."""

    def read(self) -> str:
        """One message. Raises EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C."""
        ...


class PlainReader:
    """Messages line by line, those between triple quotes as one; the prompt goes where somebody sees it."""

    def read(self) -> str:
        """One message. Raises EOFError at the end of input, UsageError for bytes that are not UTF-8."""
        lines = [self._line(PROMPT)]
        while in_block("\n".join(lines)):
            lines.append(self._line("... "))
        return without_quotes("\n".join(lines))

    def _line(self, prompt: str) -> str:
        shown = sys.stderr if is_terminal(sys.stderr) else sys.stdout if is_terminal(sys.stdout) else None
        if shown is not None:
            shown.write(prompt)
            shown.flush()
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        try:
            return line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UsageError("that line is not valid UTF-8.", "Check the terminal's encoding.") from error


class Editor:
    """A line editor: history, paste kept whole, several lines, completion of commands and paths.

    commands  slash commands to complete; words  what may follow one; status  gives the parts of the bar below the line
    """

    def __init__(
        self,
        commands: Iterable[str],
        words: Mapping[str, Callable[[], Iterable[str]]],
        status: Callable[[], list[str]],
        history: Path | None,
        *,
        color: bool,
    ) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.output import ColorDepth

        from hgca_cli.ui.editor_keys import SlashCompleter, editor_keys

        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)) if history else InMemoryHistory(),
            multiline=True,
            tempfile_suffix=".md",
            key_bindings=editor_keys(),
            completer=SlashCompleter(commands, words),
            complete_while_typing=False,
            bottom_toolbar=lambda: f" {fitting(status(), self._session.output.get_size().columns - 2)} ",
            prompt_continuation="... ",
            color_depth=None if color else ColorDepth.DEPTH_1_BIT,
        )

    def read(self) -> str:
        """One message; a block in triple quotes loses them."""
        return without_quotes(self._session.prompt(PROMPT))


def edited_elsewhere(
    text: str, name: str = "message.md", instead: str = "write several lines between triple quotes"
) -> str:
    """What a person makes of a text in the editor of their choice. Raises UsageError without one, or if it fails.

    name     the file has in the editor
    instead  what can be done without an editor
    """
    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    words = shlex.split(chosen) if chosen else [next((one for one in EDITORS if shutil.which(one)), "")]
    if not words or not words[0]:
        raise UsageError("there is no editor.", f"Set EDITOR, or {instead}.")
    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        raise UsageError("there is no terminal to edit in.", f"{instead[0].upper()}{instead[1:]}.")
    with tempfile.TemporaryDirectory(prefix="hgca-") as folder:
        file = Path(folder) / name
        file.write_text(text, encoding="utf-8")
        try:
            subprocess.run([*words, str(file)], check=True)
            return file.read_text(encoding="utf-8")
        except subprocess.CalledProcessError as error:
            raise UsageError(
                f"{words[0]} ended with {error.returncode}: what it wrote is not taken.",
                "Set EDITOR to one that works.",
            ) from error
        except OSError as error:
            raise UsageError(f"{words[0]}: {error.strerror}.", "Set EDITOR to one that works.") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"what {words[0]} wrote is not UTF-8 text.", "Set EDITOR to one that works.") from error


def make_reader(
    commands: Iterable[str],
    words: Mapping[str, Callable[[], Iterable[str]]],
    status: Callable[[], list[str]],
    history: Callable[[], Path | None],
    *,
    plain: bool,
    color: bool,
) -> Reader:
    """The editor if a person sits at both ends of a terminal that can move its cursor, else plain lines."""
    if plain or os.environ.get("TERM") == "dumb" or not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        return PlainReader()
    return Editor(commands, words, status, history(), color=color)


def fitting(parts: Iterable[str], columns: int) -> str:
    """Parts in a row, without those there is no room for: none is cut in its midst."""
    line = ""
    for part in parts:
        line += part if len(line) + len(part) <= columns else ""
    return line.strip()


def in_block(text: str) -> bool:
    """Whether a block of triple quotes was begun and not ended."""
    text = text.strip()
    return text.startswith(BLOCK) and (len(text) < 2 * len(BLOCK) or not text.endswith(BLOCK))


def without_quotes(text: str) -> str:
    """A message without the triple quotes around it."""
    inside = text.strip()
    if inside.startswith(BLOCK) and inside.endswith(BLOCK) and len(inside) >= 2 * len(BLOCK):
        return inside[len(BLOCK) : -len(BLOCK)].strip("\n")
    return text
