"""A job's progress on stderr: a bar or the dashboard on a terminal, a line every few seconds elsewhere; and its table at the end."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

from hgca_cli.ui.dashboard import Line
from hgca_cli.ui.gauges import glyphs_for
from hgca_cli.ui.inert import inert
from hgca_cli.ui.job_dashboard import job_block, job_short, job_words
from hgca_cli.ui.keyboard import unechoed
from hgca_cli.ui.style import Style, is_terminal
from hgca_cli.ui.wrapped import columns_of, wrapped
from hgca_cli.units import format_seconds

if TYPE_CHECKING:
    from hgca_cli.ui.drawing import Drawing, Make
    from hgca_cli.ui.job_snapshot import JobWatcher
    from hgca_cli.ui.log_file import LogFile

LINE_SECONDS = 30.0
BAR_SECONDS = 0.25
WORDS_SECONDS = 30.0
SHARE = 0.002  # of a processor, for the dashboard: many sequences are read, in Python, whose lock the rows wait for


class JobView:
    """What a person sees of a job; the console of a quiet one says nothing but errors.

    log   where what is told goes, too
    mode  line: a bar, or a line now and then; full: the dashboard, or the same in words where there is no terminal for it; off:
          no progress
    """

    def __init__(self, style: Style, *, quiet: bool, mode: str = "line", log: LogFile | None = None) -> None:
        self._log = log
        self._logged = time.monotonic()
        self._style, self._quiet, self._mode = style, quiet, mode
        self._bar: Any = None
        self._task: Any = None
        self._told = time.monotonic()
        self._watcher: JobWatcher | None = None
        self._drawing: Drawing | None = None
        self._unechoed = contextlib.ExitStack()

    def watch(self, watcher: JobWatcher) -> None:
        """Rows run from now on, and this tells how: the dashboard is there, if it is wanted."""
        self._watcher = watcher
        if self._mode != "full" or self._quiet or not self._style.bar:
            return
        from hgca_cli.ui.drawing import Drawing

        self._drawing = Drawing(self._take, color=self._style.color, share=SHARE)
        self._unechoed.enter_context(unechoed())
        self._drawing.open()

    def note(self, text: str) -> None:
        """A dim line."""
        if not self._quiet:
            self.tell(text)
        else:
            self.log(text)

    def log(self, text: str) -> None:
        """Into the log, if there is one."""
        if self._log is not None:
            self._log.write(inert(text))

    def tell(self, text: str) -> None:
        """A dim line, also of a quiet job."""
        self.log(text)
        text = inert(text)
        if self._bar is not None:
            self._bar.console.print(text, style="dim", markup=False, highlight=False)
            return
        with self._drawing.printing() if self._drawing is not None else contextlib.nullcontext():
            text = wrapped(text, columns_of(sys.stderr))
            print(f"\x1b[2m{text}\x1b[0m" if self._style.color else text, file=sys.stderr, flush=True)

    def progress(self, tally: Any) -> None:
        """How far it is, not too often. tally: of batch/tally.py."""
        if self._log is not None and time.monotonic() - self._logged >= LINE_SECONDS:
            self._logged = time.monotonic()
            if self._quiet or self._mode == "off" or self._style.bar:  # else it is told
                self.log(far(tally))
        if self._quiet or self._mode == "off":
            return
        if self._drawing is not None:
            if not self._drawing.failed:
                return
            self._undraw()
        now = time.monotonic()
        said = self._mode == "full" and not self._style.bar and is_terminal(sys.stderr) and self._watcher is not None
        if now - self._told < (BAR_SECONDS if self._style.bar else WORDS_SECONDS if said else LINE_SECONDS):
            return
        self._told = now
        if said:
            assert self._watcher is not None
            self.tell("\n".join(job_words(self._watcher.sample())))
        elif not self._style.bar:
            self.tell(far(tally))
        else:
            if self._bar is None:
                self._open(tally.rows)
            self._bar.update(self._task, completed=tally.done + tally.failed, figures=figures(tally))

    def close(self) -> None:
        """Take the bar or the dashboard away, and show the cursor again."""
        self._undraw()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _take(self) -> Make:
        assert self._watcher is not None
        taken, glyphs = self._watcher.sample(), glyphs_for(sys.stderr.encoding)

        def make(columns: int, rows: int, height: int) -> list[Line]:
            return job_block(taken, columns, height, glyphs) if height > 1 else [job_short(taken, columns, rows)]

        return make

    def _undraw(self) -> None:
        drawing, self._drawing = self._drawing, None
        if drawing is None:
            return
        drawing.close()
        self._unechoed.close()
        if drawing.failed:
            self.note(f"the dashboard stopped: {drawing.failed}")

    def _open(self, rows: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
        console = Console(stderr=True, no_color=not self._style.color)
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("", total=rows, figures="")
        self._bar.start()


def far(tally: Any) -> str:
    """How far it is, in a line."""
    return f"{tally.done + tally.failed:,} of {tally.rows:,} rows, {figures(tally)}"


def figures(tally: Any) -> str:
    """Speed, what is left, what runs and what failed."""
    left = f", {format_seconds(tally.left)} left" if tally.left is not None else ""
    failed = f", {tally.failed:,} failed" if tally.failed else ""
    reading = f", {tally.waiting} reading" if tally.waiting else ""
    aside = f", {tally.aside} set aside" if tally.aside else ""
    return f"{tally.rate:,.1f} tok/s{left} | {tally.running} running{reading}{aside}{failed}"


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
    if summary["set_aside"]:
        lines.append(f"  memory          rows were set aside {summary['set_aside']:,} times until others were finished")
    if summary["read_share"] is not None:
        kept = f", {summary['quality']:.1%} of the attention kept" if summary["quality"] is not None else ""
        lines.append(f"  store           {summary['read_share']:.0%} of it read{kept}")
    return "\n".join(lines)
