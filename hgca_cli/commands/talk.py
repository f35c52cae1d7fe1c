"""A conversation with a person: turns, slash commands, and Ctrl-C that stops the answer and keeps the session."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hgca_cli.commands.inputs import Document, prompt_text
from hgca_cli.commands.interrupt import Twice, interruptible
from hgca_cli.commands.keeping import Keeper
from hgca_cli.commands.setup import SWITCH
from hgca_cli.commands.slash import Leave, run_slash
from hgca_cli.config import SamplingSettings
from hgca_cli.engine.conversation import Conversation
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.turns import taken_apart
from hgca_cli.errors import HgcaError, UsageError
from hgca_cli.events import Done, Event, Notice
from hgca_cli.ui.console import Sink
from hgca_cli.ui.editor import Reader
from hgca_cli.ui.keyboard import unechoed
from hgca_cli.units import counted

if TYPE_CHECKING:
    from hgca_cli.hardware.settings import Plan

LEAVE = ("exit", "quit")
FULL = 0.85  # of the context: a warning


class Talk:
    """One chat: the engine's conversation, the settings that can change, and where things are shown.

    origins   where each sampling setting comes from
    keeper    saves it, None with --raw
    plan      what the engine was started with
    attached  documents before the next question, with their tokens
    unechoed  what is typed while an answer is written is not shown: it would stand in the midst of it
    """

    def __init__(
        self,
        engine: Engine,
        system: str | None,
        sampling: SamplingSettings,
        origins: dict[str, str],
        sink: Sink,
        *,
        raw: bool = False,
        keeper: Keeper | None = None,
        plan: Plan | None = None,
        trim: bool = False,
        unechoed: bool = False,
    ) -> None:
        self.engine = engine
        self.conversation = Conversation(engine, system, trim=trim)
        self.sampling, self.origins = sampling, origins
        self.sink = sink
        self.plan = plan
        self.last: Done | None = None
        self.attached: list[tuple[Document, int]] = []
        self._raw, self._unechoed = raw, unechoed
        self._unasked: str | None = None  # a question that was stopped before a word of its answer
        self._warned = 0  # 1: nearly full, 2: full
        self.keeper = keeper
        if keeper is not None:
            keeper.begin(self.conversation, sink)

    def attach(self, document: Document) -> None:
        """Put a document before the next question, and say how long it is; one that is there already is not read twice."""
        if where := self._has(document):
            self.sink.show(Notice(f"{document.name} is {where} already: it is not read twice"))
            return
        tokens = self.conversation.attach(document.name, document.text)
        self.attached.append((document, tokens))
        self.sink.attached(document.name, tokens)

    def _has(self, document: Document) -> str:
        """Where the very same document is, "" if nowhere."""
        wanted = document.name, document.text.strip()
        if wanted in [(one.name, one.text.strip()) for one, _ in self.attached]:
            return "attached"
        asked = [one for one in self.conversation.messages if "documents" in one]
        return "in the conversation" if any(wanted in taken_apart(one)[1] for one in asked) else ""

    def detach(self) -> list[str]:
        """Take what is attached away again; returns its names."""
        names = [document.name for document, _ in self.attached]
        self.conversation.detach()
        self.attached = []
        return names

    def answer(self, text: str) -> int:
        """One turn, saved; returns the exit code a one-shot ends with. Errors as of Conversation.ask and Keeper.after_turn."""
        if not self._raw:
            code = self._turn(lambda stop: self.conversation.ask(text, self.sampling, stop))
        else:
            before = "".join(f"{document.text}\n\n" for document, _ in self.attached)
            code = self._turn(lambda stop: self.engine.complete(before + text, self.sampling, stop))
        if code == 0 or not (self._raw or self.conversation.waiting):  # also where some of an answer was said
            self.attached = []
        return code

    def regenerate(self) -> None:
        """Another answer in place of the last one, with another seed than it had, or one to a question that was stopped before
        there was any. Errors as of Conversation.regenerate."""
        self._check_turns()
        if self._unasked is not None:
            self.ask(self._unasked)
            return
        sampling = self.sampling
        if sampling.seed is not None and self.last is not None:
            sampling = replace(sampling, seed=(self.last.seed + 1) % 2**63)
        if sampling.temperature == 0:
            self.sink.note("the temperature is 0: the answer will be the same (/set temp 0.7 changes that)")
        self._turn(lambda stop: self.conversation.regenerate(sampling, stop))

    def go_on(self) -> None:
        """More of the last answer. Errors as of Conversation.go_on."""
        self._check_turns()
        self._turn(lambda stop: self.conversation.go_on(self.sampling, stop))

    def undo(self) -> str:
        """Take the last turn back; returns what was asked. Errors as of Conversation.undo."""
        self._check_turns()
        self._unasked = None
        text, documents = self.conversation.undo()
        encode = self.engine.loaded.tokenizer.encode
        again = [(Document(name, body), len(encode(body))) for name, body in documents]
        self.attached = again + self.attached
        return text

    def converse(self, reader: Reader) -> None:
        """Turns until the person leaves. An error ends the turn, not the conversation."""
        self._warn()
        for text in self._messages(reader):
            try:
                self._do(text)
                self._warn()
            except Leave:
                return
            except HgcaError as error:
                self.sink.error(error)

    def clear(self, system: str | None = None) -> None:
        """Forget everything; the system message stays unless another is given."""
        self.conversation.clear(system)
        self.attached, self._unasked = [], None
        if self.keeper is not None:
            self.keeper.anew()

    def status(self) -> str:
        """How full the context is."""
        used, context = self.conversation.used_tokens, self.engine.context
        return f"{used:,} of {context:,} tokens ({used / context:.0%})"

    def meter(self) -> list[str]:
        """How full the context is, and where its rows are, in a few words; what matters most comes first."""
        used, context = self.conversation.used_tokens, self.engine.context
        window, store = self._rows(used)
        waiting = sum(tokens for _, tokens in self.attached)
        parts = [f"ctx {used:,}/{context:,} {used / context:.0%}"]
        parts += [f" + {waiting:,} attached"] if waiting else []
        parts += [f" | window {window:,} store {store:,}"]
        return [*parts, " | exact"] if self.conversation.exact else parts

    def _rows(self, used: int) -> tuple[int, int]:
        """Rows in the window and in the store. Those of a turn that was taken back stay until the next question, and are none of
        the conversation's: the newest, as going back takes them.
        """
        rows = self.conversation.sequence.cache.rows()
        held = rows.window + rows.store
        window = max(min(rows.window, self.engine.settings.sinks), rows.window - max(0, held - used))
        window = min(window, used)
        return window, min(rows.store, used - window)

    def set(self, name: str, value: Any) -> None:
        """Change a sampling setting. Raises UsageError for a bad value."""
        self.sampling = replace(self.sampling, **{name: value})
        self.origins = self.origins | {name: "set here"}

    def think(self, on: bool) -> None:
        """Whether the model thinks before it answers. Raises UsageError if its template has no switch for that."""
        if not self.engine.loaded.tokenizer.template_knows(SWITCH):
            raise UsageError(
                f"the chat template of {self.engine.loaded.name} has no switch for thinking ({SWITCH}).",
                "Leave --think and --no-think out.",
            )
        self.conversation.options = self.conversation.options | {SWITCH: on}

    def _turn(self, begin: Callable[[threading.Event], Iterator[Event]]) -> int:
        """Events of one turn as they come, and what was said saved; returns an exit code."""
        with unechoed() if self._unechoed else nullcontext():
            return self._told(begin)

    def _told(self, begin: Callable[[threading.Event], Iterator[Event]]) -> int:
        done: Done | None = None
        try:
            with interruptible() as stop:
                for event in begin(stop):
                    self.sink.show(event)
                    if isinstance(event, Done):
                        done = self.last = event
        except BaseException:
            self._save(None)  # what was said
            raise
        finally:
            self.sink.close()
        self._save(done)
        return 130 if done is not None and done.finish_reason == "interrupted" else 0

    def _check_turns(self) -> None:
        if self._raw:
            raise UsageError("with --raw there are no turns.", "Leave it out.")

    def _warn(self) -> None:
        """Say that the context will soon be full, or is, once each time."""
        used, context = self.conversation.used_tokens, self.engine.context
        waiting = sum(tokens for _, tokens in self.attached)
        left = context - used - waiting
        full = 0 if used + waiting < FULL * context or self._raw else 1 if left > 1 else 2
        before, self._warned = self._warned, full
        if full <= before:
            return
        room = (
            f"{left:,} tokens are left"
            if left > 1
            else f"{counted(1 - left, 'token')} too many"
            if left < 1
            else "no room is left"
        )
        turns = sum(message["role"] == "user" for message in self.conversation.messages)
        stay = used + waiting - self.conversation.droppable_tokens() if turns else 0
        if self.conversation.trim and turns and stay < context:
            remedy = "the oldest turns will be dropped"
        elif turns:
            room_by = "/detach, /undo or /clear" if waiting else "/undo or /clear"
            drop = "" if stay >= context else ", --overflow trim-oldest drops the oldest turns"
            remedy = f"{room_by} make room, a larger --ctx has more{drop}"
        else:
            remedy = "/detach takes away what is attached, a larger --ctx has more"
        self.sink.show(Notice(f"the context is {(used + waiting) / context:.0%} full, {room}: {remedy}"))

    def _save(self, done: Done | None) -> None:
        if self.keeper is not None:
            self.keeper.after_turn(self.conversation, self.sampling, done, self.sink)

    def _do(self, text: str) -> None:
        """A slash command, or a message: a leading space or a second slash makes it one."""
        if text.strip() in LEAVE or (text.startswith("/") and not text.startswith("//")):
            try:
                run_slash(self, text.strip())
            except Twice:
                raise
            except KeyboardInterrupt:  # while a large file is counted
                self.sink.tell("stopped")
        elif text.strip():
            self.ask(prompt_text(text[1:] if text.startswith((" ", "//")) else text, "the message"))

    def ask(self, text: str) -> None:
        """A turn of the conversation; one that is stopped before a word of its answer did not happen, and can be had again."""
        self._unasked, turns = None, len(self.conversation.messages)
        if self.answer(text) == 130 and not self._raw and len(self.conversation.messages) == turns:
            self._unasked = text
            self.sink.note("stopped before an answer: the question is taken back (/regen asks it again)")

    def _messages(self, reader: Reader) -> Iterator[str]:
        while True:
            try:
                yield reader.read()
            except EOFError:
                return
            except KeyboardInterrupt:
                self.sink.tell("(Ctrl-D or /exit leaves)")
            except HgcaError as error:
                self.sink.error(error)
