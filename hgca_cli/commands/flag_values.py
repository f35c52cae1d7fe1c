"""From the words of one flag to its value. What cannot be one is refused with a UsageError that names the flag and what to write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hgca_cli.config import GUESSES, MOST_GUESSES, NO_LIMIT, QUANTS, SELECTORS
from hgca_cli.errors import UsageError
from hgca_cli.units import parse_bytes, parse_count, parse_share

MOST_ROWS = 1 << 30
SPELLINGS = {
    "none": ("none", "off", "no"),
    "file": ("file", "own", "asis"),
    "q8": ("q8", "q80", "int8", "8bit", "8", "w8"),
    "q4": ("q4", "q40", "q41", "int4", "4bit", "4", "w4"),
}  # of --quant, without dashes
NUMBERS = {
    "fp32": ("fp32", "f32", "float32", "float"),
    "bf16": ("bf16", "bfloat16"),
    "fp16": ("fp16", "f16", "float16", "half"),
    "int8": ("int8", "i8", "q8", "q80"),
}  # of --dtype and --kv-dtype, without dashes


def count_of(text: str | None, flag: str, most: int = MOST_ROWS, *, auto: str = ", or auto") -> int | None:
    """Tokens or rows a flag names, None for auto. Raises UsageError naming flag and range; auto: "" if that is no answer."""
    if text is None or text == "auto":
        return None
    try:
        value = parse_count(text, flag)
    except UsageError as error:
        raise UsageError(
            f"{flag}: {text!r} is not a whole number.", f"Give 1 to {most:,}, like 8192 or 32k{auto}."
        ) from error
    if not 1 <= value <= most:
        raise UsageError(f"{flag}: {text} is out of range.", f"Give 1 to {most:,}.")
    return value


def tokens_of(text: str | int, flag: str, *, endless: bool = True) -> int:
    """Most tokens of an answer or a thought; -1: no limit. Raises UsageError naming the flag and what to write.

    endless  there may be none
    """
    if (plain := str(text).strip()) == "-1":
        if endless:
            return -1
        raise UsageError(f"{flag}: without a limit nobody knows how much memory rows take.", "Give one, like 4k.")
    try:
        return min(NO_LIMIT, parse_count(plain, flag))
    except UsageError as error:
        no_limit = ", or -1 for no limit" if endless else ""
        raise UsageError(
            f"{flag}: {plain!r} is not a number of tokens.", f"Give 0 or more, like 200 or 4k{no_limit}."
        ) from error


def bytes_of(text: str | None, flag: str) -> int | None:
    """Bytes a flag names, None if it was not given. Raises UsageError naming the flag."""
    return None if text is None else parse_bytes(text, flag)


def margin_of(text: str | None) -> int | None:
    """Bytes --vram-margin names: a number alone is MiB. Raises UsageError."""
    if text is None or not text.strip().isdecimal():
        return bytes_of(text, "--vram-margin")
    return int(text) << 20


def choice_of(text: str, flag: str, choices: tuple[str, ...]) -> str | None:
    """One of the choices, None for auto. Raises UsageError naming them."""
    if text == "auto":
        return None
    if text not in choices:
        raise UsageError(f"{flag}: no such choice {text!r}.", f"Choose from auto, {', '.join(choices)}.")
    return text


def dtype_of(text: str, flag: str, choices: tuple[str, ...]) -> str | None:
    """As `choice_of`, by any of the names a dtype has elsewhere (bfloat16, half, q8_0)."""
    known = _spelled(text, NUMBERS)
    return choice_of(known if known in choices else text, flag, choices)


def _spelled(text: str, names: Mapping[str, tuple[str, ...]]) -> str | None:
    """What is called so, in any case of letters and without dashes; None: nothing."""
    plain = text.lower().replace("-", "").replace("_", "")
    return next((one for one, spellings in names.items() if plain in spellings), None)


def quant_of(text: str) -> str | None:
    """One of QUANTS, by any of the names it has elsewhere (int8, q8_0, 8bit); None for auto. Raises UsageError naming them."""
    if text.lower() == "auto":
        return None
    if (quant := _spelled(text, SPELLINGS)) is not None:
        return quant
    raise UsageError(f"--quant: no such choice {text!r}.", f"Choose from auto, {', '.join(QUANTS)}.")


def one_of(text: str, flag: str, choices: tuple[str, ...]) -> str:
    """One of the choices. Raises UsageError naming them."""
    if text not in choices:
        raise UsageError(f"{flag}: no such choice {text!r}.", f"Choose from {', '.join(choices)}.")
    return text


def balance_of(text: str) -> bool:
    """Whether settings may follow what is measured. Raises UsageError naming the choices."""
    return choice_of(text, "--balance", ("off",)) is None


def guesses_of(text: str) -> int | None:
    """Most tokens that --prompt-lookup guesses at once, 0 for off; None for auto. Raises UsageError saying what may be written."""
    if text in ("auto", "on"):
        return None
    if text in ("off", "0"):
        return 0
    if not text.isdecimal() or int(text) > MOST_GUESSES:
        raise UsageError(
            f"--prompt-lookup: {text!r} is no number of tokens.", f"Give 1 to {MOST_GUESSES}, auto or off."
        )
    return int(text)


def guesses_on(guesses: int | None, device: str) -> int:
    """The same for a device. Raises UsageError where that many were asked for and none can be checked."""
    if device == "cpu":
        return GUESSES if guesses is None else guesses
    if guesses:
        raise UsageError(
            f"--prompt-lookup {guesses}: {device} computes one token of an answer at a time.",
            "Drop it, or give --device cpu.",
        )
    return 0


def dashboard_of(given: Mapping[str, Any], without: tuple[str, ...] = ("json", "quiet")) -> str:
    """What --dashboard asks for. Raises UsageError naming the choices, or the flag that shows nothing of it, of `without`."""
    mode = choice_of(given["dashboard"], "--dashboard", ("line", "full", "off"))
    for name in without:
        if mode == "full" and given[name]:
            raise UsageError(f"--dashboard full and --{name} exclude each other.", "Drop one of them.")
    return mode or "line"


def policy_of(select: str, exact: bool, budget: str, quality: str) -> tuple[str | None, float | None, float | None]:
    """Policy (None: the planner's), budget and quality from --select, --exact, --budget and --quality.

    Raises UsageError if they contradict each other.
    """
    share = None if budget == "auto" else parse_share(budget, "--budget")
    mass = None if quality == "auto" else parse_share(quality, "--quality")
    named = choice_of(select, "--select", SELECTORS)
    if exact:
        if named not in (None, "exact"):
            raise UsageError(f"--exact and --select {named} exclude each other.", "Drop one of them.")
        named = "exact"
    if mass == 0.0:
        raise UsageError("--quality: 0 keeps nothing.", "Give a share above 0, or --select window.")
    for given, flag, text in ((share, "--budget", budget), (mass, "--quality", quality)):
        if given == 1.0 and named in (None, "exact"):
            return "exact", None, None
        if given is not None and named == "exact":
            name = "--exact" if exact else "--select exact"
            raise UsageError(f"{flag} {text} and {name} exclude each other.", "Drop one of them.")
    if share == 0.0 and named in (None, "window"):
        return "window", None, None
    if named == "window" and (share is not None or mass is not None):
        flag, text = ("--budget", budget) if share is not None else ("--quality", quality)
        raise UsageError(f"{flag} {text} and --select window exclude each other.", "Drop one of them.")
    if share is not None and mass is not None:
        raise UsageError("--budget and --quality exclude each other.", "Drop one: a fixed share, or the mass to keep.")
    if mass is not None and named == "moving-average":
        raise UsageError("--quality needs a policy that follows the query.", "Choose --select scan, or give --budget.")
    return named, share, mass
