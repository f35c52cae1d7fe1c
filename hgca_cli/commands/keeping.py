"""What of a chat is kept on disk: its session, saved after every turn, and prompts that were read before."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from hgca_cli.config import SamplingSettings
from hgca_cli.engine.session_files import sessions_dir
from hgca_cli.engine.sessions import every_session, find_session, one_session, remove
from hgca_cli.errors import HgcaError, ModelError, UsageError
from hgca_cli.events import Done, Notice
from hgca_cli.units import counted, format_seconds

if TYPE_CHECKING:
    from hgca_cli.engine.conversation import Conversation
    from hgca_cli.engine.session import Session
    from hgca_cli.ui.console import Sink

LONG = 2048  # tokens: what nobody named is kept with its rows, and of a single answer at all, if there are more
DISK_LIMIT = "20GiB"


@dataclass(frozen=True)
class Keeping:
    """What the flags say. limit: bytes of the rows of all sessions; cache: prompts read before are looked for."""

    save: bool = True
    rows: bool = True
    cache: bool = True
    limit: int = 20 << 30
    reread: bool = False


def latest_session() -> str:
    """The session that was of use last. Raises ModelError if there is none."""
    found = every_session()
    if not found:
        raise ModelError("there is no session to continue.", "hgca chat --session NAME begins one.")
    return found[0].name


class Keeper:
    """The session of a chat, which may change in the midst of it.

    model, revision  as they were given; session: open for writing, None if there is none (yet)
    """

    def __init__(self, keeping: Keeping, model: str, revision: str | None, *, one_answer: bool = False) -> None:
        self._keeping, self._one_answer = keeping, one_answer
        self._model = anywhere(model)
        self._revision = revision
        self._named = False
        self._given_up = False
        self.session: Session | None = None

    def open(self, name: str, *, new: bool | None = None) -> None:
        """This session from here on. new: it must, or must not, be there already. Errors as of Session."""
        from hgca_cli.engine.session import Session

        there = find_session(name) is not None
        if new is True and there:
            raise UsageError(f"there is a session {name} already.", "Choose another name, or remove it first.")
        if not there and (new is False or (new is None and not self._keeping.save)):
            raise ModelError(f"there is no session {name}.", "hgca sessions ls lists them.")
        opened = Session(name, reread=self._keeping.reread)
        self.close()
        self.session, self._named, self._given_up = opened, True, False

    def load(self, name: str, conversation: Conversation, sink: Sink) -> None:
        """Go on with another session; if that fails, with what there was. Errors as of Session."""
        before = self.session, self._named
        self.session = None
        try:
            self.open(name, new=False)
            self.begin(conversation, sink)
        except BaseException:
            self.close()
            self.session, self._named = before
            raise
        if before[0] is not None:
            before[0].close()

    def begin(self, conversation: Conversation, sink: Sink) -> None:
        """Give the conversation what its session holds, and look for prompts that were read before. Errors as of Session."""
        from hgca_cli.engine.prompt_cache import PromptCache

        if self._keeping.cache:
            conversation.reuse = PromptCache(conversation.engine)
        if self.session is None or not (self.session.record or self.session.damaged):
            return
        began = time.perf_counter()
        for notice in self.session.resume(conversation.engine, conversation, reread=self._keeping.reread):
            sink.show(notice)
        turns = sum(message["role"] == "user" for message in conversation.messages)
        sink.note(
            f"session {self.session.name}: {counted(turns, 'turn')}, {counted(conversation.sequence.cached, 'token')} at hand, "
            f"opened in {format_seconds(time.perf_counter() - began)}"
        )
        if not self._keeping.save:
            self.close()

    def after_turn(self, conversation: Conversation, sampling: SamplingSettings, done: Done | None, sink: Sink) -> None:
        """Save, as the flags say. Without `done` the turn broke off: what was said is saved, the rows are not.

        Raises DoesNotFitError and ModelError if a session that was asked for cannot be written.
        """
        if not self._wanted(conversation, done):
            return
        try:
            self.save(conversation, sampling, sink, rows=done is not None)
        except HgcaError as error:
            if self._named and done is not None:
                raise
            self._given_up = not self._named
            sink.show(Notice(f"this chat is not saved: {error}"))

    def save(self, conversation: Conversation, sampling: SamplingSettings, sink: Sink, *, rows: bool = True) -> str:
        """Save now; returns the session's name, which is made up if there is none. Errors as of Session.save."""
        from hgca_cli.engine.session import About, Session

        if self.session is None:
            self.session, self._named = Session(_free_name(), automatic=True), False
        rows = rows and self._keeping.rows and (self._named or conversation.sequence.cached > LONG)
        told = {one.name: getattr(sampling, one.name) for one in fields(sampling) if one.name != "stop"}
        about = About(self._model, self._revision, told, conversation.engine.loaded.quant)
        for notice in self.session.save(conversation, about, rows=rows, limit=self._keeping.limit):
            sink.show(notice)
        return self.session.name

    def save_as(self, name: str, conversation: Conversation, sampling: SamplingSettings, sink: Sink) -> None:
        """Save as a new session, and go on in that one; it takes the place of one that nobody named. Errors as of Session."""
        record = self.session.record if self.session is not None else None
        old = self.session.name if self.session is not None and record is not None and record.automatic else None
        self.open(name, new=True)
        self.save(conversation, sampling, sink)
        if old is not None:
            with contextlib.suppress(HgcaError):
                remove(one_session(old))

    def anew(self) -> None:
        """The conversation was forgotten: a session nobody named is over; one with a name begins anew with the next turn."""
        if not self._named:
            self.close()

    def close(self) -> None:
        """Others may open the session."""
        if self.session is not None:
            self.session.close()
            self.session = None

    def _wanted(self, conversation: Conversation, done: Done | None) -> bool:
        if self._given_up or not (self._keeping.save or self._named) or (self._named and self.session is None):
            return False
        if done is None:
            return self.session is not None and conversation.messages != self.session.messages
        if self.session is None and self._one_answer:
            return self._keeping.rows and done.prompt_tokens - done.cached_tokens > LONG
        return self._named or any(message["role"] == "assistant" for message in conversation.messages)


def anywhere(model: str) -> str:
    """A model's name as it means the same in every directory."""
    try:
        path = Path(model).expanduser()
        return str(path.absolute()) if path.exists() else model
    except (OSError, RuntimeError):
        return model


def _free_name() -> str:
    """A name for a session nobody named: now."""
    wanted = name = time.strftime("%Y-%m-%d-%H%M%S")
    number = 2
    while (sessions_dir() / name).exists():
        name, number = f"{wanted}-{number}", number + 1
    return name
