"""The text of a conversation as a file: a message per line, appended and never changed, readable whatever happens to the rest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hgca_cli.engine.session_files import DamagedError, open_regular, read_file, writing
from hgca_cli.engine.session_record import MESSAGES, Stored, crc_of
from hgca_cli.engine.turns import Messages, for_template

ROLES = ("system", "user", "assistant")
MOST_BYTES = 4 << 30


def lines_of(messages: Messages) -> bytes:
    """Messages as they are written."""
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


def read_messages(folder: Path, stored: Stored) -> Messages:
    """The messages of a record, and whole turns that were written after it. Raises DamagedError."""
    path = folder / stored.file
    try:
        content = read_file(path, MOST_BYTES)
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing.") from error
    if crc_of(content[: stored.bytes]) != stored.crc or len(content) < stored.bytes:
        raise DamagedError(f"{path} is damaged: its checksum is wrong.")
    messages = recovered(content[: stored.bytes])
    later = recovered(content[stored.bytes :])
    while later and later[-1]["role"] != "assistant":  # a torn turn
        del later[-1]
    return messages + later


def recovered(content: bytes) -> Messages:
    """Every line that is a message; what is damaged is left out."""
    messages = []
    for line in content.split(b"\n"):
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), str):
            messages.append({"role": message["role"], "content": message["content"]} | _more(message))
    return messages


def _more(message: dict[str, Any]) -> dict[str, Any]:
    """What else a message may hold: what the model thought, or how long the documents before a question are."""
    found: dict[str, Any] = {}
    documents, left = message.get("documents"), len(message["content"])
    if message["role"] == "user" and isinstance(documents, list) and documents:
        good = True
        for one in documents:
            good &= isinstance(one, list) and [type(part) for part in one] == [str, int] and 0 < one[1] <= left
            left -= one[1] if good else 0
        found |= {"documents": documents} if good else {}
    if message["role"] == "assistant" and isinstance(message.get("reasoning_content"), str):
        found["reasoning_content"] = message["reasoning_content"]
    return found


def rescue(folder: Path) -> Messages:
    """What can be read of a session's text, whatever else is damaged."""
    best: Messages = []
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        if MESSAGES.fullmatch(path.name):
            try:
                best = recovered(read_file(path, MOST_BYTES)) or best
            except (DamagedError, OSError):
                continue
    return best


def append(folder: Path, stored: Stored, messages: Messages) -> Stored:
    """Add messages behind what a record knows; what was torn off behind that goes. Errors as of `writing`."""
    new = lines_of(messages)
    path = folder / stored.file
    with writing(path), open_regular(path), path.open("r+b") as file:
        file.truncate(stored.bytes)
        file.seek(0)
        crc = crc_of(file.read(stored.bytes) + new)
        file.write(new)
        file.flush()
        os.fsync(file.fileno())
    return Stored(stored.file, stored.bytes + len(new), crc)


def exported(messages: Messages, kind: str, about: dict[str, Any]) -> str:
    """A transcript as Markdown (`md`), as one object with what is known of the session (`json`), or as the messages of the
    OpenAI API (`openai`).
    """
    if kind == "openai":
        plain = for_template(messages)
        return json.dumps({"model": about.get("model"), "messages": plain}, indent=2, ensure_ascii=False)
    if kind == "json":
        return json.dumps({**about, "messages": messages}, indent=2, ensure_ascii=False)
    parts = [f"# {about.get('name', 'conversation')}"]
    for message in messages:
        thought = message.get("reasoning_content", "").strip()
        quoted = "".join(f"> {line}".rstrip() + "\n" for line in thought.splitlines())
        parts.append(f"## {message['role']}\n\n{quoted and quoted + chr(10)}{message['content'].strip()}")
    return "\n\n".join(parts)
