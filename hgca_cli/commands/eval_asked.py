"""What `hgca eval recall` was asked, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from hgca_cli.commands.eval_texts import check_window, number_of
from hgca_cli.commands.flag_values import tokens_of
from hgca_cli.errors import UsageError
from hgca_cli.measure.recall_cases import TASKS, Case
from hgca_cli.units import parse_share

MOST_CASES = 10_000
MOST_TOKENS = 4096  # of an answer
IN_TEXT = ("passkey", "needles")  # what is hidden in running text


def lengths_and_depths(context: typer.Context, given: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """Of the cases to be made. Raises UsageError naming flag and remedy."""
    for word in given["task"] or ():
        if word not in TASKS:
            raise UsageError(f"--task: no such choice {word!r}.", f"Choose from {', '.join(TASKS)}.")
    if given["appended"] and given["cases"]:
        raise UsageError("--appended: where the prompts of --cases ask is not known.", "Drop one of them.")
    if not 1 <= (tokens := tokens_of(given["max_tokens"], "--max-tokens", endless=False)) <= MOST_TOKENS:
        raise UsageError(f"--max-tokens: {tokens} is out of range.", f"Give 1 to {MOST_TOKENS:,}.")
    for flag, least, most in (
        ("count", 1, MOST_CASES),
        ("needles", 1, 100),
        ("seed", 0, 2**31),
    ):
        value = given[flag]
        if value is not None and not least <= value <= most:
            name = flag.replace("_", "-")
            raise UsageError(f"--{name}: {value} is out of range.", f"Give {least} to {most:,}.")
    tasks = given["task"] or ([] if given["cases"] else ["passkey"])
    _refuse_idle(context, given, tasks)
    number_of(given["window"], "--window")
    lengths = [number_of(one, "--length", least=64) for one in given["length"] or ["4k"]]
    if tasks:
        check_window(given, min(lengths), f"--length {min(lengths):,}", "Lower --window, or raise --length.")
    return lengths, [parse_share(one, "--depth") for one in given["depth"] or ()]


def check_candidates(cases: Sequence[Case], name: str, *, score: bool) -> None:
    """Raises UsageError if the right answers of a file are to be found among others, and it has none."""
    if score and not any(case.others for case in cases):
        raise UsageError(
            f"--score: {name} has no wrong answers beside the right ones.", 'Give its lines "others", a list of them.'
        )


def _refuse_idle(context: typer.Context, given: Mapping[str, Any], tasks: Sequence[str]) -> None:
    """A flag that would change nothing is a mistake."""
    for flag in ("length", "depth"):
        if given[flag] and not tasks:
            raise UsageError(
                f"--{flag} says how cases are made, and those of --cases are.", "Drop it, or add a --task."
            )
    if given["text"] and not set(IN_TEXT) & set(tasks):
        raise UsageError("--text: nothing is hidden in it.", f"Drop it, or add --task {' or '.join(IN_TEXT)}.")
    source = getattr(context.get_parameter_source("needles"), "name", "")
    if source == "COMMANDLINE" and "needles" not in tasks:
        raise UsageError("--needles: no needles are hidden.", "Drop it, or add --task needles.")
