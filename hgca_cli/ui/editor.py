"""The line a person types into: history, paste kept whole, several lines, completion of commands and paths."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

BLOCK = '"""'


class Editor:
    """Reads what a person types, with prompt_toolkit.

    commands  slash commands to complete; status  gives the text of the bar below the line
    """

    def __init__(self, commands: Iterable[str], status: Callable[[], str], history: Path | None) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import PathCompleter, WordCompleter
        from prompt_toolkit.document import Document
        from prompt_toolkit.history import FileHistory, InMemoryHistory

        words = WordCompleter(sorted(commands), sentence=True)
        paths = PathCompleter(expanduser=True)

        class Completer(type(words)):  # type: ignore[misc]
            def get_completions(self, document: Any, event: Any) -> Any:
                line = document.text_before_cursor
                if line.startswith("/file "):
                    rest = line.removeprefix("/file ")
                    return paths.get_completions(Document(rest, len(rest)), event)
                return words.get_completions(document, event) if line.startswith("/") and " " not in line else ()

        self._session: Any = PromptSession(
            history=FileHistory(str(history)) if history else InMemoryHistory(),
            multiline=True,
            key_bindings=_keys(),
            completer=Completer([]),
            complete_while_typing=False,
            bottom_toolbar=status if os.environ.get("TERM") != "dumb" else None,
            prompt_continuation="... ",
        )

    def read(self) -> str:
        """One message; a block in triple quotes loses them. Raises EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C."""
        text = str(self._session.prompt(">>> "))
        stripped = text.strip()
        if stripped.startswith(BLOCK) and stripped.endswith(BLOCK) and len(stripped) >= 2 * len(BLOCK):
            return stripped[len(BLOCK) : -len(BLOCK)].strip("\n")
        return text


def _keys() -> Any:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: Any) -> None:
        buffer = event.current_buffer
        text = buffer.text.strip()
        if text.startswith(BLOCK) and (len(text) < 2 * len(BLOCK) or not text.endswith(BLOCK)):
            buffer.insert_text("\n")  # inside a block Enter is a new line
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return keys
