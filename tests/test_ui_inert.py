"""What a model says cannot drive the terminal."""

from __future__ import annotations

from hgca_cli.ui.inert import inert


def test_escape_sequences_are_inert() -> None:
    evil = "\x1b]52;c;aGk=\x07 \x1b[2J \x1b]8;;http://x\x1b\\link \x9b31m over\rwrite \x07 \u202egnp.exe ok\n\ttab 🙂 שלום é"
    shown = inert(evil)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    assert not any(0x7F <= ord(c) < 0xA0 for c in shown) and "\u202e" not in shown
    assert shown.endswith("ok\n\ttab 🙂 שלום é") and "overwrite" in shown
    pieces = "".join(inert(c) for c in evil)
    assert pieces == shown  # whatever the pieces
