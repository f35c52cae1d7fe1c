"""Every line of an input looked at before a model is: what can run, what cannot, and under which id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from hgca_cli.batch.lines import Line, Lines
from hgca_cli.batch.rows import Reader, Row, RowError, bad_row, parse, text_of
from hgca_cli.errors import UsageError

MOST_SHOWN = 40
GZIP = b"\x1f\x8b"  # begins a packed file
FIRST = 8  # lines by which an input is known
BEGINNINGS = tuple(512 << at for at in range(14))  # characters


class Entry(NamedTuple):
    """A line, without what it says. error: what is wrong with it, and the word for that; form: as of Row.

    begins  hashes of what its prompt begins with, of more and more of it
    """

    number: int
    begin: int
    id: str
    digest: str
    size: int  # bytes, documents included
    form: str = ""
    error: tuple[str, str] | None = None
    begins: tuple[int, ...] = ()


@dataclass
class Checked:
    """An input. unknown: fields nobody looks at; models: what lines ask for; options: what they tell the chat template."""

    entries: list[Entry] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)

    @property
    def bad(self) -> list[Entry]:
        """Lines that cannot run."""
        return [entry for entry in self.entries if entry.error is not None]


def check(lines: Lines, reader: Reader, *, limit: int | None = None, strict: bool = False) -> Checked:
    """Look at every line, or at the first `limit`.

    Raises UsageError for an input that is no JSON lines, and for an id that is there twice, naming both lines; strict: for the first
    line that cannot run, and for a field nobody looks at.
    """
    if not reader.text:
        _refuse_no_lines(lines)
    checked = Checked()
    seen: dict[str, int] = {}
    unknown: dict[str, int] = {}
    models: dict[str, None] = {}
    options: dict[str, None] = {}
    for entry, row in _looked_at(lines, reader, limit):
        fields, model = row.unknown, row.model
        if (first := seen.setdefault(entry.id, entry.number)) != entry.number:
            raise UsageError(
                f"lines {first:,} and {entry.number:,} have the same id {shown(entry.id)}.", "Give each its own."
            )
        if strict and entry.error is not None:
            raise UsageError(f"line {entry.number:,}: {entry.error[0]}.", "Mend it, or leave --strict out.")
        if strict and fields:
            raise UsageError(f"line {entry.number:,}: no field {shown(fields[0])}.", "Mend it, or leave --strict out.")
        checked.entries.append(entry)
        unknown.update(dict.fromkeys(fields, 0))
        models.update({model: None} if model and len(models) < MOST_SHOWN else {})
        options.update(dict.fromkeys(row.options))
    checked.unknown, checked.models, checked.options = list(unknown), list(models), list(options)
    return checked


def _refuse_no_lines(lines: Lines) -> None:
    """Raises UsageError for a packed file, a text, and JSON that goes over several lines: each line would be a row that failed."""
    first = list(islice(lines, FIRST))
    begin = (first[0].content or b"").replace(b" ", b"") if first else b""
    if begin.startswith(GZIP):
        raise UsageError(
            f"{lines.name} is packed by gzip.", "Pipe its lines in: zcat FILE | hgca batch - -o answers.jsonl"
        )
    if begin.startswith(b"[{") or begin in (b"[", b"{"):
        each = "." if begin == b"{" else ".[]"
        raise UsageError(
            f"{lines.name} is JSON, but not a line for each row.", f"jq -c '{each}' makes lines of it: pipe them in."
        )
    if first and not any(map(_may_be_row, first)):
        raise UsageError(
            f"{lines.name} is a text, not JSON lines.",
            "With --text every line is a prompt; hgca chat -f FILE -p 'your question' asks about a whole text.",
        )


def _may_be_row(line: Line) -> bool:
    """Whether a line is JSON as a row is, or was meant to be."""
    if line.content is None or line.content.lstrip().startswith(b"{"):
        return True
    try:
        return isinstance(parse(text_of(line)), (str, list))
    except RowError:
        return False


def entry_of(line: Line, reader: Reader) -> tuple[Entry, Row]:
    """A line looked at: its entry, and its request as far as it can be known."""
    size = len(line.content or b"")
    try:
        row = reader.row(line)
    except RowError as error:
        row = bad_row(line, reader)
        told = (error.message, error.code)
        return Entry(line.number, line.begin, row.id, row.digest, size, row.form, told), row
    said = row.prompt or "".join(f"{one['role']}\0{one['content']}\0" for one in row.messages or ())
    begins = tuple(hash(said[:length]) for length in BEGINNINGS if length <= len(said))
    entry = Entry(line.number, line.begin, row.id, row.digest, max(size, len(said)), row.form, None, begins)
    return entry, row


def _looked_at(lines: Lines, reader: Reader, limit: int | None) -> Iterator[tuple[Entry, Row]]:
    for count, line in enumerate(lines):
        if limit is not None and count >= limit:
            return
        yield entry_of(line, reader)


def shown(text: str) -> str:
    """An id or a name, short and on one line."""
    return repr(text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "…")
