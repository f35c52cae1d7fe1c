"""Slash commands that change how the chat goes on."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from hgca_cli.commands.aliases import ALIASES
from hgca_cli.commands.flag_values import tokens_of
from hgca_cli.commands.flags import LIMITS, SAMPLING
from hgca_cli.commands.wanted import schema_of
from hgca_cli.config import SamplingSettings, minus_one
from hgca_cli.errors import UsageError
from hgca_cli.ui.session_table import told_value
from hgca_cli.units import parse_share

if TYPE_CHECKING:
    from hgca_cli.commands.talk import Talk


def set_setting(talk: Talk, rest: str) -> None:
    """A sampling setting, or one of OTHERS. Raises UsageError for a name or a value that is none."""
    word, _, value = rest.removeprefix("parameter ").strip().partition(" ")  # ollama's /set parameter NAME VALUE
    if not word:
        raise UsageError("/set needs a name and a value.", f"There are {', '.join([*talk.origins, *OTHERS])}.")
    name = _plain(ALIASES.get(f"--{word.lstrip('-').replace('_', '-')}", word))  # repetition_penalty, num_predict
    name = SAMPLING.get(name, name)
    if name == "nothink" or (name == "think" and not value):  # ollama's
        name, value = "think", "off" if name == "nothink" else "on"
    if name in ELSEWHERE:
        raise UsageError(f"/set: {word} is not set here.", ELSEWHERE[name])
    if name in OTHERS:
        OTHERS[name](talk, unquoted(value))
        return
    if name not in talk.origins:
        near = difflib.get_close_matches(name, setting_names(talk.origins), n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(f"/set: no setting {word!r}.", f"{hint}There are {', '.join([*talk.origins, *OTHERS])}.")
    if value.strip():
        talk.set(name, setting_of(name, value.strip()))
        talk.sink.tell(f"{name} = {told_value(getattr(talk.sampling, name), name)}")
        return
    present = told_value(getattr(talk.sampling, name), name)
    without = f"; /set {word} none takes it away" if name in MAY_BE_NONE and present != "-" else ""
    talk.sink.tell(f"{name} = {present} ({talk.origins[name]}); /set {word} VALUE changes it{without}")


def unquoted(text: str) -> str:
    """What stands between quotes, where others want them around a name or a value."""
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in QUOTES else text


def _plain(word: str) -> str:
    return word.lstrip("-").replace("-", "_")


def setting_names(sampling: dict[str, Any] | None = None) -> list[str]:
    """Names that can be set."""
    known = sampling if sampling is not None else {field.name: None for field in fields(SamplingSettings)}
    return [*known, *SAMPLING, *OTHERS]


def setting_of(name: str, value: str) -> Any:
    """A sampling setting from what was typed. Raises UsageError if it is no number; its range is checked when set."""
    return minus_one({name: _typed(name, value)})[name]


def _typed(name: str, value: str) -> Any:
    if name == "json_schema":
        return schema_of(value, "/set json_schema") if value not in ("", "none") else ""
    value = unquoted(value)
    if name == "stop":
        return (value,) if value not in ("", "none") else ()
    if name in MAY_BE_NONE and value in ("", "none", "random"):
        return None
    if name in LIMITS:
        return tokens_of(value, name)
    kind = {field.name: field.type for field in fields(SamplingSettings)}[name]
    try:
        return float(value) if kind == "float" else int(value)
    except ValueError as error:
        raise UsageError(f"{name}: {value!r} is not a number.", f"Like /set {name} 1") from error


def switch_exact(talk: Talk, word: str) -> None:
    """Read every row of the store from the next token on, or what the policy chooses. Raises UsageError where that is no choice."""
    select = talk.engine.settings.select
    if word and not _is_on(word, "exact") and select == "exact":
        raise UsageError(
            "this chat was begun with exact attention: there is no policy to go back to.",
            "Begin it with --select scan, or another policy.",
        )
    if word and select != "exact":
        talk.conversation.exact = _is_on(word, "exact")
    read = "every row is read" if select == "exact" or talk.conversation.exact else f"rows are chosen by {select}"
    talk.sink.tell(f"{read}{'' if word else ' (/exact on|off)'}")


def switch_thinking(talk: Talk, word: str) -> None:
    """Whether the model thinks before it answers. Raises UsageError if its template has no switch for that."""
    talk.think(_is_on(word, "think"))
    talk.sink.tell(f"thinking is {word}, from the next question on")


def _is_on(word: str, name: str) -> bool:
    if word not in ("on", "off"):
        raise UsageError(f"/{name}: {word!r} is neither on nor off.", f"Like /{name} on")
    return word == "on"


def _markdown(talk: Talk, value: str) -> None:
    if not value:
        raise UsageError("/set markdown needs a value.", "Like /set markdown off; there are auto, on and off.")
    talk.sink.render(value)
    talk.sink.tell(f"markdown = {value}")


def _quality(talk: Talk, value: str) -> None:
    if not value:
        present = told_value(talk.engine.settings.quality)
        talk.sink.tell(f"quality = {present}; /set quality VALUE changes it, like 0.98, where the policy aims at one")
        return
    quality = parse_share(value, "quality")
    if not 0 < quality < 1:
        raise UsageError(f"quality: {value} is out of range.", "Give a share above 0 and below 1; /exact on reads all.")
    talk.engine.set_quality(quality, talk.conversation.sequence)
    talk.sink.tell(f"quality = {quality:g}")


MAY_BE_NONE = ("seed", "stop", "json_schema", "reasoning_budget")
QUOTES = "\"'"
PLANNED = {
    "ctx": "ctx",
    "num_ctx": "ctx",
    "window": "window",
    "select": "select",
    "budget": "budget",
    "threads": "threads",
}
ELSEWHERE = {name: f"The plan decided it: begin a chat with --{flag}." for name, flag in PLANNED.items()}
ELSEWHERE |= {"system": "/system TEXT sets the system message.", "model": "Begin a chat with -m MODEL."}
OTHERS: dict[str, Callable[[Talk, str], None]] = {
    "markdown": _markdown,
    "quality": _quality,
    "exact": switch_exact,
    "think": switch_thinking,
}
