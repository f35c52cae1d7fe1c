"""What can be typed in a chat instead of a message: a table of small functions."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING

from hgca_cli.commands.inputs import read_document
from hgca_cli.errors import UsageError

if TYPE_CHECKING:
    from hgca_cli.commands.talk import Talk


def run_slash(talk: Talk, line: str) -> None:
    """Run a slash command. Raises UsageError, with the nearest one, for a word that is none."""
    word, _, rest = line.removeprefix("/").partition(" ")
    name = SAME.get(word, word)
    if name not in COMMANDS:
        near = difflib.get_close_matches(word, [*COMMANDS, *SAME], n=1)
        hint = f"Did you mean /{near[0]}?" if near else "/help lists them."
        raise UsageError(f"no command /{word}.", f"{hint} (// sends a message that starts with /.)")
    COMMANDS[name][0](talk, rest.strip())


def _help(talk: Talk, rest: str) -> None:
    for name, (_, text) in COMMANDS.items():
        talk.sink.info(f"  /{name:<22}{text}" if " " not in text[:1] else text)
    talk.sink.info('  """ ... """            a message of several lines (or Esc Enter for a new line)')
    talk.sink.info("  Ctrl-C                 stops the answer; twice leaves. Ctrl-D leaves")


def _clear(talk: Talk, rest: str) -> None:
    talk.conversation.clear()
    talk.sink.info("conversation forgotten")


def _file(talk: Talk, rest: str) -> None:
    if not rest:
        raise UsageError("/file needs a path.", "/file notes.txt")
    for path in shlex.split(rest):
        talk.attach(read_document(path))


def _system(talk: Talk, rest: str) -> None:
    talk.conversation.clear(rest)
    talk.sink.info("system message set; the conversation starts anew")


def _set(talk: Talk, rest: str) -> None:
    name, _, value = rest.partition(" ")
    name = {"temp": "temperature", "repeat_penalty": "repetition_penalty"}.get(name, name)
    talk.set(name, value.strip())
    talk.sink.info(f"{name} = {getattr(talk.sampling, name)}")


def _show(talk: Talk, rest: str) -> None:
    for field in fields(talk.sampling):
        talk.sink.info(f"  {field.name:<20}{getattr(talk.sampling, field.name)}")
    cache = talk.engine.settings
    for field in fields(cache):
        talk.sink.info(f"  {field.name:<20}{getattr(cache, field.name)}")


def _stats(talk: Talk, rest: str) -> None:
    talk.sink.info(talk.stats())


def _ctx(talk: Talk, rest: str) -> None:
    encode = talk.engine.loaded.tokenizer.encode
    for message in talk.conversation.messages:
        start = " ".join(message["content"].split())[:50]
        talk.sink.info(f"  {message['role']:<10}{len(encode(message['content'])):>8,} tokens  {start}")
    talk.sink.info(talk.status().split("   ")[0].strip())


def _exit(talk: Talk, rest: str) -> None:
    from hgca_cli.commands.talk import Leave

    raise Leave


COMMANDS: dict[str, tuple[Callable[[Talk, str], None], str]] = {
    "help": (_help, "this list"),
    "file": (_file, "PATH: read a text file before the next question"),
    "system": (_system, "TEXT: set the system message and start anew"),
    "set": (_set, "NAME VALUE: temperature, top_p, top_k, min_p, repetition_penalty, seed, max_tokens, stop"),
    "show": (_show, "the settings in force"),
    "stats": (_stats, "figures of the last answer"),
    "ctx": (_ctx, "what fills the context"),
    "clear": (_clear, "forget the conversation"),
    "exit": (_exit, "leave"),
}
SAME = {"bye": "exit", "quit": "exit", "read": "file", "?": "help"}
