"""A snapshot of a job as lines: what a chat's dashboard shows (ui/dashboard.py), of all sequences together, and the job."""

from __future__ import annotations

from hgca_cli.metrics import Slot
from hgca_cli.ui.dashboard import (
    COLUMNS,
    LABEL,
    ROWS,
    Line,
    cut,
    figures,
    header,
    label,
    progress_bar,
    reasons,
    said,
    speed,
)
from hgca_cli.ui.gauges import Glyphs
from hgca_cli.ui.inert import inert
from hgca_cli.ui.job_snapshot import JobSnapshot
from hgca_cli.units import format_seconds

CELL = 36  # columns of a sequence, at least
NAME = 12  # of these, of what it is called, at least
REST = "rest, prompts"


def job_block(snapshot: JobSnapshot, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """Just so many lines (12 at least), each at most `width` cells wide."""
    now = snapshot.now
    lines = [header(now, width, glyphs), _job(snapshot, glyphs, width), _speed(snapshot, glyphs, width)]
    lines += figures(now, glyphs, width, REST)
    lines += _slots(snapshot, width, height - len(lines))
    lines += reasons(now, height - len(lines))
    return [cut(line, width) for line in [*lines, *([[]] * height)][:height]]


def job_short(snapshot: JobSnapshot, columns: int, rows: int) -> Line:
    """One line for a terminal that is too small, and says so."""
    told = "".join(text for text, _ in _job(snapshot, None, 0)[1:])
    return [(f"dashboard needs {COLUMNS}x{ROWS}, this is {columns}x{rows} | {told}"[:columns], "dim")]


def job_words(snapshot: JobSnapshot) -> list[str]:
    """Everything without bars or drawings, a line for each thing."""
    lines = [_job(snapshot, None, 0), _speed(snapshot, None, 0), *figures(snapshot.now, None, 0, REST)]
    lines += [[label("slots"), (_counts(snapshot), "")]]
    lines += [[label("slot"), (_slot(name, slot, 0), "")] for name, slot in snapshot.slots]
    return said(snapshot.now, [*lines, *reasons(snapshot.now, 99)])


def _job(snapshot: JobSnapshot, glyphs: Glyphs | None, width: int) -> Line:
    finished = snapshot.done + snapshot.failed
    failed = f", {snapshot.failed:,} failed" if snapshot.failed else ""
    left = f", {format_seconds(snapshot.left)} left" if snapshot.left is not None else ""
    text = f" {finished:,} of {snapshot.rows:,} rows ({finished / max(1, snapshot.rows):.0%})"
    cells = max(0, min(40, width - LABEL - len(text) - len(failed) - len(left)))
    drawn = progress_bar(finished / max(1, snapshot.rows), cells, glyphs) if glyphs else []
    return [label("job"), *drawn, (text if cells and glyphs else text[1:], "bold"), (failed, "red"), (left, "")]


def _speed(snapshot: JobSnapshot, glyphs: Glyphs | None, width: int) -> Line:
    reading = "" if snapshot.reading is None else f"  prompts {snapshot.reading:,.0f} tok/s"
    return speed("writing", snapshot.now, glyphs, width, reading)


def _counts(snapshot: JobSnapshot) -> str:
    aside = sum(slot.aside for _, slot in snapshot.slots)
    reading = sum(slot.read < slot.prompt and not slot.aside for _, slot in snapshot.slots)
    waits = f", {aside} set aside" if aside else ""
    return f"{len(snapshot.slots)} of {snapshot.most}: {len(snapshot.slots) - reading - aside} write, {reading} read{waits}"


def _slots(snapshot: JobSnapshot, width: int, room: int) -> list[Line]:
    """Who runs: one a line where there is room, else side by side."""
    room -= 1
    if room < 1:
        return []
    across = max(1, min(width // CELL, -(-len(snapshot.slots) // room)))
    shown = snapshot.slots[: across * room]
    hidden = len(snapshot.slots) - len(shown)
    more = f", {hidden} of them not shown" if hidden else ""
    cells = [_slot(name, slot, width // across - 2) for name, slot in shown]
    down = -(-len(cells) // across)
    rows = [cells[at::down] for at in range(down)]
    return [[label("slots"), (_counts(snapshot) + more, "")], *([("  ".join(one), "")] for one in rows)]


def _slot(name: str, slot: Slot, width: int) -> str:
    """In so many columns; 0: as many as it takes. A sequence is what it is called, prompt tokens read, tokens written."""
    read = f"{slot.read:,}" if slot.read >= slot.prompt else f"{slot.read:,}/{slot.prompt:,}"
    text = f"prompt {read}, wrote {slot.written:,}/{slot.most:,}"
    called = inert(name).replace("\n", " ").replace("\t", " ")
    if not width:
        return f"{called}: {text}"
    if width - len(text) - 1 < NAME:
        text = f"{read} + {slot.written:,}/{slot.most:,}"
    room = max(1, width - len(text) - 1)
    called = called if len(called) <= room else called[: max(0, room - 1)] + "~"
    return f"{called:<{room}} {text}"[:width].ljust(width)
