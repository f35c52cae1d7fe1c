"""One saved conversation, open for writing: what was said, and the rows that were read and written.

Files get names nobody refers to yet; then session.json is replaced in one rename, and what it no longer names is deleted.
Killed at any moment, the session is the old one or the new one. Its text is appended before that, so a turn that
was said and not yet committed is found again.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass

from hgca_cli import __version__
from hgca_cli.engine import transcript
from hgca_cli.engine.conversation import Conversation
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.saved_rows import can_load, difference, identity_of, load_rows, read_ids
from hgca_cli.engine.saving import save_rows
from hgca_cli.engine.sequence import OnDisk, Sequence
from hgca_cli.engine.session_files import DamagedError, Lock, check_name, make_folder, sessions_dir, write_new
from hgca_cli.engine.session_files import replace as replace_file
from hgca_cli.engine.session_record import FILE, MESSAGES, Record, Stored, crc_of, dumps, files_of, read_record
from hgca_cli.engine.turns import Messages
from hgca_cli.errors import HgcaError
from hgca_cli.events import Notice


@dataclass(frozen=True)
class About:
    """What a record tells of the run. model, quant: as they can be given to --model and --quant again."""

    model: str
    revision: str | None
    sampling: dict[str, float | int | str | None]
    quant: str = "none"


class Session:
    """A session of this name; nobody else writes it until `close`.

    record    what is on disk, None if nothing is yet
    messages  the conversation so far
    """

    def __init__(self, name: str, *, automatic: bool = False, reread: bool = False) -> None:
        """Open it, or begin one.

        reread  one whose files are damaged is opened with the text that can be recovered

        Raises UsageError if it is open elsewhere, DamagedError, ModelError if it cannot be read or is of a newer version.
        """
        self.name = check_name(name)
        self.folder = sessions_dir() / name
        self._automatic = automatic
        self.record: Record | None = None
        self.messages: Messages = []
        self.damaged = ""
        make_folder(self.folder)
        self._lock = Lock(self.folder)
        try:
            self._read(reread)
            self._number = self._last_number()
        except BaseException:
            self._lock.free()
            raise

    def close(self) -> None:
        """Others may write it. A session in which nothing was saved leaves nothing behind."""
        if self.record is None and not self.damaged:
            with contextlib.suppress(OSError):
                if {path.name for path in self.folder.iterdir()} == {"lock"}:
                    (self.folder / "lock").unlink()
                    self.folder.rmdir()
        self._lock.free()

    def resume(self, engine: Engine, conversation: Conversation, *, reread: bool = False) -> list[Notice]:
        """Give the conversation what was said, and its rows if they are of use; returns what a person should know.

        reread  rows that are damaged are no error: the text will be read again

        Raises DamagedError, and DoesNotFitError if memory runs out.
        """
        saved = self.record.saved if self.record is not None else None
        history: list[int] = []
        sequence: Sequence | None = None
        why = self.damaged
        if saved is not None and not why:
            why = difference(saved.identity, identity_of(engine)) or (
                "" if can_load(engine, saved) else "of no use with these settings"
            )
            if not why:
                try:
                    ids, history = read_ids(self.folder, saved)
                    sequence = load_rows(engine, self.folder, saved, ids, saved.rows)
                except DamagedError as error:
                    if not reread:
                        raise self._remedied(error) from error
                    why, history = "damaged", []
            if saved.text != crc_of(transcript.lines_of(self.messages)):  # text was saved without rows since
                history = []
        asked_with = saved.asked_with if saved is not None else None
        conversation.resume(self.messages or conversation.messages, history, sequence, asked_with)
        if saved is not None and sequence is not None:
            conversation.seconds_per_token = saved.seconds_per_token
        return [Notice(f"the rows of session {self.name} are {why}: its text is read again.")] if why else []

    def save(self, conversation: Conversation, about: About, *, rows: bool, limit: int) -> list[Notice]:
        """Put the conversation on the disk, in place of what is there; returns what a person should know.

        rows   with them, else they stay as they were saved before
        limit  most bytes of rows of all sessions: those not used for longest go

        Raises DoesNotFitError, with the text saved if it could be, and ModelError.
        """
        before = self.record
        notices: list[Notice] = []
        failure: HgcaError | None = None
        text = self._save_text(conversation.messages)
        saved = before.saved if before is not None else None
        sequence = conversation.sequence
        if rows and sequence.cached:
            try:
                saved, notices = save_rows(self.folder, self._next, conversation, limit, saved)
            except HgcaError as error:
                failure = error
        now = time.time()
        record = Record(
            hgca=__version__,
            created=before.created if before is not None else now,
            changed=now,
            model=about.model,
            revision=about.revision,
            automatic=self._automatic and (before is None or before.automatic),
            messages=text,
            turns=len(conversation.messages),
            number=self._number,
            sampling=about.sampling,
            saved=saved,
            quant=about.quant,
        )
        replace_file(self.folder / FILE, dumps(record))
        self.record, self.messages, self.damaged = record, list(conversation.messages), ""
        if saved is not None and saved is not (before.saved if before is not None else None):
            sequence.on_disk = OnDisk(self.folder, saved.shards, saved.rows)
        self._sweep()
        if failure is not None:
            raise failure
        return notices

    def _read(self, reread: bool) -> None:
        try:
            self.record = read_record(self.folder)
            self.messages = transcript.read_messages(self.folder, self.record.messages)
            self._automatic = self.record.automatic
            self._sweep()
        except FileNotFoundError:
            if not self._has_text():
                self._sweep()
                return  # a new one, or one that was killed before its first save
            self.messages, self.damaged = transcript.rescue(self.folder), "not there"
            while self.messages and self.messages[-1]["role"] != "assistant":  # a torn turn
                del self.messages[-1]
        except DamagedError as error:
            self._rescue(error, reread)

    def _rescue(self, error: DamagedError, reread: bool) -> None:
        if not reread:
            raise self._remedied(error) from error
        self.record, self.damaged = None, "damaged"
        self.messages = transcript.rescue(self.folder)

    def _remedied(self, error: DamagedError) -> DamagedError:
        return DamagedError(
            f"session {self.name} is damaged: {error.message}",
            f"--reread opens it with its text; hgca sessions export {self.name} prints that.",
        )

    def _save_text(self, messages: Messages) -> Stored:
        """Append what is new; a conversation that does not begin as the saved one did gets a file of its own."""
        old = self.messages
        if self.record is not None and messages[: len(old)] == old and self._holds(old):
            new = messages[len(old) :]
            return transcript.append(self.folder, self.record.messages, new) if new else self.record.messages
        content = transcript.lines_of(messages)
        name = "messages.jsonl" if not self._has_text() else f"messages-{self._next():06d}.jsonl"
        write_new(self.folder / name, content)
        return Stored(name, len(content), crc_of(content))

    def _holds(self, old: Messages) -> bool:
        """Whether the record's text is these messages: turns that were found behind it are written anew."""
        return self.record is not None and self.record.turns == len(old)

    def _has_text(self) -> bool:
        """Whether there is a file of text, of the record or of a save that was killed."""
        return any(MESSAGES.fullmatch(name) for name, _ in files_of(self.folder))

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _last_number(self) -> int:
        """The highest number of a file that is, or was, there."""
        numbers = [self.record.number if self.record is not None else 0]
        for _, path in files_of(self.folder):
            numbers += [int(digits) for digits in re.findall(r"\d+", path.name)[:1]]
        return max(numbers)

    def _sweep(self) -> None:
        """Delete what was left by a save that was killed, and what the record no longer names."""
        named = self.record.files if self.record is not None else set()
        spare = f".{FILE}.new"
        with contextlib.suppress(OSError):
            for name, path in [*files_of(self.folder), (spare, self.folder / spare)]:
                if name not in named:
                    with contextlib.suppress(OSError):
                        path.unlink()
