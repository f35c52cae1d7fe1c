"""From the flags of `hgca bench` to the cases that are measured. Checked before anything is loaded."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from hgca_cli.commands.flag_values import MOST_ROWS, count_of
from hgca_cli.commands.flags import exclude
from hgca_cli.errors import UsageError
from hgca_cli.measure.case import DTYPES, PATTERNS, Case

MOST_TIMES = 10_000
MOST_TOKENS = 64
MOST_HEADS = 1024
MOST_DIM = 1024
SHAPE = re.compile(r"(\d{1,4})/(\d{1,4})/(\d{1,4})")


def cases_of(given: Mapping[str, Any]) -> list[Case]:
    """Every combination the flags name. Raises UsageError naming flag and remedy."""
    exclude(given, "quiet", "verbose")
    if not 1 <= given["times"] <= MOST_TIMES:
        raise UsageError(f"--times: {given['times']} is out of range.", f"Give 1 to {MOST_TIMES:,}.")
    for flag, names in (("dtype", DTYPES), ("pattern", PATTERNS)):
        for word in given[flag]:
            if word not in names:
                raise UsageError(f"--{flag}: no such choice {word!r}.", f"Choose from {', '.join(names)}.")
    for count in given["tokens"]:
        if not 1 <= count <= MOST_TOKENS:
            raise UsageError(f"--tokens: {count} is out of range.", f"Give 1 to {MOST_TOKENS}.")
    shapes = [_shape(text) for text in given["shape"]]
    rows = [_rows(text) for text in given["rows"]]
    return [
        Case(*shape, count, dtype, pattern, tokens)
        for shape, dtype, pattern, count, tokens in itertools.product(
            shapes, given["dtype"], given["pattern"], rows, given["tokens"]
        )
    ]


def _shape(text: str) -> tuple[int, int, int]:
    match = SHAPE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--shape: {text!r} is not HEADS/KV_HEADS/DIM.", "Write it like 32/8/128.")
    heads, kv_heads, dim = (int(part) for part in match.groups())
    if not (1 <= kv_heads <= heads <= MOST_HEADS and 1 <= dim <= MOST_DIM) or heads % kv_heads:
        raise UsageError(
            f"--shape: {text} is no shape of attention.",
            f"HEADS is a multiple of KV_HEADS, at most {MOST_HEADS}, and DIM 1 to {MOST_DIM}.",
        )
    return heads, kv_heads, dim


def _rows(text: str) -> int:
    count = count_of(text, "--rows", auto="")
    if count is None:
        raise UsageError(f"--rows: {text!r} is not a whole number.", f"Give 1 to {MOST_ROWS:,}.")
    return count
