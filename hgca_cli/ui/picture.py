"""The dashboard as a picture: what a terminal shows, drawn by rich."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hgca_cli.ui.dashboard import Line, block, block_rows
from hgca_cli.ui.gauges import BLOCKS
from hgca_cli.ui.inert import inert
from hgca_cli.ui.snapshot import Snapshot


def save_picture(snapshot: Snapshot, above: str, path: Path, columns: int, rows: int) -> None:
    """An SVG of a terminal of this size: the end of what was written, and under it the dashboard."""
    lines = block(snapshot, columns, block_rows(columns, rows), BLOCKS)
    save_lines(lines, above, path, columns, rows, "hgca chat --dashboard full")


def save_lines(lines: list[Line], above: str, path: Path, columns: int, rows: int, title: str) -> None:
    """The same of a dashboard's lines."""
    console = Console(record=True, file=io.StringIO(), force_terminal=True, width=columns, legacy_windows=False)
    written = Text(inert(above)).wrap(console, columns)[-(rows - len(lines)) :]
    for line in written:
        console.print(line, highlight=False)
    for pieces in lines:
        console.print(Text.assemble(*pieces), highlight=False)
    console.save_svg(str(path), title=f"{title} ({columns}x{rows})")
