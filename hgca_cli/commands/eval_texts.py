"""Texts an evaluation reads, as tokens, and lengths a person gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hgca_cli.commands.flag_values import count_of
from hgca_cli.commands.inputs import Document, read_document
from hgca_cli.config import CacheSettings
from hgca_cli.errors import UsageError

if TYPE_CHECKING:
    from hgca_cli.engine.engine import Engine


def read_texts(paths: Sequence[str] | None) -> list[Document]:
    """The files, each by a name of its own. Raises UsageError if there is none, other errors as of `read_document`."""
    if not paths:
        raise UsageError("there is no text to measure on.", "Name one: --text book.txt")
    documents = [read_document(path) for path in dict.fromkeys(paths)]
    names = one_name_each([one.name for one in documents])
    return [Document(name, one.text) for name, one in zip(names, documents, strict=True)]


def one_name_each(names: Sequence[str]) -> list[str]:
    """The names, and where one comes again: with its number."""
    return [f"{one} #{before + 1}" if (before := names[:index].count(one)) else one for index, one in enumerate(names)]


def ids_of(engine: Engine, document: Document, skip: int, count: int, flag: str) -> list[int]:
    """The text's tokens skip .. skip + count - 1, what the model puts before a text first. Raises UsageError.

    flag  that says how many, to be lowered where there are fewer
    """
    tokenizer = engine.loaded.tokenizer
    ids = tokenizer.encode(document.text)
    if len(ids) < skip + count:
        raise UsageError(
            f"{document.name} has {len(ids):,} tokens, and {skip + count:,} are needed.",
            f"Name a longer text, or lower {'--skip or ' if skip else ''}{flag}.",
        )
    ids = ids[skip : skip + count]
    first = tokenizer.encode_prompt("")[:1]
    return [*first, *ids[len(first) :]] if first == [tokenizer.hf.bos_token_id] else ids


def check_window(given: Mapping[str, Any], tokens: int, what: str, hint: str) -> None:
    """Raises UsageError if window and sinks hold all of so many tokens, which the message calls `what`."""
    window = number_of(given["window"], "--window")
    sinks = CacheSettings.sinks if given["sinks"] is None else given["sinks"]
    if window + sinks >= tokens:
        more = f" and {sinks:,} sinks hold" if sinks else " holds"
        raise UsageError(f"--window {window:,}{more} all of {what}: nothing is in the store.", hint)


def number_of(text: str, flag: str, *, least: int = 1) -> int:
    """A count that must be given. Raises UsageError naming the flag."""
    if text.strip() == "0" and least == 0:
        return 0
    value = count_of(text, flag, auto="")
    if value is None:
        raise UsageError(f"{flag}: auto does not say how many.", "Give a number, like 256 or 4k.")
    if value < least:
        raise UsageError(f"{flag}: {text} is too few.", f"Give {least} or more.")
    return value
