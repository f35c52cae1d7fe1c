"""Commands in this process, without the variables of whoever runs the tests, and what they say of a mistake."""

from __future__ import annotations

import os

import pytest

from hgca_cli.app import run


@pytest.fixture(autouse=True)
def no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is piped in, and no variable sets an option."""
    monkeypatch.setattr("sys.stdin", None)
    for name in [name for name in os.environ if name.startswith("HGCA_")]:
        monkeypatch.delenv(name)


def refused(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """What is said on stderr: one line."""
    assert run(list(words)) == code
    out, err = capsys.readouterr()
    assert err.startswith("hgca: error: ") and err.count("\n") == 1 and "Traceback" not in err and out == ""
    return err
