"""What keys do in the line editor, and what Tab completes. Only imported where there is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter, WordCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import is_searching
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from hgca_cli.ui.editor import in_block

PATHS = ("/file ", "/read ", "/glob ", "/export ")


class SlashCompleter(Completer):
    """Slash commands at the start of a line, paths after those that take one, and words after others.

    words  after a command (without its slash): what it can be followed by, asked for when Tab is pressed
    """

    def __init__(self, commands: Iterable[str], words: Mapping[str, Callable[[], Iterable[str]]]) -> None:
        self._commands = WordCompleter(sorted(commands), sentence=True)
        self._paths = PathCompleter(expanduser=True)
        self._words = words

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Completions of what stands before the cursor."""
        line = document.text_before_cursor
        if not line.startswith("/"):
            return ()
        command, blank, rest = line.partition(" ")
        if not blank:
            return self._commands.get_completions(document, complete_event)
        if line.startswith(PATHS):
            rest = rest[rest.rfind(" ") + 1 :]  # of several paths the last
            return self._paths.get_completions(Document(rest, len(rest)), complete_event)
        if (words := self._words.get(command[1:])) is not None and " " not in rest:
            return [Completion(word, start_position=-len(rest)) for word in sorted(words()) if word.startswith(rest)]
        return ()


def editor_keys() -> KeyBindings:
    """Enter sends, but not inside a block of triple quotes; Esc Enter and Alt-Enter begin a new line; Ctrl-G edits elsewhere."""
    keys = KeyBindings()

    @keys.add("enter", filter=~is_searching)  # there it takes what was found
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if in_block(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-g", filter=~is_searching)
    def _edit(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    return keys
