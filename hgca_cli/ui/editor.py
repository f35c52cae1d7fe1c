"""Lines a person types: an editor with history where there is a terminal for it, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from hgca_cli.errors import UsageError
from hgca_cli.ui.style import is_terminal

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = '"""'
PROMPT = ">>> "


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

    commands  slash commands to complete; status  gives the text of the bar below the line
    """

    def __init__(
        self, commands: Iterable[str], status: Callable[[], str], history: Path | None, *, color: bool
    ) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.output import ColorDepth

        from hgca_cli.ui.editor_keys import SlashCompleter, editor_keys

        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)) if history else InMemoryHistory(),
            multiline=True,
            key_bindings=editor_keys(),
            completer=SlashCompleter(commands),
            complete_while_typing=False,
            bottom_toolbar=status,
            prompt_continuation="... ",
            color_depth=None if color else ColorDepth.DEPTH_1_BIT,
        )

    def read(self) -> str:
        """One message; a block in triple quotes loses them."""
        return without_quotes(self._session.prompt(PROMPT))


def make_reader(
    commands: Iterable[str],
    status: Callable[[], str],
    history: Callable[[], Path | None],
    *,
    plain: bool,
    color: bool,
) -> Reader:
    """The editor if a person sits at both ends of a terminal that can move its cursor, else plain lines."""
    if plain or os.environ.get("TERM") == "dumb" or not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        return PlainReader()
    return Editor(commands, status, history(), color=color)


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
