"""The cases `hgca eval recall` asks: made by its flags, or read from files."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgca_cli.commands.inputs import decode_text, read_text
from hgca_cli.errors import UsageError
from hgca_cli.measure.recall_cases import Case, Haystack, made_up_text, make_case, parse_cases

if TYPE_CHECKING:
    from hgca_cli.engine.engine import Engine

COUNT = 20
SENTENCE = 8  # tokens of a made-up sentence, at least


def read_cases(path: str) -> list[Case]:
    """The cases of a file of JSON lines, packed or not. Errors as of `read_text` and `parse_cases`."""
    file = Path(path).expanduser()
    if file.suffix != ".gz":
        return parse_cases(read_text(file, path), file.name)
    try:
        with gzip.open(file) as stream:
            text = decode_text(stream.read(), path)
    except (OSError, EOFError, zlib.error) as error:
        wrong = isinstance(error, (gzip.BadGzipFile, EOFError, zlib.error))
        hint = "Fetch it again, or name it without .gz if it is not packed." if wrong else "Check the path."
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}.", hint) from error
    return parse_cases(text, file.name)


def prompt_ids(engine: Engine, case: Case, *, raw: bool) -> list[int]:
    """A case's prompt as the model is asked: by its chat template, or as it stands if there is none or it is unwanted."""
    tokenizer = engine.loaded.tokenizer
    if isinstance(case.prompt, str):
        if raw or not tokenizer.has_template:
            return tokenizer.encode_prompt(case.prompt)
        return tokenizer.encode_chat([{"role": "user", "content": case.prompt}], add_generation_prompt=True)
    return tokenizer.encode_chat(case.prompt, add_generation_prompt=True)


def question_tokens(engine: Engine, case: Case, ids: list[int], *, raw: bool) -> int:
    """How many of the prompt's last ids ask: from the first that differs from a prompt that only tells."""
    assert isinstance(case.prompt, str) and case.question
    told = prompt_ids(engine, replace(case, prompt=case.prompt.removesuffix(case.question)), raw=raw)
    same = next((index for index, (one, other) in enumerate(zip(ids, told, strict=False)) if one != other), len(told))
    return len(ids) - same


def made_cases(
    engine: Engine, task: str, length: int, depths: list[float], text: str | None, given: Mapping[str, Any]
) -> list[Case]:
    """Cases of a task, spread over the depths, from the flags of the command. text: None makes one up."""
    tokenizer, seed = engine.loaded.tokenizer, given["seed"]
    haystack = Haystack([], tokenizer.encode, tokenizer.decode)
    if task in ("passkey", "needles"):
        ids = tokenizer.encode(text if text is not None else made_up_text(seed, length // SENTENCE + 1))
        if len(ids) < length and text is not None:
            raise UsageError(f"--text has {len(ids):,} tokens, fewer than --length {length:,}.", "Name a longer text.")
        haystack = replace(haystack, ids=ids)
    count = given["count"] or COUNT
    spread = depths or [(index + 0.5) / count for index in range(count)]
    return [
        make_case(task, haystack, length, spread[index % len(spread)], seed + index, needles=given["needles"])
        for index in range(count)
    ]
