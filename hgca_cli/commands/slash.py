"""What can be typed in a chat instead of a message: a table of small functions."""

from __future__ import annotations

import difflib
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from hgca_cli.commands.flags import SAMPLING
from hgca_cli.commands.inputs import read_document
from hgca_cli.config import SamplingSettings
from hgca_cli.engine.session_files import check_name
from hgca_cli.engine.sessions import every_session, messages_of
from hgca_cli.errors import UsageError
from hgca_cli.ui.board import Board
from hgca_cli.ui.figures import figures
from hgca_cli.ui.session_table import sessions_table

if TYPE_CHECKING:
    from hgca_cli.commands.keeping import Keeper
    from hgca_cli.commands.talk import Talk


class Leave(Exception):
    """The person wants to go."""


def run_slash(talk: Talk, line: str) -> None:
    """Run a slash command. Raises UsageError, with the nearest one, for a word that is none."""
    word, _, rest = line.removeprefix("/").partition(" ")
    name = SAME.get(word, word)
    if name not in COMMANDS:
        near = difflib.get_close_matches(word, [*COMMANDS, *SAME], n=1)
        hint = f"Did you mean /{near[0]}?" if near else "/help lists them."
        raise UsageError(f"no command /{word}.", f"{hint} (// sends a message that starts with /.)")
    COMMANDS[name][0](talk, rest.strip())


def setting_of(name: str, value: str) -> Any:
    """A sampling setting from what was typed. Raises UsageError if it is no number; its range is checked when set."""
    if name == "stop":
        return (value,) if value else ()
    if name == "seed" and value in ("", "none", "random"):
        return None
    kind = {field.name: field.type for field in fields(SamplingSettings)}[name]
    try:
        return float(value) if kind == "float" else int(value)
    except ValueError as error:
        raise UsageError(f"{name}: {value!r} is not a number.", f"Like /set {name} 1") from error


def _help(talk: Talk, rest: str) -> None:
    lines = [f"  {'/' + name + ' ' + words:<20}  {text}" for name, (_, words, text) in COMMANDS.items()]
    lines += [
        '  """ ... """           a message of several lines; Esc Enter or Alt-Enter begins a new line, too',
        "  //...                 a message that begins with a slash; so does a leading space",
        "  Ctrl-C                stops the answer and keeps the session; twice leaves. Ctrl-D leaves",
    ]
    talk.sink.tell("\n".join(lines))


def _file(talk: Talk, rest: str) -> None:
    try:
        paths = shlex.split(rest)
    except ValueError as error:
        raise UsageError(f"/file: {error}.", "Quote paths with blanks: /file 'my notes.txt'") from error
    if not paths:
        raise UsageError("/file needs a path.", "Like /file notes.txt")
    if "-" in paths:
        raise UsageError("/file: - is what you are typing into.", "Name a file.")
    for document in [read_document(path) for path in paths]:  # all of them, or none
        talk.attach(document)


def _system(talk: Talk, rest: str) -> None:
    if rest:
        talk.clear(rest)
        talk.sink.tell("system message set; the conversation begins anew")
        return
    said = [message["content"] for message in talk.conversation.messages if message["role"] == "system"]
    talk.sink.tell(said[0] if said else "no system message but the model's own")


def _set(talk: Talk, rest: str) -> None:
    word, _, value = rest.partition(" ")
    name = word.lstrip("-").replace("-", "_")
    name = SAMPLING.get(name, name)
    if name not in talk.origins:
        near = difflib.get_close_matches(name, [*talk.origins, *SAMPLING], n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(f"/set: no setting {word!r}.", f"{hint}There are {', '.join(talk.origins)}.")
    talk.set(name, setting_of(name, value.strip()))
    talk.sink.tell(f"{name} = {getattr(talk.sampling, name)}")


def _show(talk: Talk, rest: str) -> None:
    lines = [f"  {'model':<20}{talk.engine.loaded.name}"]
    lines += [
        f"  {field.name:<20}{getattr(talk.engine.settings, field.name)}" for field in fields(talk.engine.settings)
    ]
    for name, origin in talk.origins.items():
        lines.append(f"  {name:<20}{getattr(talk.sampling, name)!s:<12} {origin}")
    talk.sink.tell("\n".join(lines))


def _stats(talk: Talk, rest: str) -> None:
    talk.sink.tell(figures(talk.last) if talk.last else "no answer yet")


def _ctx(talk: Talk, rest: str) -> None:
    encode = talk.engine.loaded.tokenizer.encode
    parts = [(m["role"], len(encode(m["content"])), m["content"]) for m in talk.conversation.messages]
    parts += [("attached", tokens, document.name) for document, tokens in talk.attached]
    lines = [f"  {role:<10}{tokens:>9,} tokens  {' '.join(text[:400].split())[:50]}" for role, tokens, text in parts]
    talk.sink.tell("\n".join([*lines, f"  {talk.status()}"]))


def _clear(talk: Talk, rest: str) -> None:
    talk.clear()
    talk.sink.tell("conversation forgotten")


def _keeper(talk: Talk) -> Keeper:
    if talk.keeper is None:
        raise UsageError("with --raw there is no conversation to save.", "Leave it out.")
    return talk.keeper


def _save(talk: Talk, rest: str) -> None:
    keeper = _keeper(talk)
    if rest and (keeper.session is None or keeper.session.name != rest):
        keeper.save_as(check_name(rest), talk.conversation, talk.sampling, talk.sink)
        talk.sink.tell(f"saved as session {rest}")
        return
    talk.sink.tell(f"saved as session {keeper.save(talk.conversation, talk.sampling, talk.sink)}")


def _load(talk: Talk, rest: str) -> None:
    keeper = _keeper(talk)
    if not rest:
        raise UsageError("/load needs a name.", "/sessions lists them.")
    if keeper.session is not None and keeper.session.name == rest:
        raise UsageError(f"session {rest} is the one you are in.", "/sessions lists the others.")
    keeper.load(check_name(rest), talk.conversation, talk.sink)
    talk.attached = []
    talk.sink.tell(f"session {rest}: {talk.status()}")


def _sessions(talk: Talk, rest: str) -> None:
    found = every_session()
    begins = [next((m["content"] for m in messages_of(one) if m["role"] == "user"), "") for one in found]
    talk.sink.tell(sessions_table(found, begins, time.time(), color=False) if found else "no sessions yet")


def _dashboard(talk: Talk, rest: str) -> None:
    board = talk.sink
    if not isinstance(board, Board):
        raise UsageError("there is no dashboard here.", "hgca chat has one.")
    if rest:
        board.switch(rest)
        talk.sink.tell(f"dashboard {rest}, from the next answer on")
        return
    columns, rows = shutil.get_terminal_size()
    talk.sink.tell("\n".join([*board.drawn(columns, rows), f"dashboard {board.mode}; /dashboard full shows it live"]))


def _exit(talk: Talk, rest: str) -> None:
    raise Leave


COMMANDS: dict[str, tuple[Callable[[Talk, str], None], str, str]] = {
    "help": (_help, "", "this list"),
    "file": (_file, "PATH", "read text files before the next question"),
    "system": (_system, "TEXT", "set the system message and begin anew"),
    "set": (_set, "NAME VALUE", "temp, top_p, top_k, min_p, repeat_penalty, seed, max_tokens, stop"),
    "show": (_show, "", "the settings in force, and where they come from"),
    "stats": (_stats, "", "figures of the last answer"),
    "ctx": (_ctx, "", "what fills the context"),
    "clear": (_clear, "", "forget the conversation"),
    "save": (_save, "[NAME]", "save the conversation now, as the session NAME"),
    "load": (_load, "NAME", "go on with another session"),
    "sessions": (_sessions, "", "the sessions there are"),
    "dashboard": (_dashboard, "[line|full|off]", "what goes on while the model works; without a word: now"),
    "exit": (_exit, "", "leave"),
}
SAME = {"bye": "exit", "quit": "exit", "read": "file", "?": "help"}
