"""A text in the editor of a person's choice: what it wrote, and one line for what keeps it from that."""

from __future__ import annotations

from pathlib import Path

import pytest

from hgca_cli.errors import HgcaError
from hgca_cli.ui import editor
from hgca_cli.ui.editor import edited_elsewhere


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A terminal at both ends, and no editor yet."""
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setattr(editor, "is_terminal", lambda stream: True)
    return monkeypatch


def refused(*words: str) -> str:
    with pytest.raises(HgcaError) as told:
        edited_elsewhere("a", *words)
    return f"{told.value.message} {told.value.hint}"


def test_a_file_has_the_name_that_it_is_edited_by(chosen: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "editor"
    script.write_text('#!/bin/sh\nbasename "$1" >> "$1"\n')
    script.chmod(0o700)
    chosen.setenv("EDITOR", str(script))
    assert edited_elsewhere("a = 1\n", "config.toml") == "a = 1\nconfig.toml\n"


def test_an_editor_that_fails_is_told_in_words(chosen: pytest.MonkeyPatch) -> None:
    chosen.setenv("EDITOR", "false")
    assert refused() == "false ended with 1: what it wrote is not taken. Set EDITOR to one that works."
    chosen.setenv("EDITOR", "/no/such/editor")
    assert refused() == "/no/such/editor: No such file or directory. Set EDITOR to one that works."


def test_what_can_be_done_without_an_editor(chosen: pytest.MonkeyPatch) -> None:
    chosen.delenv("EDITOR", raising=False)
    chosen.setattr(editor, "EDITORS", ())
    assert refused() == "there is no editor. Set EDITOR, or write several lines between triple quotes."
    chosen.setattr(editor, "is_terminal", lambda stream: False)
    chosen.setenv("EDITOR", "vi")
    assert refused("config.toml", "name a key") == "there is no terminal to edit in. Name a key."
