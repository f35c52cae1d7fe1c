"""Where the lines of a job go: a journal, a second one for what failed, or standard output; as they come or in order."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hgca_cli.batch.check import Checked, Entry, shown
from hgca_cli.batch.journal import Journal, Manifest, difference
from hgca_cli.batch.results import encoded
from hgca_cli.errors import UsageError


class Output:
    """The output of a job, open for writing until `close`.

    done    ids of rows that are finished already, and whether each of them failed
    mended  bytes of an unfinished line that were cut off

    With path None lines go to standard output, and nothing was done before. Until `begin` no line that is there is touched, and
    a job that ends without a line of its own leaves no file that it made.
    """

    def __init__(self, path: Path | None, errors: Path | None, *, overwrite: bool = False) -> None:
        """Raises UsageError for an output that is not a job's, or that another job writes; ModelError, DoesNotFitError."""
        self.done: dict[str, bool] = {}
        self.mended = 0
        self._digests: dict[str, str] = {}
        self._overwrite, self._forgetting, self._kept = overwrite, False, False
        self._ordered: _Order | None = None
        self._journals: list[Journal] = []
        self._manifest = Manifest(path) if path is not None else None
        try:
            for one in (path, errors):
                if one is not None:
                    self._journals.append(Journal(one))
            self._answers = self._journals[0] if path is not None else None
            self._errors = self._journals[-1] if self._journals else None
            if not overwrite and self._manifest is not None:
                self._read(self._manifest)
        except BaseException:
            self.close()
            raise

    def began(self) -> Mapping[str, Any]:
        """What the job is that the rows there are of; nothing if there are none."""
        return (self._manifest.read() if self._manifest is not None and self.done else None) or {}

    def of(self, told: Mapping[str, Any]) -> None:
        """This is what the output is to be the output of. Raises UsageError, naming what differs, if it is another's."""
        if (old := self.began()) and (what := difference(old, told)):
            raise UsageError(
                f"{self._journals[0].path} is the output of another job: {what}.",
                "Name another file with -o, or give --overwrite.",
            )

    def compare(self, checked: Checked) -> None:
        """Raises UsageError for a line that is not the one there is an answer of."""
        for entry in checked.entries:
            if entry.id in self.done and self._digests[entry.id] != entry.digest:
                remedy = "give --retry-errors" if self.done[entry.id] else "give a changed line another id"
                raise UsageError(
                    f"line {entry.number:,} (id {shown(entry.id)}) has changed since {self._journals[0].path} has its answer.",
                    f"Name another file with -o, {remedy}, or give --overwrite.",
                )

    def begin(self, told: Mapping[str, Any]) -> None:
        """Lines follow: what is to be lost of those there are goes now. Errors as of Journal."""
        self._lose()
        if self._manifest is not None:
            self._manifest.write(told)

    def forget_errors(self) -> int:
        """Rows that failed are to be done again, and their lines to go with `begin`; returns how many."""
        good: dict[str, bool] = {name: failed for name, failed in self.done.items() if not failed}
        gone, self.done, self._forgetting = len(self.done) - len(good), good, True
        return gone

    def keep(self) -> None:
        """No line follows, and none is missing: files stay, be they empty."""
        self._lose()
        self._kept = True

    def in_order(self, entries: Iterable[Entry]) -> None:
        """Lines are written in the order of these entries, each once those before it are."""
        self._ordered = _Order([entry.id for entry in entries])

    def arrange(self, names: Iterable[str]) -> None:
        """Lines that were there before, and those that followed, get the order of these names; lines of others stay behind them.

        Errors as of Journal.
        """
        if not self.done:
            return  # all were written in order
        place = {name: at for at, name in enumerate(names)}
        for journal in self._journals:
            journal.sort(lambda record: place.get(_name_of(record), len(place)))

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        """A row is finished. When this returns its line is on the disk, or waits for those before it. Errors as of Journal."""
        line, failed = encoded(record), record.get("error") is not None
        for ready, fails in [(line, failed)] if self._ordered is None else self._ordered.add(name, line, failed):
            journal = self._errors if fails else self._answers
            if journal is None:
                sys.stdout.buffer.write(ready)
                sys.stdout.buffer.flush()
            else:
                journal.append(ready)
                self._kept = True

    def close(self) -> None:
        """Others may write."""
        for journal in self._journals:
            if not self._kept:
                journal.remove()
            journal.close()
        if self._manifest is not None and not self._kept:
            self._manifest.remove()

    def _lose(self) -> None:
        for journal in self._journals:
            if self._overwrite:
                journal.clear()
            elif self._forgetting:
                journal.keep(lambda record: record.get("error") is None)

    def _read(self, manifest: Manifest) -> None:
        answers = self._journals[0]
        if answers.empty:
            if len(self._journals) > 1 and not self._journals[1].empty and manifest.read() is None:
                raise UsageError(f"{self._journals[1].path} is there already.", "Name another, or give --overwrite.")
        elif manifest.read() is None:
            raise UsageError(
                f"{answers.path} is there already, and not as the output of a job.",
                "Name another file with -o, or give --overwrite.",
            )
        for journal in self._journals:
            self.mended += journal.repair()
            for _, record in journal.records():
                name = _name_of(record)
                self.done[name] = record.get("error") is not None
                self._digests[name] = str(record["hgca"].get("input", ""))


def _name_of(record: Mapping[str, Any]) -> str:
    return str(record.get("custom_id", record.get("id")))


class _Order:
    """Lines that wait for those before them."""

    def __init__(self, names: list[str]) -> None:
        self._names, self._next = names, 0
        self._held: dict[str, tuple[bytes, bool]] = {}

    def add(self, name: str, line: bytes, failed: bool) -> list[tuple[bytes, bool]]:
        self._held[name] = line, failed
        ready = []
        while self._next < len(self._names) and self._names[self._next] in self._held:
            ready.append(self._held.pop(self._names[self._next]))
            self._next += 1
        return ready
