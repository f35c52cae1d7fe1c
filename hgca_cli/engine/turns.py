"""A conversation as messages: what a question is made of, and which turns go when the context is full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, Any]]
Document = tuple[str, str]  # name and text


@dataclass(frozen=True)
class Trimmed:
    """Messages that were shortened, and the questions of the turns that went, the oldest first."""

    messages: Messages
    gone: list[str]


def question(text: str, documents: list[Document]) -> dict[str, Any]:
    """A person's message: each document as its name, a blank line, its text and a blank line; then what was asked.

    It remembers under "documents" how many characters each of them takes, by name.
    """
    parts = [(name, f"{name}:\n\n{body.strip()}\n\n") for name, body in documents]
    message: dict[str, Any] = {"role": "user", "content": "".join(part for _, part in parts) + text}
    if parts:
        message["documents"] = [[name, len(part)] for name, part in parts]
    return message


def taken_apart(message: dict[str, Any]) -> tuple[str, list[Document]]:
    """What was asked in a message, and the documents before it."""
    content, at = message["content"], 0
    documents = []
    for name, size in message.get("documents", ()):
        documents.append((name, content[at : at + size].removeprefix(f"{name}:\n\n").removesuffix("\n\n")))
        at += size
    return content[at:], documents


def answer(text: str, thought: str = "") -> dict[str, Any]:
    """The model's message; what it thought before stands apart."""
    message = {"role": "assistant", "content": text}
    return message | {"reasoning_content": thought} if thought else message


def for_template(messages: Messages) -> Messages:
    """Messages as chat templates know them."""
    return [{key: value for key, value in one.items() if key != "documents"} for one in messages]


def trim_oldest(messages: Messages, sizes: list[int], over: int) -> Trimmed:
    """Messages without the oldest turns, so many that `over` tokens go, or all but the newest question.

    sizes  tokens of what each message says without its documents

    The system message stays, and so do documents: they move to the next question that is left.
    """
    first = 1 if messages and messages[0]["role"] == "system" else 0
    kept: list[Document] = []
    gone: list[str] = []
    at = first
    while over > 0 and at + 2 < len(messages):
        text, documents = taken_apart(messages[at])
        kept += documents
        gone.append(text)
        over -= sizes[at] + sizes[at + 1]
        at += 2
    text, documents = taken_apart(messages[at])
    return Trimmed([*messages[:first], question(text, kept + documents), *messages[at + 1 :]], gone)
