"""Text from a model, a file or a person, made harmless for a terminal.

Escape sequences can write the clipboard, hide text behind links, clear the screen or rename the window. Control
characters other than newline and tab are shown as their visible pictures or dropped, so none reaches the terminal.
"""

from __future__ import annotations

# C0 without \t \n, DEL, C1; and the characters that reorder what follows without showing (CVE-2021-42574)
_HIDDEN = [*range(0x00, 0x09), *range(0x0B, 0x20), 0x7F, *range(0x80, 0xA0)]
_REORDERING = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_TABLE: dict[int, str | None] = {code: chr(0x2400 + code) if code < 0x20 else None for code in _HIDDEN}
_TABLE |= {0x0D: None, 0x7F: "\u2421"}
_TABLE |= dict.fromkeys(_REORDERING)


def inert(text: str) -> str:
    """The text with every control character made visible or dropped; works piece by piece, as it has no state.

    An escape sequence loses its ESC and stands there as the plain characters it was made of.
    """
    return text.translate(_TABLE)
