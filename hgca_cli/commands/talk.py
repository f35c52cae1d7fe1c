"""A conversation with a person: turns, slash commands, and Ctrl-C that stops the answer and keeps the session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hgca_cli.commands.inputs import Document, prompt_text
from hgca_cli.commands.interrupt import interruptible
from hgca_cli.commands.keeping import Keeper
from hgca_cli.commands.slash import Leave, run_slash
from hgca_cli.config import SamplingSettings
from hgca_cli.engine.conversation import Conversation
from hgca_cli.engine.engine import Engine
from hgca_cli.errors import HgcaError
from hgca_cli.events import Done
from hgca_cli.ui.console import Sink
from hgca_cli.ui.editor import Reader

LEAVE = ("exit", "quit")


class Talk:
    """One chat: the engine's conversation, the settings that can change, and where things are shown.

    origins   where each sampling setting comes from
    keeper    saves it, None with --raw
    attached  documents before the next question, with their tokens
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
    ) -> None:
        self.engine = engine
        self.conversation = Conversation(engine, system)
        self.sampling, self.origins = sampling, origins
        self.sink = sink
        self.last: Done | None = None
        self.attached: list[tuple[Document, int]] = []
        self._raw = raw
        self.keeper = keeper
        if keeper is not None:
            keeper.begin(self.conversation, sink)

    def attach(self, document: Document) -> None:
        """Put a document before the next question, and say how long it is."""
        tokens = self.conversation.attach(document.name, document.text)
        self.attached.append((document, tokens))
        self.sink.attached(document.name, tokens)

    def answer(self, text: str) -> int:
        """One turn, saved; returns the exit code a one-shot ends with. Errors as of Conversation.ask and Keeper.after_turn."""
        done: Done | None = None
        try:
            with interruptible() as stop:
                if self._raw:
                    before = "".join(f"{document.text}\n\n" for document, _ in self.attached)
                    events = self.engine.complete(before + text, self.sampling, stop)
                else:
                    events = self.conversation.ask(text, self.sampling, stop)
                for event in events:
                    self.sink.show(event)
                    if isinstance(event, Done):
                        done = self.last = event
        except BaseException:
            self._save(None)  # what was said
            raise
        finally:
            self.sink.close()
        self._save(done)
        if done is not None and done.finish_reason == "interrupted":
            return 130
        self.attached = []
        return 0

    def converse(self, reader: Reader) -> None:
        """Turns until the person leaves. An error ends the turn, not the conversation."""
        for text in self._messages(reader):
            try:
                self._do(text)
            except Leave:
                return
            except HgcaError as error:
                self.sink.error(error)

    def clear(self, system: str | None = None) -> None:
        """Forget everything; the system message stays unless another is given."""
        self.conversation.clear(system)
        self.attached = []
        if self.keeper is not None:
            self.keeper.anew()

    def status(self) -> str:
        """How full the context is."""
        used, context = self.conversation.used_tokens, self.engine.context
        return f"{used:,} of {context:,} tokens ({used / context:.0%})"

    def set(self, name: str, value: Any) -> None:
        """Change a sampling setting. Raises UsageError for a bad value."""
        self.sampling = replace(self.sampling, **{name: value})
        self.origins = self.origins | {name: "set here"}

    def _save(self, done: Done | None) -> None:
        if self.keeper is not None:
            self.keeper.after_turn(self.conversation, self.sampling, done, self.sink)

    def _do(self, text: str) -> None:
        """A slash command, or a message: a leading space or a second slash makes it one."""
        if text.strip() in LEAVE or (text.startswith("/") and not text.startswith("//")):
            try:
                run_slash(self, text.strip())
            except KeyboardInterrupt:  # while a large file is counted
                self.sink.tell("stopped")
        elif text.strip():
            self.answer(prompt_text(text[1:] if text.startswith((" ", "//")) else text, "the message"))

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
