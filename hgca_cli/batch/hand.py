"""A job's rows on another machine, or another GPU: an engine that is given lines and tells what they were answered."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from hgca_cli.batch.check import Entry
from hgca_cli.batch.lines import Line
from hgca_cli.batch.rows import Reader, RowError
from hgca_cli.batch.tally import Tally
from hgca_cli.batch.work import Terms, Work
from hgca_cli.engine.batch import Batch, Progress
from hgca_cli.engine.batch_metrics import BatchReadings
from hgca_cli.errors import HgcaError
from hgca_cli.events import Done, Notice
from hgca_cli.metrics import Metrics, Slot

READ_SECONDS = 1.0  # from one reading to the next, at least: many sequences are read, while rows wait for Python's lock


@dataclass(frozen=True)
class Given:
    """A row to be answered. documents: what the files it names hold, by how it calls them."""

    entry: Entry
    line: Line
    documents: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Finished:
    """A row's line, and its answers' figures; none of one that failed."""

    name: str
    record: dict[str, Any]
    size: int
    answers: tuple[Done, ...]


@dataclass(frozen=True)
class Told:
    """What an engine tells: rows it finished, what it did since the last time, who runs, how many ran at once at most, and how
    often one was set aside, so far; where somebody looks, a reading of all.
    """

    finished: tuple[Finished, ...] = ()
    notices: tuple[str, ...] = ()
    read: int = 0
    written: int = 0
    slots: tuple[Slot, ...] = ()
    peak: int = 0
    set_aside: int = 0
    metrics: Metrics | None = None


@dataclass(frozen=True)
class Ready:
    """An engine that is loaded. rows: at once; plan: its; error: a message, a hint and an exit code, of one that could not be."""

    rows: int = 0
    plan: Any = None
    fingerprint: str = ""
    error: tuple[str, str, int] | None = None


@dataclass
class Started:
    """What rows are answered with. watched: readings are wanted."""

    batch: Batch
    reader: Reader
    terms: Terms
    plan: Any
    fingerprint: str
    watched: bool = False


Start = Callable[[int, Callable[[str], None]], Started]  # engines on this node, and where notices go


class Hand:
    """An engine, in a thread of its own. Every method may be called from any thread.

    start  makes it; beside: so many engines share the machine, itself included
    """

    def __init__(self, start: Start, beside: int) -> None:
        self._start, self._beside = start, beside
        self._rows: queue.SimpleQueue[Given] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[Finished | str] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[Ready] = queue.SimpleQueue()
        self._batch: Batch | None = None
        self._readings: BatchReadings | None = None
        self._read_at = 0.0
        self._failed: BaseException | None = None
        self._lines = _Lines()
        self._progress = Tally(0, 0)
        self._before = 0, 0
        threading.Thread(target=self._work, name="hgca-rows", daemon=True).start()

    def ready(self) -> Ready:
        """Waits until the engine is loaded, or cannot be."""
        return self._ready.get()

    def give(self, rows: Sequence[Given]) -> None:
        """Answer these, too."""
        for row in rows:
            self._rows.put(row)

    def tell(self, seconds: float) -> Told:
        """What happened; waits so long for something to. Raises what ended the engine."""
        found: list[Finished | str] = []
        until = time.monotonic() + seconds
        while not found and self._failed is None:
            try:
                found.append(self._told.get(timeout=max(0.01, min(0.2, until - time.monotonic()))))
            except queue.Empty:
                if time.monotonic() >= until:
                    break
        while True:
            try:
                found.append(self._told.get_nowait())
            except queue.Empty:
                break
        if not found and self._failed is not None:
            raise self._failed
        (read, written), before = (self._progress.read, self._progress.written), self._before
        self._before = read, written
        return Told(
            tuple(one for one in found if isinstance(one, Finished)),
            tuple(one for one in found if isinstance(one, str)),
            read - before[0],
            written - before[1],
            self._batch.slots_in_use if self._batch is not None else (),
            self._batch.peak if self._batch is not None else 0,
            self._batch.set_aside if self._batch is not None else 0,
            self._reading(),
        )

    def _reading(self) -> Metrics | None:
        """Now and then, of all together."""
        now = time.monotonic()
        if self._readings is None or now - self._read_at < READ_SECONDS:
            return None
        self._read_at = now
        return self._readings.take()

    def _work(self) -> None:
        try:
            started = self._start(self._beside, self._told.put)
        except HgcaError as error:
            self._ready.put(Ready(error=(error.message, error.hint, error.exit_code)))
            return
        except BaseException as error:
            self._ready.put(Ready(error=(f"{type(error).__name__}: {str(error)[:300]}", "", 1)))
            return
        batch = self._batch = started.batch
        self._readings = BatchReadings(batch) if started.watched else None
        self._ready.put(Ready(batch.slots, started.plan, started.fingerprint))
        reader = replace(started.reader, document=self._lines.document)
        output = _Output(self._told.put)
        self._progress = output
        work = Work(self._lines, reader, output, started.terms, output)  # type: ignore[arg-type]
        try:
            while True:
                first = self._take(self._rows.get())
                work.run(batch, chain([first], self._more()), threading.Event(), self._notify)
        except BaseException as error:
            self._failed = error

    def _more(self) -> Iterator[Entry | None]:
        """Rows as they come; None where there is none at present."""
        while True:
            try:
                yield self._take(self._rows.get_nowait())
            except queue.Empty:
                yield None

    def _take(self, row: Given) -> Entry:
        self._lines.given[row.entry.begin] = row
        return row.entry

    def _notify(self, event: Notice | Progress) -> None:
        if isinstance(event, Notice):
            self._told.put(event.text)


@dataclass
class _Lines:
    """The lines that were given, in place of a file of them."""

    given: dict[int, Given] = field(default_factory=dict)
    documents: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def at(self, begin: int, number: int) -> Line:
        row = self.given.pop(begin)
        self.documents = row.documents
        return row.line

    def document(self, name: str) -> tuple[str, str]:
        """Of the line `at` gave last."""
        if name not in self.documents:
            raise RowError(f"{name} was not sent along", "file")
        return self.documents[name]


class _Output(Tally):
    """An output, and a tally: what is written for a row, and what it took, goes on as one."""

    def __init__(self, put: Callable[[Finished], None]) -> None:
        super().__init__(0, 0)
        self._put = put
        self._written: tuple[str, dict[str, Any]] | None = None

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        """A row is finished; `finish` follows."""
        self._written = name, dict(record)

    def finish(self, size: int, answers: Sequence[Done]) -> None:
        """What the row took."""
        assert self._written is not None
        (name, record), self._written = self._written, None
        self._put(Finished(name, record, size, tuple(answers)))
