"""How far an evaluation is, and when it will be done: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hgca_cli.events import Event, Worked
from hgca_cli.ui.console import HumanSink
from hgca_cli.ui.style import Style
from hgca_cli.units import format_seconds

if TYPE_CHECKING:
    from hgca_cli.ui.progress import WorkBar

LINE_SECONDS = 30.0  # between progress lines where there is no terminal


class Work:
    """Tokens to do and done, by stage: a token that is read in a chunk costs far less than one that is decoded."""

    def __init__(self, planned: Mapping[str, int]) -> None:
        self.planned = dict(planned)
        self.done: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def add(self, event: Worked) -> None:
        """Part of it is done."""
        self.done[event.stage] = self.done.get(event.stage, 0) + event.tokens
        self.seconds[event.stage] = self.seconds.get(event.stage, 0.0) + event.seconds

    @property
    def left(self) -> float | None:
        """Seconds the rest takes at each stage's rate so far; None while a stage that is planned has none.

        Stages nobody could plan (answers end when they end) go on as before, beside those that were.
        """
        total = 0.0
        for stage, tokens in self.planned.items():
            if (rest := max(0, tokens - self.done.get(stage, 0))) == 0:
                continue
            if not self.done.get(stage):
                return None
            total += rest * self.seconds[stage] / self.done[stage]
        others = sum(seconds for stage, seconds in self.seconds.items() if stage not in self.planned)
        spent = sum(self.seconds.get(stage, 0.0) for stage in self.planned)
        return total * (1 + others / spent) if spent else None

    @property
    def line(self) -> str:
        """What is done and what is left."""
        parts = [f"{stage} {self.done.get(stage, 0):,} of {count:,}" for stage, count in self.planned.items() if count]
        left = f", {format_seconds(self.left)} left" if self.left is not None else ""
        return f"tokens: {', '.join(parts)}{left}"


class Line:
    """A line with a spinner on a terminal, made when it is first needed."""

    def __init__(self, *, color: bool) -> None:
        self._color = color
        self._bar: WorkBar | None = None

    def show(self, text: str) -> None:
        """Say this."""
        if self._bar is None:
            from hgca_cli.ui.progress import WorkBar

            self._bar = WorkBar(color=self._color)
        self._bar.show(text)

    def clear(self) -> None:
        """Nothing of it is left on the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class WorkSink:
    """Hears events of an evaluation: shows Worked as progress, and hands everything else on."""

    def __init__(self, sink: HumanSink, style: Style, *, quiet: bool) -> None:
        self._sink, self._style, self._quiet = sink, style, quiet
        self._work = Work({})
        self._line = Line(color=style.color)
        self._told = time.monotonic()
        self._what = ""

    def plan(self, planned: Mapping[str, int]) -> None:
        """What is ahead, by stage."""
        self._work = Work(planned)

    def begin(self, what: str) -> None:
        """What is measured from here on."""
        self._what = what

    def tell(self, event: Event) -> None:
        """One event."""
        if not isinstance(event, Worked):
            self.clear()
            self._sink.show(event)
            return
        self._work.add(event)
        if self._quiet:
            return
        if self._style.bar:
            self._line.show(f"{self._what}  {self._work.line}".strip())
        elif time.monotonic() - self._told > LINE_SECONDS:
            self._told = time.monotonic()
            self._sink.note(f"{self._what}  {self._work.line}".strip())

    def clear(self) -> None:
        """Nothing of it is left on the screen."""
        self._line.clear()


class StageSink:
    """Shows which of several measurements runs: a spinner on a terminal, a line each elsewhere."""

    def __init__(self, sink: HumanSink, style: Style, *, quiet: bool) -> None:
        self._sink, self._style, self._quiet = sink, style, quiet
        self._line = Line(color=style.color)
        self._told = -1

    def stage(self, what: str, done: int, of: int) -> None:
        """One that begins."""
        if self._quiet:
            return
        line = f"measuring {what} ({done + 1} of {of})"
        if self._style.bar:
            self._line.show(line)
        elif done != self._told:
            self._told = done
            self._sink.note(line)

    def clear(self) -> None:
        """Nothing of it is left on the screen."""
        self._line.clear()
