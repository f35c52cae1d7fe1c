"""Ctrl-C while the model works: once stops it, twice leaves."""

from __future__ import annotations

import os
import signal

import pytest

from hgca_cli.app import run
from hgca_cli.commands import interrupt


def test_once_stops_and_twice_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: clock[0])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupt.interruptible() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        clock[0] += interrupt.TWICE_SECONDS + 0.1
        os.kill(os.getpid(), signal.SIGINT)  # too late to count as the second
        clock[0] += 0.1
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupted_before_there_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hgca_cli.commands.chat.plan_model", pressed)
    monkeypatch.setattr("sys.stdin", None)
    for words in (["-p", "x"], ["-p", "x", "--json"]):  # the exit code says it, and nothing else does
        assert run(["chat", *words]) == 130
        out, err = capsys.readouterr()
        assert out == "" and err.strip() == ""
