"""Evaluations as tables: the columns of `hgca eval`, a line per result, as narrow as the terminal asks for."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill
from typing import Any

from hgca_cli.ui.style import is_terminal

Record = Mapping[str, Any]
WIDEST = 118  # of a legend's lines, where nobody says how wide the screen is


@dataclass(frozen=True)
class Column:
    """A figure of a result. width: characters, at least those of its name."""

    name: str
    width: int
    show: Callable[[Record], str]


def fitted(value: float, places: int, width: int) -> str:
    """A number in so many characters at most: fewer places where it is large, then a power of ten."""
    for fewer in range(places, -1, -1):
        if len(text := f"{value:.{fewer}f}") <= width:
            return text
    return f"{value:.0e}"


def _share(name: str) -> Callable[[Record], str]:
    return lambda record: f"{record[name]:.1%}"


def _change(record: Record) -> str:
    change = record["perplexity_change"]
    return f"{change:+.2%}" if abs(change) < 1 else f"{change:+.0%}" if change < 999 else f"{change * 100:+.0e}%"


READ = (Column("rows", 6, _share("read_share")), Column("bytes", 6, _share("bytes_share")))
MS = Column("ms", 5, lambda record: fitted(record["seconds"] * 1e3, 1, 5))
KL = Column("KL", 7, lambda record: fitted(record["kl"], 5, 7))
AGREE = Column("agree", 6, _share("agreement"))

FIDELITY = (
    KL,
    Column("+-", 7, lambda record: fitted(record["kl_error"], 5, 7)),
    AGREE,
    Column("ppl", 6, lambda record: fitted(record["perplexity"], 2, 6)),
    Column("change", 7, _change),
    *READ,
    MS,
)
FIDELITY_LEGEND = (
    "KL: mean KL(exact || policy) of the next token in nats, with its standard error. agree: same likeliest token. ppl, "
    "change: perplexity of the text, and against exact attention. rows, bytes: share of the store read per token, indexes "
    "included. ms: a token's, median."
)


def _first(record: Record) -> str:
    return "-" if record["first"] is None else f"{record['first']}/{record['scored']}"


RECALL = (
    Column("right", 9, lambda record: f"{record['right']}/{record['count']}"),
    Column("lost", 5, lambda record: str(record["lost"])),
    Column("first", 9, _first),
    Column("ln p", 7, lambda record: "-" if record["log_prob"] is None else fitted(record["log_prob"], 2, 7)),
    *READ,
    Column("MB/token", 8, lambda record: f"{record['bytes_read'] / 1e6:.2f}"),
)
RECALL_LEGEND = (
    "right: answers that hold what was asked for; lost: wrong ones where exact was right. first: the right answer is the "
    "likeliest of ten, ln p: its log-probability (with --score). rows, bytes: share of the store read per token, and its "
    "megabytes."
)

DRIFT = (
    KL,
    Column("by quarter", 31, lambda record: " ".join(fitted(one, 5, 7) for one in record["quarters"])),
    Column("growth", 6, lambda record: "inf" if record["growth"] is None else fitted(record["growth"], 2, 6)),
    AGREE,
    Column("new", 4, lambda record: f"{record['distinct']:.0%}"),
    *READ,
    MS,
)
DRIFT_LEGEND = (
    "KL: mean KL(exact || policy) of the next token in nats, on the text the policy wrote. growth: last quarter over the "
    "first. agree: same likeliest token. new: share of runs of four tokens that are no repetition. rows, bytes: share of "
    "the store read per token, indexes included. ms: a token's, median."
)


@dataclass
class EvalTable:
    """Results in groups that begin with the names of the columns.

    titles    of the groups; policies: all that will come, so that names fit
    screen    characters of a line, None: nobody looks. Where a line does not fit, a policy's name has one of its own
    """

    columns: Sequence[Column]
    titles: Sequence[str]
    policies: Sequence[str]
    legend: str
    screen: int | None = field(default_factory=lambda: screen_width())
    _shown: str = ""

    def lines(self, title: str, record: Record) -> Iterator[str]:
        """What a result of a group adds: the group's head before its first one, then name and figures."""
        if title != self._shown:
            if self._shown:
                yield ""
            self._shown = title
            yield from self._line(title, [one.name for one in self.columns])
        yield from self._line(record["policy"], [one.show(record) for one in self.columns])

    def ending(self) -> str:
        """What the columns mean."""
        return "\n" + fill(self.legend, min(self.screen or WIDEST, WIDEST), break_on_hyphens=False)

    def _line(self, name: str, cells: Sequence[str]) -> Iterator[str]:
        figures = " ".join(f"{cell:>{one.width}}" for cell, one in zip(cells, self.columns, strict=True))
        least, most = max(map(len, self.policies)), max(map(len, [*self.policies, *self.titles]))
        room = most if self.screen is None else self.screen - len(figures) - 1
        if room < least:
            yield from (name, figures)
        else:
            width = min(most, room)
            yield f"{_cut(name, width):{width}} {figures}"


def screen_width() -> int | None:
    """Characters of a line of the terminal results are printed on, None if they go elsewhere."""
    return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
