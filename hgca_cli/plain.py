"""Dataclasses from plain data, as TOML and JSON files hold them: every field is checked against its type."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

Refuse = Callable[[str], Exception]  # an error from what is wrong, in words

MOST = 1 << 62  # of a whole number


def build(kind: Any, value: Any, refuse: Refuse, *, whole: bool = False, at: str = "") -> Any:
    """A value of the type `kind`: a dataclass of such, tuple, dict, union, str, bool, or a number, finite and not negative.

    refuse  makes the error that is raised; it is given the field and what is wrong with it
    whole   fields with a default must be there, too
    at      the field, for errors
    """
    if is_dataclass(kind):
        return _built(kind, value, refuse, whole, at)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return _one_of(inner, value, refuse, whole, at)
    if origin is tuple and isinstance(value, list):
        return tuple(build(inner[0], one, refuse, whole=whole, at=f"{at}[{i}]") for i, one in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {
            _key(inner[0], key, refuse, at): build(inner[1], one, refuse, whole=whole, at=_path(at, key))
            for key, one in value.items()
        }
    if _is(kind, value):
        return float(value) if kind is float else value
    raise _no_good(value, refuse, at)


def _built(kind: Any, value: Any, refuse: Refuse, whole: bool, at: str) -> Any:
    if not isinstance(value, Mapping):
        raise refuse(f"{at or 'the file'} is not a table")
    hints = get_type_hints(kind)
    known = {one.name: one for one in fields(kind)}
    if unknown := sorted(set(value) - set(known)):
        raise refuse(f"no field {_path(at, unknown[0])}")
    made = {}
    for name, one in known.items():
        if name in value:
            made[name] = build(hints[name], value[name], refuse, whole=whole, at=_path(at, name))
        elif whole or (one.default is MISSING and one.default_factory is MISSING):
            raise refuse(f"{_path(at, name)} is missing")
    return kind(**made)


def _one_of(kinds: tuple[Any, ...], value: Any, refuse: Refuse, whole: bool, at: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    for one in kinds:
        if isinstance(value, Mapping) if is_dataclass(one) or get_origin(one) is dict else type(value) is one:
            return build(one, value, refuse, whole=whole, at=at)
    if float in kinds and type(value) is int:  # written without a point
        return build(float, value, refuse, at=at)
    raise _no_good(value, refuse, at)


def _is(kind: Any, value: Any) -> bool:
    if kind is float:
        return type(value) in (int, float) and 0 <= value < float("inf")
    if kind is int:
        return type(value) is int and 0 <= value < MOST
    return kind in (str, bool) and type(value) is kind


def _key(kind: type, key: str, refuse: Refuse, at: str) -> Any:
    if kind is int:
        if not key.isdigit():
            raise refuse(f"{at}: {key!r} is not a number")
        return int(key)
    return key


def _path(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _no_good(value: Any, refuse: Refuse, at: str) -> Exception:
    return refuse(f"{at} = {repr(value)[:60]} is no good")
