"""The line editor without a terminal: what is one message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("prompt_toolkit")
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from hgca_cli.ui.editor import Editor


@contextmanager
def editor() -> Iterator[tuple[Editor, PipeInput]]:
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        yield Editor([], {}, list, None, color=False), keys


@pytest.mark.parametrize(
    "text",
    [
        "one\rtwo",
        "one\r\rtwo\r\ttabbed",
        "x" * 1023 + "\rand the rest",
        "a line\r" * 999 + "the end",
    ],  # 1,024 are read at once
)
def test_a_paste_without_brackets_is_one_message(text: str) -> None:
    with editor() as (reader, keys):
        keys.send_text(text + "\r")
        assert reader.read() == text.replace("\r", "\n")


def test_what_was_typed_before_the_prompt_came_are_lines() -> None:
    """The terminal was no editor's then, and made a newline of Enter."""
    with editor() as (reader, keys):
        keys.send_text('one\ntwo\n"""\nthree\nfour"""\n\x04')
        assert [reader.read() for _ in range(3)] == ["one", "two", "three\nfour"]


def test_keys_behind_enter_are_no_paste() -> None:
    with editor() as (reader, keys):
        keys.send_text("one\r\x1b[Dtwo\x01zero \r")  # an arrow, Ctrl-A
        assert reader.read() == "one" and reader.read() == "zero two"
        keys.send_text("two\r\r")
        assert reader.read() == "two" and reader.read() == "", "Enter twice"
        keys.send_text("three\r\x04")
        assert reader.read() == "three"
        with pytest.raises(EOFError):
            reader.read()


def test_a_paste_in_brackets_is_sent_by_the_enter_after_it() -> None:
    with editor() as (reader, keys):
        keys.send_text("\x1b[200~one\rtwo\r\x1b[201~")
        keys.send_text("\r")
        assert reader.read() == "one\ntwo\n"
