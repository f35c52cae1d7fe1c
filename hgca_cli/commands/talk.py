"""A conversation with a person: turns, slash commands, and Ctrl-C that stops the answer and keeps the session."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from hgca_cli.commands.inputs import Document
from hgca_cli.commands.slash import COMMANDS, run_slash
from hgca_cli.config import SamplingSettings
from hgca_cli.engine.conversation import Conversation
from hgca_cli.engine.engine import Engine
from hgca_cli.errors import HgcaError
from hgca_cli.events import Done
from hgca_cli.ui.console import Sink, figures
from hgca_cli.ui.inert import inert

LEAVE = ("exit", "quit")
TWICE_SECONDS = 2.0


class Leave(Exception):
    """The person wants to go."""


def sampling_of(chosen: dict[str, Any], models: dict[str, Any]) -> SamplingSettings:
    """Sampling settings: flags, else the model's generation config, else ours.

    Raises UsageError for values out of range.
    """
    names = {field.name for field in fields(SamplingSettings)}
    ours: dict[str, Any] = {"temperature": 0.7, "top_p": 0.95, "max_tokens": 4096}
    theirs = {name: models[name] for name in ("temperature", "top_p", "top_k", "min_p") if models.get(name) is not None}
    if models.get("repetition_penalty"):
        theirs["repetition_penalty"] = models["repetition_penalty"]
    flags = {name: value for name, value in chosen.items() if value is not None and name in names}
    return SamplingSettings(**ours | theirs | flags)


class Talk:
    """One chat: the engine's conversation, the settings that can change, and where things are shown."""

    def __init__(
        self,
        engine: Engine,
        conversation: Conversation,
        sampling: SamplingSettings,
        sink: Sink,
        *,
        raw: bool,
        plain: bool,
    ) -> None:
        self.engine = engine
        self.conversation = conversation
        self.sampling = sampling
        self.sink = sink
        self.last: Done | None = None
        self._raw = raw
        self._plain = plain
        self._before = ""  # documents of a raw prompt

    def attach(self, document: Document) -> None:
        """Put a document before the next question, and say how long it is."""
        tokens = self.conversation.attach(document.name, document.text)
        self._before += document.text + "\n\n"
        self.sink.info(f"{document.name}: {tokens:,} tokens")

    def answer(self, text: str) -> int:
        """One turn; the exit code a one-shot ends with."""
        with _interruptible() as stop:
            events = (
                self.engine.complete(self._before + text, self.sampling, stop)
                if self._raw
                else self.conversation.ask(text, self.sampling, stop)
            )
            for event in events:
                self.sink.show(event)
                if isinstance(event, Done):
                    self.last = event
        return 130 if self.last is not None and self.last.finish_reason == "interrupted" else 0

    def converse(self) -> None:
        """Turns until the person leaves. An error ends the turn, not the conversation."""
        for text in self._lines():
            try:
                if text.strip() in LEAVE or (text.startswith("/") and not text.startswith("//")):
                    run_slash(self, text.strip())
                elif text.strip():
                    self.answer(text[1:] if text.startswith("//") else text)
            except Leave:
                return
            except HgcaError as error:
                self.sink.info(f"error: {error}")

    def status(self) -> str:
        """The bar below the line: how full the context is."""
        used, context = self.conversation.used_tokens, self.engine.context
        return f" {used:,} / {context:,} tokens ({used / context:.0%})   /help   Ctrl-D leaves "

    def set(self, name: str, value: str) -> None:
        """Change a sampling setting. Raises UsageError for a bad one."""
        self.sampling = replace(self.sampling, **{name: setting_of(name, value)})

    def stats(self) -> str:
        """The last answer's figures."""
        return figures(self.last) if self.last else "no answer yet"

    def _lines(self) -> Iterator[str]:
        if self._plain or not (sys.stdin.isatty() and sys.stdout.isatty()):
            while True:
                try:
                    yield input(">>> ")
                except EOFError:
                    return
                except KeyboardInterrupt:
                    self.sink.info("(Ctrl-D or /exit leaves)")
        from hgca_cli.ui.editor import Editor
        from hgca_cli.ui.history import history_file

        editor = Editor([f"/{name}" for name in COMMANDS], self.status, history_file())
        self.sink.info("/help lists what can be typed; Esc Enter starts a new line; Ctrl-D leaves")
        while True:
            try:
                yield editor.read()
            except EOFError:
                return
            except KeyboardInterrupt:
                self.sink.info("(Ctrl-D or /exit leaves)")


def setting_of(name: str, value: str) -> Any:
    """A sampling setting from what was typed. Raises UsageError."""
    from hgca_cli.errors import UsageError

    kinds: dict[str, Any] = {field.name: field.type for field in fields(SamplingSettings)}
    if name not in kinds:
        raise UsageError(f"no setting {inert(name)!r}.", f"There are {', '.join(kinds)}.")
    try:
        if name == "stop":
            return (value,) if value else ()
        if name == "seed":
            return None if value in ("", "none", "random") else int(value)
        return float(value) if kinds[name] == "float" else int(value)
    except ValueError as error:
        raise UsageError(f"{name}: {inert(value)!r} is not a number.") from error


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; a second Ctrl-C within two seconds ends the program."""
    stop = threading.Event()
    pressed = [float("-inf")]

    def on_interrupt(number: int, frame: object) -> None:
        now = time.monotonic()
        if stop.is_set() and now - pressed[0] < TWICE_SECONDS:
            raise KeyboardInterrupt
        pressed[0] = now
        stop.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
