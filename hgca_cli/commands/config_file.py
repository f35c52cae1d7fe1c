"""What a person has set once and for all: config.toml, and hgca.toml of a directory.

    --config FILE, else ./hgca.toml    what counts here
    HGCA_CONFIG, else config.toml in the user's config directory

The first wins, key by key. Flags and variables win over both.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from hgca_cli.errors import ModelError, UsageError

LOCAL = "hgca.toml"
SAMPLING = (
    "max_tokens", "temp", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed", "stop",
    "json_schema", "json_schema_file", "reasoning_budget",
)  # fmt: skip
COUNTS = ("max_tokens", "reasoning_budget")  # may be written like 4k
NEGATED = {"save": "no_save", "save_kv": "no_save_kv", "cache": "no_cache", "stream": "no_stream"}
SESSIONS = ("save", "save_kv", "cache", "kv_disk_limit")
UI = ("stats", "stream", "markdown", "hide_thinking", "plain", "quiet", "verbose", "color", "dashboard")
ONCE = (
    "words",
    "prompt",
    "file",
    "session",
    "continue_",
    "reread",
    "plan",
    "json",
    "debug",
    "context",
)  # not for all times
NOT_HERE = ("trust_remote_code",)  # a directory may be somebody else's
OF_A_MODEL = "models"


@dataclass(frozen=True)
class Config:
    """Options by name, and aliases, of all files.

    origins  "FILE: [section] key" of each option
    models   options of single models, with their origins, by the name a model is asked for
    files    those that were read, the one that wins first
    """

    options: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    models: dict[str, dict[str, tuple[Any, str]]] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    def of_model(self, name: str) -> dict[str, tuple[Any, str]]:
        """Options of a model by any of its names, with their origins."""
        names = [self.aliases.get(name, name), name]
        return {key: value for one in names for key, value in self.models.get(one, {}).items()}


def user_file() -> Path:
    """The user's file, be it there or not."""
    chosen = os.environ.get("HGCA_CONFIG")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_config_dir("hgca")) / "config.toml"


def read_config(given: Path | None, known: Iterable[str]) -> Config:
    """Everything that is set. given: of --config; known: the options of chat.

    Raises UsageError naming file and key, ModelError for a file that was named and is not there.
    """
    options = set(known)
    found: list[tuple[Path, dict[str, Any], bool]] = []
    for path, named, here in (
        (given or Path(LOCAL), given is not None, given is None),
        (user_file(), bool(os.environ.get("HGCA_CONFIG")), False),
    ):
        if (table := _read(path, named)) is not None:
            found.append((path, table, here))
    whole = Config(files=tuple(path for path, _, _ in found))
    for path, table, here in reversed(found):
        _Reader(path, options, here).add(table, whole)
    return whole


def config_of(table: Mapping[str, Any], path: Path, known: Iterable[str]) -> Config:
    """What one file alone says. Raises UsageError, naming file and key, for a table that is no config."""
    config = Config()
    _Reader(path, set(known), here=False).add(table, config)
    return config


def _read(path: Path, named: bool) -> dict[str, Any] | None:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if named:
            raise ModelError(f"{path}: no such file.", "Check --config and HGCA_CONFIG.") from error
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        hint = "hgca config edit opens it." if path == user_file() else "Mend it, or move it away."
        raise UsageError(f"{path} is not TOML: {error}.", hint) from error
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        if not named and not path.is_file():
            return None
        raise ModelError(f"{path}: {why}.", "Check --config and HGCA_CONFIG.") from error


class _Reader:
    """One file. known: options of chat; here: it was found, not named."""

    def __init__(self, path: Path, known: set[str], here: bool) -> None:
        self._path, self._here = path, here
        kept = known - set(ONCE) - set(NEGATED.values())
        looks = {name for name in UI if name in known or NEGATED.get(name) in known}
        self._sections = {
            "defaults": kept - set(SAMPLING) - set(SESSIONS) - looks,
            "sampling": set(SAMPLING) & kept,
            "sessions": set(SESSIONS),
            "ui": looks,
        }

    def add(self, table: Mapping[str, Any], to: Config) -> None:
        """Put what the file says over what there is."""
        for name, value in table.items():
            if name == "model":
                self._set(to, "", "model", value)
            elif name in (*self._sections, "aliases", OF_A_MODEL):
                if not isinstance(value, dict):
                    raise self._refused(name, f"{value!r} is not a table", f"Write [{name}].")
                self._section(to, name, value)
            else:
                raise self._unknown(name, "", ["model", *self._sections, "aliases", OF_A_MODEL])

    def _section(self, to: Config, name: str, table: dict[str, Any]) -> None:
        for key, value in table.items():
            if name == "aliases":
                if not isinstance(value, str) or not value:
                    raise self._refused(f"[aliases] {key}", f"{value!r} is not a text", "Name a model.")
                to.aliases[key] = value
            elif name == OF_A_MODEL:
                if not isinstance(value, dict):
                    raise self._refused(f'[models."{key}"]', f"{value!r} is not a table", "")
                options = {one for section in ("defaults", "sampling") for one in self._sections[section]}
                for option, what in value.items():
                    place = f'[models."{key}"] {option}'
                    wanted = self._option(option, options - {"model"}, place)
                    to.models.setdefault(key, {})[wanted] = self._value(wanted, what, place), f"{self._path}: {place}"
            else:
                self._set(to, f"[{name}] ", self._option(key, self._sections[name], f"[{name}] {key}"), value)

    def _set(self, to: Config, section: str, name: str, value: Any) -> None:
        place = f"{section}{name}"
        value = self._value(name, value, place)
        option = NEGATED.get(name, name)
        if option != name:
            if not isinstance(value, bool):
                raise self._refused(place, f"{value!r} is neither true nor false", "")
            value = not value
        to.options[option] = value
        to.origins[option] = f"{self._path}: {place}"

    def _option(self, key: str, options: set[str], place: str) -> str:
        name = key.replace("-", "_")
        if name not in options:
            raise self._unknown(place, key, sorted(options))
        if self._here and name in NOT_HERE:
            raise self._refused(place, "a file that lies in the directory may not decide that", "Give the flag.")
        return name

    def _value(self, name: str, value: Any, place: str) -> Any:
        if name == "model" and not isinstance(value, str):
            raise self._refused(place, f"{value!r} is not a text", "Name a model.")
        if name == "stop" and isinstance(value, str):
            return [value]
        if (name in COUNTS or name not in ("stop", *SAMPLING)) and type(value) in (int, float):
            return str(value)  # as a flag is written
        good = isinstance(value, (str, bool, int, float)) and name != "stop"
        if not good and not (name == "stop" and isinstance(value, list) and all(isinstance(one, str) for one in value)):
            raise self._refused(place, f"{value!r} is no value for it", "")
        return value

    def _unknown(self, place: str, key: str, names: list[str]) -> UsageError:
        near = difflib.get_close_matches((key or place).replace("-", "_"), names, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(names)}."
        return UsageError(f"{self._path}: there is no {place}.", hint)

    def _refused(self, place: str, why: str, hint: str) -> UsageError:
        return UsageError(f"{self._path}: {place}: {why}.", hint)
