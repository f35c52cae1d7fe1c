"""The clipboard: read through the desktop's own tool, written through the terminal."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys

from hgca_cli.errors import UsageError
from hgca_cli.ui.style import is_terminal

READERS = (
    ("pbpaste",),
    ("wl-paste", "--no-newline"),
    ("xclip", "-selection", "clipboard", "-out"),
    ("xsel", "--clipboard", "--output"),
)
MOST_BYTES = 74_994  # of what xterm takes, and others with it
SECONDS = 5.0


def pasted() -> str:
    """The clipboard's text. Raises UsageError where nothing can read it."""
    reader = next((words for words in READERS if shutil.which(words[0])), None)
    if reader is None:
        names = ", ".join(words[0] for words in READERS)
        raise UsageError(
            f"no program reads the clipboard here ({names}).", "Paste into the line instead: it is kept whole."
        )
    try:
        done = subprocess.run(reader, capture_output=True, check=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
        return done.stdout.decode("utf-8")
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(f"{reader[0]} gave no clipboard.", "Paste into the line instead: it is kept whole.") from error
    except UnicodeDecodeError as error:
        raise UsageError("the clipboard holds no text.", "Copy some first.") from error


def send_to_clipboard(text: str) -> None:
    """Ask the terminal to take a text (OSC 52, in base64: nothing in it can drive the terminal). Whether it does, nobody tells.

    Raises UsageError without a terminal, or for more than terminals take.
    """
    content = text.encode("utf-8", "replace")
    if len(content) > MOST_BYTES:
        raise UsageError(f"the answer has {len(content):,} bytes, a clipboard takes {MOST_BYTES:,}.", "Use /export.")
    if not is_terminal(sys.stderr):
        raise UsageError("there is no terminal with a clipboard.", "Use /export.")
    sys.stderr.write(f"\x1b]52;c;{base64.b64encode(content).decode()}\x07")
    sys.stderr.flush()
