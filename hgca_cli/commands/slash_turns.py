"""Slash commands that answer, or take an answer back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hgca_cli.commands.inputs import prompt_text
from hgca_cli.ui.editor import edited_elsewhere

if TYPE_CHECKING:
    from hgca_cli.commands.talk import Talk


def regenerate(talk: Talk, rest: str) -> None:
    """Another answer to the last question."""
    talk.regenerate()


def go_on(talk: Talk, rest: str) -> None:
    """More of the last answer."""
    talk.go_on()


def undo(talk: Talk, rest: str) -> None:
    """Take the last question and its answer back; documents before it are attached again."""
    before = len(talk.attached)
    text = talk.undo()
    again = len(talk.attached) - before
    kept = f"; {again} document{'s are' if again > 1 else ' is'} attached again" if again else ""
    talk.sink.tell(f"taken back: '{' '.join(text.split())[:60]}'{kept} ({talk.status()})")


def edit_message(talk: Talk, rest: str) -> None:
    """Write a message in an editor, and send it. Raises UsageError where there is none."""
    text = edited_elsewhere(rest)
    if not text.strip():
        talk.sink.tell("nothing was written: nothing is sent")
        return
    if len(text.strip().splitlines()) > 1 or text.strip() != rest:
        talk.sink.tell(text.rstrip())
    talk.ask(prompt_text(text.strip("\n"), "the message"))
