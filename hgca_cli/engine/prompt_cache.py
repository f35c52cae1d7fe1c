"""Prompts that were read before, in whatever session: the longest common beginning is loaded, not read again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy

from hgca_cli.engine.engine import Engine
from hgca_cli.engine.saved_rows import can_load, difference, identity_of, load_rows, read_ids, usable_rows
from hgca_cli.engine.sequence import Sequence
from hgca_cli.engine.session_files import DamagedError, read_file
from hgca_cli.engine.session_record import SavedRows
from hgca_cli.engine.sessions import every_session, touch
from hgca_cli.errors import HgcaError
from hgca_cli.events import Notice
from hgca_cli.units import format_seconds

LEAST = 256  # tokens more than there are already, or it is not worth a look
LOAD_BYTES_S = 200e6  # of a slow disk: what is read, checked, converted and indexed in a second


@dataclass(frozen=True)
class Found:
    """Rows on disk that begin as a prompt does."""

    name: str
    folder: Path
    saved: SavedRows
    rows: int


class PromptCache:
    """Saved rows of an engine's kind."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, prompt: list[int], held: int) -> tuple[Sequence | None, list[Notice]]:
        """A sequence that holds more of the prompt's beginning than `held` tokens, if loading it is expected to be faster
        than reading; and what a person should know.
        """
        notices: list[Notice] = []
        found = self.find(prompt, held)
        if found is None:
            return None, notices
        began = time.perf_counter()
        try:
            ids, _ = read_ids(found.folder, found.saved)
            if ids[: found.rows] != prompt[: found.rows]:
                raise DamagedError(f"{found.folder}: the tokens are of another text.")
            sequence = load_rows(self._engine, found.folder, found.saved, ids, found.rows)
            sequence.rewind(found.rows)  # its last token may be another text's, and without a row
        except (HgcaError, OSError) as error:  # also: removed meanwhile
            return None, [Notice(f"session {found.name} is not reused: {error}")]
        touch(found.folder)
        seconds = format_seconds(time.perf_counter() - began)
        notices.append(Notice(f"{found.rows:,} tokens were read before (session {found.name}): loaded in {seconds}"))
        return sequence, notices

    def find(self, prompt: list[int], held: int) -> Found | None:
        """The session with most of a prompt's beginning that is worth loading."""
        most = len(prompt) - 1  # of the last one the logits are needed
        if most - held < LEAST:
            return None
        wanted = numpy.array(prompt[:most], dtype="<u4")
        ours = identity_of(self._engine)
        best: Found | None = None
        for one in every_session():
            saved = one.record.saved if one.record is not None else None
            if saved is None or saved.rows < held + LEAST or difference(saved.identity, ours):
                continue
            if not can_load(self._engine, saved):
                continue
            rows = usable_rows(saved, min(saved.rows, _shared(one.folder, saved, wanted)))
            if rows >= held + LEAST and (best is None or rows > best.rows) and _pays(saved, rows, held):
                best = Found(one.name, one.folder, saved, rows)
        return best


def _shared(folder: Path, saved: SavedRows, wanted: numpy.ndarray) -> int:
    """How many tokens a session and a prompt have in common at the beginning."""
    try:
        content = read_file(folder / saved.ids.file, saved.ids.bytes)
    except (DamagedError, OSError):
        return 0
    theirs = numpy.frombuffer(content[: 4 * saved.rows], dtype="<u4")
    length = min(len(theirs), len(wanted))
    different = numpy.flatnonzero(theirs[:length] != wanted[:length])
    return int(different[0]) if len(different) else length


def _pays(saved: SavedRows, rows: int, held: int) -> bool:
    """Whether loading is expected to be faster than reading, by how long reading took when it was saved."""
    if saved.seconds_per_token is None:
        return True
    size = sum(shard.bytes for shard in saved.shards if shard.first < rows)
    return size / LOAD_BYTES_S < (rows - held) * saved.seconds_per_token
