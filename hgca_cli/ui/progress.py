"""The bars that are shown while a prompt is read, or an evaluation runs. Only imported where there is a terminal for it."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from hgca_cli.events import PrefillProgress
from hgca_cli.units import format_seconds

WIDE = 72  # columns from which on there is room to say how a bar is stopped
FIGURES = 52  # of a Bar: what stands beside it at most, 1,048,576/1,048,576 12,345 tok/s, 10:00:00 left
SPARE = 5  # columns beside a WorkBar's words: the spinner and its blank, the ^C that a terminal shows, and the last one


class Bar:
    """A transient bar on stderr; it must be closed, or the cursor stays hidden."""

    def __init__(self, event: PrefillProgress, *, color: bool) -> None:
        console = Console(stderr=True, no_color=not color)
        self._hint = "  (Ctrl-C stops)" if console.width >= WIDE else ""
        bar = max(4, min(40, console.width - FIGURES - len(self._hint)))
        columns = (
            TextColumn("reading"),
            BarColumn(bar),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("", total=event.total, completed=event.cached, rate="")
        self._progress.start()

    def show(self, event: PrefillProgress, left: float | None) -> None:
        """Move the bar; left: seconds, None if nobody knows yet."""
        new = event.processed - event.cached
        rate = "" if left is None else f"{new / event.seconds:,.0f} tok/s, {format_seconds(left)} left"
        self._progress.update(self._task, completed=event.processed, rate=f"{rate}{self._hint}")

    def close(self) -> None:
        """Take the bar away, and show the cursor again."""
        self._progress.stop()


class WorkBar:
    """A transient line with a spinner on stderr; it must be closed, too."""

    def __init__(self, *, color: bool) -> None:
        console = self._console = Console(stderr=True, no_color=not color)
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False))
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("")
        self._progress.start()

    def show(self, text: str) -> None:
        """Say how far it is; of what is too long for the line the end. A full one would stay after Ctrl-C: ^C wraps."""
        room = max(2, self._console.width - SPARE)
        self._progress.update(self._task, description=text if len(text) <= room else f"…{text[1 - room :]}")

    def close(self) -> None:
        """Take the line away, and show the cursor again."""
        self._progress.stop()
