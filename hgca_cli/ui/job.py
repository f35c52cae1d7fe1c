"""A job's progress on stderr: a bar on a terminal, a line every few seconds elsewhere; and its table at the end."""

from __future__ import annotations

import sys
import time
from typing import Any

from hgca_cli.ui.inert import inert
from hgca_cli.ui.style import Style
from hgca_cli.units import format_seconds

LINE_SECONDS = 5.0
BAR_SECONDS = 0.25


class JobView:
    """What a person sees of a job; the console of a quiet one says nothing but errors."""

    def __init__(self, style: Style, *, quiet: bool) -> None:
        self._style, self._quiet = style, quiet
        self._bar: Any = None
        self._task: Any = None
        self._told = time.monotonic()

    def note(self, text: str) -> None:
        """A dim line."""
        if not self._quiet:
            self.tell(text)

    def tell(self, text: str) -> None:
        """A dim line, also of a quiet job."""
        text = inert(text)
        if self._bar is not None:
            self._bar.console.print(text, style="dim", markup=False, highlight=False)
        else:
            print(f"\x1b[2m{text}\x1b[0m" if self._style.color else text, file=sys.stderr, flush=True)

    def progress(self, tally: Any) -> None:
        """How far it is, not too often. tally: of batch/tally.py."""
        now = time.monotonic()
        if self._quiet or now - self._told < (BAR_SECONDS if self._style.bar else LINE_SECONDS):
            return
        self._told = now
        if not self._style.bar:
            self.tell(f"{tally.done + tally.failed:,} of {tally.rows:,} rows, {figures(tally)}")
            return
        if self._bar is None:
            self._open(tally.rows)
        self._bar.update(self._task, completed=tally.done + tally.failed, figures=figures(tally))

    def close(self) -> None:
        """Take the bar away, and show the cursor again."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _open(self, rows: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
        console = Console(stderr=True, no_color=not self._style.color)
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("", total=rows, figures="")
        self._bar.start()


def figures(tally: Any) -> str:
    """Speed, what is left, what runs and what failed."""
    left = f", {format_seconds(tally.left)} left" if tally.left is not None else ""
    failed = f", {tally.failed:,} failed" if tally.failed else ""
    reading = f", {tally.waiting} reading" if tally.waiting else ""
    return f"{tally.rate:,.1f} tok/s{left} | {tally.running} running{reading}{failed}"


def job_table(summary: dict[str, Any]) -> str:
    """The figures of a job that is over, for a person."""
    failed = f", {summary['failed']:,} failed" if summary["failed"] else ""
    missing = f", {summary['missing']:,} missing" if summary["missing"] else ""
    cached = f" ({summary['cached_tokens']:,} not read again)" if summary["cached_tokens"] else ""
    lines = [
        f"{summary['done']:,} of {summary['rows']:,} rows done{failed}{missing} in {format_seconds(summary['seconds'])}",
        f"  throughput      {summary['tokens_per_second']:,.1f} tok/s, {summary['rows_per_second']:,.2f} rows/s,"
        f" up to {summary['concurrency']} at once",
        f"  tokens          prompts {summary['prompt_tokens']:,}{cached}, answers {summary['completion_tokens']:,}",
    ]
    for name, label, unit in (("ttft_seconds", "first token", 1.0), ("token_seconds", "per token", 1e3)):
        if (spread := summary[name]) is not None:
            shown = [f"{unit * spread[one]:,.2f} {'s' if unit == 1.0 else 'ms'}" for one in ("p50", "p90")]
            lines.append(f"  {label:15} p50 {shown[0]}, p90 {shown[1]}")
    if summary["read_share"] is not None:
        kept = f", {summary['quality']:.1%} of the attention kept" if summary["quality"] is not None else ""
        lines.append(f"  store           {summary['read_share']:.0%} of it read{kept}")
    return "\n".join(lines)
