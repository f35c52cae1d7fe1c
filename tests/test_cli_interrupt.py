"""Ctrl-C while the model works: once stops it, twice leaves."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from hgca_cli.app import run
from hgca_cli.commands import interrupt
from hgca_cli.commands.talk import Talk


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


def test_twice_in_an_answer_that_a_slash_command_asked_for_leaves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    talk: Any = Talk.__new__(Talk)
    talk.sink = SimpleNamespace(tell=told.append)

    def pressed(kind: type[BaseException]) -> Any:
        def raises(*_: object) -> None:
            raise kind

        return raises

    monkeypatch.setattr("hgca_cli.commands.talk.run_slash", pressed(KeyboardInterrupt))
    talk._do("/file large.txt")
    assert told == ["stopped"]
    monkeypatch.setattr("hgca_cli.commands.talk.run_slash", pressed(interrupt.Twice))
    with pytest.raises(KeyboardInterrupt):
        talk._do("/regen")


def test_ctrl_c_that_meets_a_finaliser_prints_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pressed:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    class Broken:
        def __del__(self) -> None:
            raise OSError("its own")

    told: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda lost: told.append(lost.exc_type))
    with pytest.raises(KeyboardInterrupt), interrupt.endings():
        Pressed()
        Broken()
        interrupt.end_if_asked()
    assert told == [OSError]


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
