"""Sizes and counts as people write them, and as we print them."""

from __future__ import annotations

import re

from hgca_cli.errors import UsageError

_COUNT = re.compile(r"(\d+)\s*([kKmM]?)|(\d+\.\d+)\s*([kKmM])")
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[kKmMgGtT](?:i?[bB])?)?")
_BINARY = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
FEW_BYTES = 1024  # nobody means fewer bytes of memory


def parse_count(text: str, name: str = "value") -> int:
    """A number of tokens: `8192`, `128k` (= 131,072), `7.5k` (= 7,680), `1M` (= 1,048,576).

    Raises UsageError, naming `name`, for anything else.
    """
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{name}: {text!r} is not a number of tokens.", "Write it like 8192, 32k or 1M.")
    if match[3]:
        return round(float(match[3]) * _BINARY[match[4].lower()])
    return int(match[1]) * _BINARY[match[2].lower()]


def parse_bytes(text: str, name: str = "value") -> int:
    """An amount of memory: `8GiB`, `512M`, `20GB` (all binary), or plain bytes, which are too few to be meant below a thousand.

    Raises UsageError, naming `name`, for anything else.
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{name}: {text!r} is not an amount of memory.", "Write it like 8GiB or 512MiB.")
    size = int(float(match[1]) * _BINARY[(match[2] or "")[:1].lower()])
    if not match[2] and 0 < size < FEW_BYTES:
        raise UsageError(f"{name}: {text} alone is bytes.", f"Write {text.strip()}GiB or {text.strip()}MiB.")
    return size


def parse_share(text: str, name: str = "value") -> float:
    """A share between 0 and 1: `0.05` or `5%`.

    Raises UsageError, naming `name` and the range, for anything else.
    """
    raw = text.strip()
    try:
        value = float(raw[:-1]) / 100 if raw.endswith("%") else float(raw)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:  # also refuses nan
        raise UsageError(f"{name}: {text!r} is not a share.", "Give a number from 0 to 1, or 0% to 100%.")
    return value


def counted(count: int, what: str) -> str:
    """`1, "row"` -> `1 row`; `1234` -> `1,234 rows`."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def format_bytes(count: float) -> str:
    """`1536` -> `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """`75` -> `1:15`; under ten seconds one decimal, `2.5 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([mhdw])")
_AGE_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_age(text: str, name: str = "value") -> float:
    """Seconds of an age: `90m`, `12h`, `30d`, `8w`. Raises UsageError, naming `name`, for anything else."""
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{name}: {text!r} is not an age.", "Write it like 12h, 30d or 8w.")
    return float(match[1]) * _AGE_SECONDS[match[2]]


def format_age(seconds: float) -> str:
    """`7300` -> `2 h`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
