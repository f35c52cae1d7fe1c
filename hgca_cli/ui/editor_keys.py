"""What keys do in the line editor, and what Tab completes. Only imported where there is a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter, WordCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from hgca_cli.ui.editor import in_block

PATHS = ("/file ", "/read ")


class SlashCompleter(Completer):
    """Slash commands at the start of a line, paths after /file."""

    def __init__(self, commands: Iterable[str]) -> None:
        self._words = WordCompleter(sorted(commands), sentence=True)
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Completions of what stands before the cursor."""
        line = document.text_before_cursor
        if line.startswith(PATHS):
            rest = line.split(" ", 1)[1]
            return self._paths.get_completions(Document(rest, len(rest)), complete_event)
        if line.startswith("/") and " " not in line:
            return self._words.get_completions(document, complete_event)
        return ()


def editor_keys() -> KeyBindings:
    """Enter sends, but not inside a block of triple quotes; Esc Enter and Alt-Enter begin a new line."""
    keys = KeyBindings()

    @keys.add("enter")
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if in_block(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
