"""What is told while something takes long."""

from __future__ import annotations

from pathlib import Path

import pytest

from hgca_cli.events import Event, Notice
from hgca_cli.hf import slowly
from hgca_cli.hf.load import load_model
from hgca_cli.hf.registry import ModelFiles
from hgca_cli.hf.slowly import Slowly
from tests.models import write_model


def test_it_is_told_every_so_often() -> None:
    now, told = [0.0], list[Event]()
    far = Slowly("packing", 1000, told.append, lambda: now[0])
    for second in range(1, 41):
        now[0] = float(second)
        far.add(25)
    assert told == [
        Notice("packing: 25%, 0:30 left"), Notice("packing: 50%, 0:20 left"), Notice("packing: 75%, 0:10 left")
    ]  # fmt: skip


def test_what_is_quick_is_not_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, told = ModelFiles("tiny", write_model(tmp_path)), list[Event]()
    load_model(files, quant="q8", notify=told.append)
    assert told == []
    monkeypatch.setattr(slowly, "EVERY", 0.0)
    load_model(files, quant="q8", notify=told.append)
    shares = [event.text for event in told if isinstance(event, Notice)]
    assert len(shares) > 8 and all(text.startswith("loading the weights: ") and "100%" not in text for text in shares)
