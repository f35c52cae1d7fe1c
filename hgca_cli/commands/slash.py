"""What can be typed in a chat instead of a message: a table of small functions."""

from __future__ import annotations

import difflib
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import TYPE_CHECKING

from hgca_cli.commands.slash_files import (
    attach_clipboard,
    attach_files,
    attach_matching,
    copy_answer,
    detach_all,
    export_chat,
)
from hgca_cli.commands.slash_settings import set_setting, setting_names, switch_exact, switch_thinking, unquoted
from hgca_cli.commands.slash_turns import edit_message, go_on, regenerate, undo
from hgca_cli.engine.session_files import check_name
from hgca_cli.engine.sessions import every_session, find_session, messages_of
from hgca_cli.errors import ModelError, UsageError
from hgca_cli.ui.board import Board
from hgca_cli.ui.figures import figures, plan_table
from hgca_cli.ui.session_table import sessions_table, told_value
from hgca_cli.ui.wrapped import columns_of

if TYPE_CHECKING:
    from hgca_cli.commands.keeping import Keeper
    from hgca_cli.commands.talk import Talk

MOST_NAMED = 5  # sessions in a message


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


def _help(talk: Talk, rest: str) -> None:
    lines = [f"  {'/' + name + ' ' + words:<20}  {text}" for name, (_, words, text) in COMMANDS.items()]
    lines += [
        '  """ ... """           a message of several lines; Esc Enter or Alt-Enter begins a new line, too',
        "  //...                 a message that begins with a slash; so does a leading space",
        "  Ctrl-C                stops the answer and keeps the session; again, before it has stopped, leaves. Ctrl-D leaves",
    ]
    talk.sink.tell("\n".join(lines))


def _system(talk: Talk, rest: str) -> None:
    if rest:
        talk.clear(rest)
        talk.sink.tell("system message set; the conversation begins anew")
        return
    said = [message["content"] for message in talk.conversation.messages if message["role"] == "system"]
    talk.sink.tell(said[0] if said else "no system message but the model's own")


def _show(talk: Talk, rest: str) -> None:
    lines = [f"  {'model':<20}{talk.engine.loaded.name}"]
    lines += [
        f"  {field.name:<20}{told_value(getattr(talk.engine.settings, field.name))}"
        for field in fields(talk.engine.settings)
    ]
    for name, origin in talk.origins.items():
        lines.append(f"  {name:<20}{told_value(getattr(talk.sampling, name), name):<12} {origin}")
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
    keeper, rest = _keeper(talk), unquoted(rest)
    if rest and (keeper.session is None or keeper.session.name != rest):
        keeper.save_as(check_name(rest), talk.conversation, talk.sampling, talk.sink)
        talk.sink.tell(f"saved as session {rest}")
        return
    talk.sink.tell(f"saved as session {keeper.save(talk.conversation, talk.sampling, talk.sink)}")


def _load(talk: Talk, rest: str) -> None:
    keeper, rest = _keeper(talk), unquoted(rest)
    if not rest:
        raise UsageError("/load needs a name.", "/sessions lists them.")
    if keeper.session is not None and keeper.session.name == rest:
        raise UsageError(f"session {rest} is the one you are in.", "/sessions lists the others.")
    if find_session(rest) is None:
        raise ModelError(f"there is no session {rest}.", _sessions_like(rest))
    keeper.load(rest, talk.conversation, talk.sink)
    talk.attached = []
    talk.sink.tell(f"session {rest}: {talk.status()}")


def _sessions_like(name: str) -> str:
    """What to load in place of a session that is not there."""
    names = [one.name for one in every_session()]
    if near := difflib.get_close_matches(name, names, n=1):
        return f"Did you mean {near[0]}? /sessions lists all."
    if len(names) > MOST_NAMED:
        return "/sessions lists them."
    return (
        f"There {'is' if len(names) == 1 else 'are'} {', '.join(names)}."
        if names
        else "There are none yet: /save NAME makes one."
    )


def _sessions(talk: Talk, rest: str) -> None:
    found = every_session()
    begins = [next((m["content"] for m in messages_of(one) if m["role"] == "user"), "") for one in found]
    table = sessions_table(found, begins, time.time(), color=False, columns=columns_of(sys.stderr))
    talk.sink.tell(table if found else "no sessions yet")


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


def _plan(talk: Talk, rest: str) -> None:
    talk.sink.tell(plan_table(talk.plan, talk.engine.loaded.name) if talk.plan is not None else "nothing was planned")


COMMANDS: dict[str, tuple[Callable[[Talk, str], None], str, str]] = {
    "help": (_help, "", "this list"),
    "file": (attach_files, "PATH", "read text files before the next question"),
    "glob": (attach_matching, "PATTERN", "read all text files that match, like notes/*.txt"),
    "paste": (attach_clipboard, "", "read the clipboard's text before the next question"),
    "detach": (detach_all, "", "take away again what is attached and was not asked about"),
    "edit": (edit_message, "[TEXT]", "write a message in your editor ($VISUAL, $EDITOR); so does Ctrl-G"),
    "regen": (regenerate, "", "another answer to the last question"),
    "continue": (go_on, "", "more of the last answer"),
    "undo": (undo, "", "take the last question and its answer back"),
    "copy": (copy_answer, "", "the last answer to the terminal's clipboard"),
    "system": (_system, "TEXT", "set the system message and begin anew"),
    "set": (
        set_setting,
        "NAME VALUE",
        "temp, top_p, top_k, min_p, repeat_penalty (presence_, frequency_), seed, max_tokens, stop, markdown, quality",
    ),
    "exact": (switch_exact, "on|off", "read every row, or those the policy chooses"),
    "think": (switch_thinking, "on|off", "let the model think before it answers, where its template has a switch"),
    "show": (_show, "", "the settings in force, and where they come from"),
    "plan": (_plan, "", "what is where, in bytes, and why"),
    "stats": (_stats, "", "figures of the last answer"),
    "ctx": (_ctx, "", "what fills the context"),
    "export": (export_chat, "FILE", "write the conversation to a new file, .md or .json"),
    "clear": (_clear, "", "forget the conversation"),
    "save": (_save, "[NAME]", "save the conversation now, as the session NAME"),
    "load": (_load, "NAME", "go on with another session"),
    "sessions": (_sessions, "", "the sessions there are"),
    "dashboard": (_dashboard, "[line|full|off]", "what goes on while the model works; without a word: now"),
    "exit": (_exit, "", "leave"),
}
SAME = {
    "bye": "exit", "quit": "exit", "read": "file", "?": "help", "regenerate": "regen", "retry": "regen", "reset": "clear",
    "new": "clear",
}  # fmt: skip
SWITCH = ("on", "off")
FOLLOWING: dict[str, Callable[[], Iterable[str]]] = {  # words that can follow
    "load": lambda: [one.name for one in every_session()],
    "save": lambda: [one.name for one in every_session()],
    "set": setting_names,
    "exact": lambda: SWITCH,
    "think": lambda: SWITCH,
}
