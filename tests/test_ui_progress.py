"""The line that shows how far an evaluation is: never as wide as the terminal."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from hgca_cli.ui import progress

TEXT = "lines.jsonl 1 of 5  tokens: read 4,424 of 44,211, decode 1 of 5, 3:00 left"


@pytest.mark.parametrize("width", [20, 60, 200])
def test_a_line_has_room_for_what_ctrl_c_shows(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()

    def console(**_: Any) -> Console:
        return Console(file=out, width=width, force_terminal=True)

    monkeypatch.setattr(progress, "Console", console)
    bar = progress.WorkBar(color=False)
    bar.show(TEXT)
    bar.close()
    shown = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip() for line in re.split(r"[\r\n]", out.getvalue())]
    assert any("3:00 left" in line for line in shown), "what is left is not cut off"
    assert max(map(len, shown)) <= width - len("^C") - 1
    assert any(TEXT in line for line in shown) == (width == 200)
