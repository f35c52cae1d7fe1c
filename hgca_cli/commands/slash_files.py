"""Slash commands that read files before the next question, or write what was said."""

from __future__ import annotations

import glob
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from hgca_cli.commands.inputs import Document, meant_by, read_document
from hgca_cli.engine.transcript import exported
from hgca_cli.errors import ModelError, UsageError
from hgca_cli.ui.clipboard import pasted, send_to_clipboard
from hgca_cli.units import counted

if TYPE_CHECKING:
    from hgca_cli.commands.talk import Talk

KINDS = {".md": "md", ".json": "openai"}
MOST_FILES = 1000


def attach_files(talk: Talk, rest: str) -> None:
    """Read text files before the next question: all of them, or none. Errors as of read_document."""
    paths = [rest] if _is_file(rest) else _words(rest, "/file", "notes.txt")  # blanks and quotes may be part of a name
    if "-" in paths:
        raise UsageError("/file: - is what you are typing into.", "Name a file.")
    for path in paths:
        if files := meant_by(path):
            remedy = (
                f"/glob {shlex.quote(path)} reads what matches."
                if "," not in path
                else f"Like /file {shlex.join(files)}"
            )
            raise ModelError(f"{path}: no such file.", remedy)
    for document in [read_document(path) for path in paths]:
        talk.attach(document)


def attach_matching(talk: Talk, rest: str) -> None:
    """Read all text files that match patterns, in order of their names. Raises UsageError if none does, or too many do."""
    patterns = _words(rest, "/glob", "'notes/*.txt'")
    found = {path for one in patterns for path in glob.iglob(str(Path(one).expanduser()), recursive=True)}  # noqa: PTH207
    paths = sorted(path for path in found if Path(path).is_file())
    if not paths:
        raise UsageError(f"/glob: no file matches {rest}.", "** stands for directories, too: /glob 'src/**/*.py'")
    if len(paths) > MOST_FILES:
        raise UsageError(f"/glob: {len(paths):,} files match, more than {MOST_FILES:,}.", "Narrow the pattern.")
    for document in [_named(read_document(path), path) for path in paths]:
        talk.attach(document)


def attach_clipboard(talk: Talk, rest: str) -> None:
    """Read the clipboard's text before the next question. Errors as of pasted."""
    text = pasted()
    if not text.strip():
        raise UsageError("/paste: the clipboard holds no text.", "Copy some first.")
    talk.attach(Document("clipboard", text))


def detach_all(talk: Talk, rest: str) -> None:
    """Take away what is attached and was not asked about; what was said stays."""
    names = talk.detach()
    talk.sink.tell(f"no longer attached: {', '.join(names)}" if names else "nothing is attached")


def copy_answer(talk: Talk, rest: str) -> None:
    """Send the last answer to the terminal's clipboard. Raises UsageError if there is none, or no terminal."""
    said = [message["content"] for message in talk.conversation.messages if message["role"] == "assistant"]
    if not said:
        raise UsageError("/copy: there is no answer yet.", "Ask something first.")
    send_to_clipboard(said[-1])
    talk.sink.tell(f"{len(said[-1]):,} characters sent to the terminal's clipboard (if it takes them: OSC 52)")


def export_chat(talk: Talk, rest: str) -> None:
    """Write the conversation to a new file. Raises UsageError for an ending that says no format, or a file that is there."""
    words = _words(rest, "/export", "talk.md")
    file = Path(words[0]).expanduser()
    if len(words) > 1 or file.suffix not in KINDS:
        raise UsageError(f"/export: {rest} ends neither in .md nor in .json.", "Like /export talk.md")
    about = {"name": talk.engine.loaded.name, "model": talk.engine.loaded.name}
    text = exported(talk.conversation.messages, KINDS[file.suffix], about)
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text + "\n")
    except FileExistsError as error:
        raise UsageError(f"/export: {file} is there already.", "Choose another name.") from error
    except OSError as error:
        raise ModelError(f"/export: cannot write {file}: {error.strerror}.", "Choose another place.") from error
    talk.sink.tell(f"{counted(len(talk.conversation.messages), 'message')} written to {file}")


def _is_file(path: str) -> bool:
    try:
        return bool(path) and Path(path).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def _words(rest: str, command: str, example: str) -> list[str]:
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise UsageError(
            f"{command}: {error}.", f"Quote what has blanks: {command} 'my {example.strip(chr(39))}'"
        ) from error
    if not words:
        raise UsageError(f"{command} needs a path.", f"Like {command} {example}")
    return words


def _named(document: Document, path: str) -> Document:
    """A document called by its path: several files of a pattern may have the same name."""
    name = " ".join(path.encode("utf-8", "replace").decode().split())
    return Document(name, document.text)
