"""Plain data become dataclasses, or are refused by field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from hgca_cli.plain import build


@dataclass(frozen=True)
class Inner:
    rate: float
    name: str = ""


@dataclass(frozen=True)
class Outer:
    inner: Inner
    several: tuple[Inner, ...] = ()
    by_count: dict[int, float] = field(default_factory=dict)
    mixed: dict[str, float | int | str | None] = field(default_factory=dict)
    maybe: float | None = None
    nested: Inner | None = None
    on: bool = False


def made(**changes: Any) -> Outer:
    built: Outer = build(Outer, {"inner": {"rate": 1}} | changes, ValueError)
    return built


def test_values_of_every_kind() -> None:
    several = [{"rate": 2.5, "name": "a"}]
    mixed = {"a": 1, "b": 1.5, "c": "x", "d": None}
    found = made(several=several, by_count={"4": 2}, mixed=mixed, maybe=3, nested={"rate": 0}, on=True)
    assert found == Outer(Inner(1.0), (Inner(2.5, "a"),), {4: 2.0}, mixed, 3.0, Inner(0.0), True)
    assert type(found.inner.rate) is type(found.maybe) is float and type(found.mixed["a"]) is int


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"inner": 1}, "inner is not a table"),
        ({"inner": {}}, "inner.rate is missing"),
        ({"inner": {"rate": 1, "more": 2}}, "no field inner.more"),
        ({"inner": {"rate": True}}, "inner.rate = True is no good"),
        ({"inner": {"rate": float("nan")}}, "inner.rate = nan is no good"),
        ({"inner": {"rate": float("inf")}}, "inner.rate = inf"),
        ({"inner": {"rate": -1}}, "inner.rate = -1"),
        ({"several": [{"rate": "x"}]}, r"several\[0\].rate = 'x'"),
        ({"several": {}}, "several = {} is no good"),
        ({"by_count": {"x": 1}}, "by_count: 'x' is not a number"),
        ({"mixed": {"a": []}}, r"mixed.a = \[\]"),
        ({"mixed": {"a": True}}, "mixed.a = True"),
        ({"mixed": {"a": -1}}, "mixed.a = -1"),
        ({"mixed": {"a": 1 << 62}}, "mixed.a = "),
        ({"maybe": "x"}, "maybe = 'x'"),
        ({"nested": {"rate": None}}, "nested.rate = None"),
        ({"on": 1}, "on = 1"),
    ],
)
def test_what_does_not_fit_is_told_by_field(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        made(**changes)


def test_whole_wants_every_field() -> None:
    with pytest.raises(ValueError, match=r"inner.name is missing"):
        build(Outer, {"inner": {"rate": 1}}, ValueError, whole=True)
    assert build(Inner, {"rate": 1, "name": "x"}, ValueError, whole=True) == Inner(1.0, "x")
