"""What keys do in the line editor, and what Tab completes. Only imported where there is a terminal."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable, Mapping

from prompt_toolkit.application import get_app
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter, WordCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, is_searching
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

from hgca_cli.ui.editor import in_block

BLANKS = (Keys.Enter, Keys.ControlJ, Keys.Tab)  # keys that are text in a paste
PASTE_SECONDS = 0.003  # from one piece of a paste to the next
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


def _send(buffer: Buffer, *, more: bool = False) -> None:
    """A message is whole, or goes on in the next line."""
    if more or in_block(buffer.text):
        buffer.insert_text("\n")
    else:
        buffer.validate_and_handle()


def _pasted(event: KeyPressEvent) -> bool:
    """Whether text comes right behind an Enter: a paste, from a terminal that does not say so (bracketed paste)."""
    if not event.key_processor.input_queue and _comes(event.app.input):
        event.key_processor.feed_multiple(event.app.input.read_keys())
    return _text_follows()


def _text_follows() -> bool:
    """Whether text was read already behind the key that is looked at, or behind blank lines: by hand nobody types so fast."""
    waiting = get_app().key_processor.input_queue
    first = next((one for one in waiting if one.key not in BLANKS), None)
    return first is not None and len(first.key) == 1 and first.key == first.data


def _comes(source: Input) -> bool:
    """Whether there is more to read, or soon will be."""
    try:
        return bool(select.select([source.fileno()], [], [], PASTE_SECONDS)[0])
    except (OSError, ValueError, NotImplementedError):  # Windows, which gives a paste as a whole
        return False


def editor_keys() -> KeyBindings:
    """Enter sends, but not inside a block of triple quotes, nor amid a paste; Esc Enter and Alt-Enter begin a new line; Ctrl-G edits
    elsewhere.
    """
    keys = KeyBindings()

    @keys.add("enter", filter=~is_searching)  # there it takes what was found
    def _enter(event: KeyPressEvent) -> None:
        _send(event.current_buffer, more=_pasted(event))

    @keys.add("c-j", filter=~is_searching)  # what was typed before the prompt came: the terminal made it of Enter then
    def _enter_before(event: KeyPressEvent) -> None:
        _send(event.current_buffer)

    @keys.add("tab", filter=Condition(_text_follows))  # else it completes
    def _tab(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\t")

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-g", filter=~is_searching)
    def _edit(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    return keys
