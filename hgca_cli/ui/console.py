"""Where everything a command says goes: the answer to stdout, all else to stderr; or JSON lines."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

from hgca_cli.errors import HgcaError, UsageError
from hgca_cli.events import Balanced, Done, Event, Notice, PrefillProgress, Text, Thought
from hgca_cli.ui.eta import Eta
from hgca_cli.ui.figures import balanced_line, figures, plan_line, plan_table
from hgca_cli.ui.inert import inert
from hgca_cli.ui.json_lines import JsonSink
from hgca_cli.ui.style import Style, is_terminal
from hgca_cli.ui.thoughts import ThoughtLines
from hgca_cli.ui.wrapped import columns_of, wrapped
from hgca_cli.units import counted, format_seconds

if TYPE_CHECKING:
    from hgca_cli.ui.markdown import MarkdownStream
    from hgca_cli.ui.progress import Bar

MARKDOWN = ("auto", "on", "off")

LINE_SECONDS = 5.0  # between progress lines where there is no terminal


class Sink(Protocol):
    """Shows what happens."""

    def show(self, event: Event) -> None:
        """One event."""
        ...

    def plan(self, plan: Any, model: str, *, detailed: bool = False) -> None:
        """What will be where; detailed: with bytes and reasons."""
        ...

    def attached(self, name: str, tokens: int) -> None:
        """A document that will be read before the question."""
        ...

    def tell(self, text: str) -> None:
        """What was asked for: shown always."""
        ...

    def note(self, text: str) -> None:
        """What was not asked for."""
        ...

    def error(self, error: HgcaError) -> None:
        """What went wrong in a turn; the conversation goes on."""
        ...

    def render(self, markdown: str) -> None:
        """How answers are shown from here on: one of MARKDOWN. Raises UsageError where there is no choice."""
        ...

    def cover(self, rows: int) -> None:
        """So many rows at the lower end of the terminal do not scroll with what is shown."""
        ...

    def close(self) -> None:
        """The turn is over, however it ended."""
        ...


def make_sink(
    style: Style,
    *,
    as_json: bool,
    stats: bool,
    stream: bool,
    quiet: bool,
    verbose: bool,
    markdown: str = "off",
    thoughts: bool = True,
) -> Sink:
    """The sink the flags ask for."""
    if as_json:
        return JsonSink(stream=stream, quiet=quiet, thoughts=thoughts)
    sink = HumanSink(style, stats=stats, stream=stream, quiet=quiet, verbose=verbose, thoughts=thoughts)
    sink.render(markdown)
    return sink


class HumanSink:
    """For a person: the answer as it comes, a progress bar while a prompt is read, one line of figures after."""

    def __init__(
        self, style: Style, *, stats: bool, stream: bool, quiet: bool, verbose: bool = False, thoughts: bool = True
    ) -> None:
        self._style, self._stats, self._stream = style, stats, stream
        self._quiet, self._verbose = quiet, verbose
        self._to_terminal = is_terminal(sys.stdout)
        self._bar: Bar | None = None
        self._eta = Eta()
        self._told = 0.0
        self._line_open = False
        self._markdown: MarkdownStream | None = None
        shown = is_terminal(sys.stderr) and not quiet
        self._thoughts = ThoughtLines(color=style.color, hidden=not thoughts) if shown else None

    def render(self, markdown: str) -> None:
        """Answers as Markdown: always (on), on a terminal whose cursor moves (auto), or as the model wrote them (off)."""
        if markdown not in MARKDOWN:
            raise UsageError(f"--markdown: no such choice {markdown!r}.", f"Choose from {', '.join(MARKDOWN)}.")
        lively = self._to_terminal and os.environ.get("TERM") != "dumb"
        self._markdown = None
        if markdown == "on" or (markdown == "auto" and lively):
            from hgca_cli.ui.markdown import MarkdownStream

            color = self._style.color and self._to_terminal
            self._markdown = MarkdownStream(self._write, color=color, tail=lively and self._stream)

    def cover(self, rows: int) -> None:
        """A block of an answer that grows is no taller than what is left."""
        if self._markdown is not None:
            self._markdown.covered = rows

    def show(self, event: Event) -> None:
        """One event."""
        if isinstance(event, PrefillProgress):
            self._progress(event)
            return
        self._close_bar()
        if isinstance(event, Thought):
            if self._thoughts is not None:
                self._thoughts.push(event.text)
            return
        if isinstance(event, Text) and self._stream:
            self._answer(event.text)
        elif isinstance(event, Notice):
            self.note(event.text)
        elif isinstance(event, Balanced) and self._verbose:
            amid = self._line_open and self._to_terminal  # a file of the answer holds what the model wrote
            self.note("\n" * amid + balanced_line(event))
        elif isinstance(event, Done):
            if not self._stream:
                self._answer(event.text)
            self._end_blocks()
            if self._line_open or not (event.text or event.finish_reason == "interrupted"):
                self._write("\n")
            self._line_open = False
            if self._stats:
                self.tell(figures(event))

    def plan(self, plan: Any, model: str, *, detailed: bool = False) -> None:
        """One line on what runs, or all of it."""
        if detailed:
            self.tell(plan_table(plan, model))
        else:
            self.note(plan_line(plan, model))

    def attached(self, name: str, tokens: int) -> None:
        """How long a document is."""
        self.note(f"{name}: {counted(tokens, 'token')}")

    def tell(self, text: str) -> None:
        """A dim line on stderr."""
        self._close_bar()
        self._settle()
        self._print(inert(text), "\x1b[2m")

    def note(self, text: str) -> None:
        """A dim line on stderr, unless --quiet."""
        if not self._quiet:
            self.tell(text)

    def error(self, error: HgcaError) -> None:
        """One line on stderr."""
        self._close_bar()
        self._settle()
        self._print(f"error: {inert(str(error))}", "\x1b[31m")

    def close(self) -> None:
        """No bar is left on the screen, and no line unfinished."""
        self._close_bar()
        self._end_blocks()
        if self._line_open:
            self._line_open = False
            self._write("\n")

    def _print(self, text: str, color: str) -> None:
        """On stderr; on a terminal no word is cut in two."""
        text = wrapped(text, columns_of(sys.stderr))
        print(f"{color}{text}\x1b[0m" if self._style.color else text, file=sys.stderr, flush=True)

    def _settle(self) -> None:
        """A line of its own follows."""
        if self._thoughts is not None:
            self._thoughts.end()
        if self._markdown is not None:
            self._markdown.settle()

    def _end_blocks(self) -> None:
        """The answer has ended: what of it waited for its end is shown."""
        if self._thoughts is not None:
            self._thoughts.end()
        if self._markdown is not None:
            self._markdown.finish()

    def _answer(self, text: str) -> None:
        if text and self._thoughts is not None:
            self._thoughts.end()
        if text and self._markdown is not None:
            self._markdown.push(text)
        elif text:
            self._line_open = not text.endswith("\n")
            self._write(inert(text) if self._to_terminal else text)

    def _write(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk, mostly
            raise HgcaError(
                f"cannot write the answer: {error.strerror or 'the output is closed'}.",
                "Free some space, or write elsewhere.",
            ) from error

    def _progress(self, event: PrefillProgress) -> None:
        if self._quiet:
            return
        left = self._eta.add(event)
        if event.processed <= event.cached:
            self._told = time.monotonic()
        if event.processed >= event.total:
            self._close_bar()
        elif self._style.bar:
            if self._bar is None:
                from hgca_cli.ui.progress import Bar

                self._bar = Bar(event, color=self._style.color)
            self._bar.show(event, left)
        elif left is not None and time.monotonic() - self._told > LINE_SECONDS:
            self._told = time.monotonic()
            self.note(f"read {event.processed:,} of {event.total:,} tokens, {format_seconds(left)} left")

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
