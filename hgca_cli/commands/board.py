"""The dashboard of a chat, put together: what is read of the engine and of the machine, and who shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hgca_cli.engine.metrics import Readings
from hgca_cli.hardware.usage import Usage
from hgca_cli.ui.board import Board
from hgca_cli.ui.snapshot import Watcher

if TYPE_CHECKING:
    from hgca_cli.engine.engine import Engine
    from hgca_cli.hardware.settings import Plan
    from hgca_cli.ui.console import Sink
    from hgca_cli.ui.style import Style


def with_board(sink: Sink, engine: Engine, plan: Plan, style: Style, mode: str, *, as_json: bool = False) -> Board:
    """A sink that shows what `sink` does, and the dashboard as `mode` says (ui/board.py)."""
    readings = Readings(engine)
    watcher = Watcher(readings.take, Usage(plan.device).read, plan, engine.loaded.name)
    return Board(sink, watcher, readings.rest, style, mode, as_json=as_json)
