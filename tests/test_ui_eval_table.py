"""Tables of evaluations: on one line as long as there is room, on two where there is not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hgca_cli.ui.eval_table import (
    DRIFT,
    DRIFT_LEGEND,
    FIDELITY,
    FIDELITY_LEGEND,
    RECALL,
    RECALL_LEGEND,
    Column,
    EvalTable,
    fitted,
)

WORST: dict[str, Any] = {
    "policy": "two-level:quality=0.95",
    "kl": 9.87654,
    "kl_error": 0.12345,
    "agreement": 1.0,
    "perplexity": 123.456,
    "perplexity_change": 98.765,
    "read_share": 1.0,
    "bytes_share": 1.0,
    "seconds": 0.9876,
    "right": 100,
    "count": 1000,
    "lost": 1000,
    "first": 99,
    "scored": 1000,
    "log_prob": -123.456,
    "bytes_read": 98765e6,
    "quarters": [9.87654] * 4,
    "growth": 123.456,
    "distinct": 1.0,
}
FAR: dict[str, Any] = {  # a model that is lost in a text
    "kl": 12.3456789,
    "kl_error": 10.0,
    "perplexity": 80349.93,
    "perplexity_change": 12345.6,
    "seconds": 123.456,
    "log_prob": -12345.6,
    "quarters": [0.5, 10.0, 100.0, 12.3456789],
    "growth": 34567.8,
}
TABLES = {"fidelity": (FIDELITY, FIDELITY_LEGEND), "recall": (RECALL, RECALL_LEGEND), "drift": (DRIFT, DRIFT_LEGEND)}
TITLE = "a_book_with_a_very_long_name_of_its_own.txt"


def shown(
    columns: tuple[Column, ...],
    legend: str,
    screen: int | None,
    policy: str = WORST["policy"],
    title: str = TITLE,
    worst: dict[str, Any] = WORST,
) -> tuple[list[str], list[str]]:
    table = EvalTable(columns, [title, "all texts"], ["exact", policy], legend, screen)
    record = worst | {"policy": policy}
    lines = [*table.lines(title, record), *table.lines(title, record), *table.lines("all texts", record)]
    return lines, table.ending().splitlines()


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("policy", [WORST["policy"], "moving-average:budget=0.05", "scan:budget=0.05:quality=0.95"])
def test_a_terminal_of_80_columns_is_wide_enough(name: str, policy: str) -> None:
    lines, legend = shown(*TABLES[name], 80, policy)
    assert all(len(line) <= 80 for line in lines + legend) and sum(policy in line for line in lines) == 3
    assert any(
        all(one.name in line for one in TABLES[name][0]) for line in lines
    )  # columns are named, and none is left out


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("worst", [WORST, WORST | FAR], ids=["worst", "far"])
def test_a_figure_stands_below_the_name_of_its_column(name: str, worst: dict[str, Any]) -> None:
    for screen in (40, 80, 120, None):
        lines, _ = shown(*TABLES[name], screen, worst=worst)
        heads = [line for line in lines if all(one.name in line for one in TABLES[name][0])]
        figures = [line for line in lines if "100.0%" in line]
        assert len(heads) == 2 and len(figures) == 3
        assert {len(line) for line in heads + figures} == {len(heads[0])}


def test_a_large_figure_has_fewer_places() -> None:
    assert [fitted(one, 2, 6) for one in (9.876, 999.994, 1234.56, 80349.93, 1.5e7, math.inf)] == [
        "9.88", "999.99", "1234.6", "80350", "2e+07", "inf",
    ]  # fmt: skip


def test_groups_begin_with_their_title() -> None:
    lines, legend = shown(FIDELITY, FIDELITY_LEGEND, None)
    assert [line.split("  ")[0] for line in lines] == [
        TITLE,
        WORST["policy"],
        WORST["policy"],
        "",
        "all texts",
        WORST["policy"],
    ]
    assert legend[0] == "" and all(len(line) <= 118 for line in legend)
    narrow, _ = shown(FIDELITY, FIDELITY_LEGEND, 80)
    assert narrow[0].startswith(TITLE[:21] + "… ") and len(narrow) == len(lines)
    two, _ = shown(FIDELITY, FIDELITY_LEGEND, 60)
    assert two[0] == TITLE and two[2] == WORST["policy"] and len(two) == 2 * len(lines) - 1
