"""Profiles as TOML: one machine's rates, for people to read and edit, checked when they are read."""

from __future__ import annotations

import contextlib
import os
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from hgca_cli.errors import DoesNotFitError, UsageError
from hgca_cli.hardware.rates import HOW, Profile
from hgca_cli.plain import build

SCHEMA = 2
HEADER = """\
# Rates of one machine, as `hgca profile` measured or somebody estimated them.
# Units: *_gb_s is 1e9 bytes a second, *_tflop_s 1e12 operations a second, *_us microseconds, ns nanoseconds, memory bytes.

"""
ORIGINS = ("measured", "estimated")
AGAIN = "Measure anew: hgca profile."


def dumps(profile: Profile) -> str:
    """A profile as TOML text. Rates are rounded to four digits: no more of them repeats."""
    return HEADER + tomli_w.dumps({"schema": SCHEMA, **_plain(asdict(profile))})


def loads(text: str, where: str) -> Profile:
    """A profile from TOML text. Raises UsageError, naming `where` and the field, for what is not one."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is not TOML: {error}.", AGAIN) from error
    schema = table.pop("schema", None)
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        raise UsageError(
            f"{where} has schema {schema!r}, this version reads {SCHEMA}.", "Update hgca." if newer else AGAIN
        )

    def refuse(what: str) -> UsageError:
        return UsageError(f"{where}: {what}.", AGAIN)

    profile: Profile = build(Profile, table, refuse)
    for name, good in (
        ("origin", profile.origin in ORIGINS),
        ("host.usable", profile.host.usable >= 1),
        ("host.rows", all(one.how in HOW for one in profile.host.rows)),
        ("host.read_gb_s", bool(profile.host.read_gb_s)),
        ("host.linear_gb_s", bool(profile.host.linear_gb_s)),
        ("host.matmul_tflop_s", bool(profile.host.matmul_tflop_s)),
        ("a rate of 0", not _has_zero_rate(asdict(profile), rate=False)),
    ):
        if not good:
            raise refuse(f"{name} is no good")
    return profile


def read(path: Path) -> Profile:
    """The profile in a file. Raises UsageError."""
    try:
        return loads(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}.", AGAIN) from error


def write(profile: Profile, path: Path) -> None:
    """Put a profile into a file, whole or not at all. Raises DoesNotFitError or UsageError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".profile-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(dumps(profile))
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        kind = DoesNotFitError if error.errno in (28, 122) else UsageError  # ENOSPC, EDQUOT
        raise kind(f"cannot write {path}: {error.strerror}.", "Set HGCA_PROFILE_DIR to another directory.") from error


def _has_zero_rate(value: Any, *, rate: bool) -> bool:
    """Whether any rate in it is 0: something would take for ever."""
    if isinstance(value, Mapping):
        return any(
            _has_zero_rate(one, rate=rate or str(name).endswith(("gb_s", "tflop_s"))) for name, one in value.items()
        )
    if isinstance(value, (list, tuple)):
        return any(_has_zero_rate(one, rate=rate) for one in value)
    return rate and value == 0


def _plain(value: Any) -> Any:
    """What TOML holds: no None, text as keys, floats of four digits."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items() if one is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
