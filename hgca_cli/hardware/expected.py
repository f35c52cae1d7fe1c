"""How many rows a policy is expected to read, before anything ran: from what was measured on texts.

Measured with the default model on a book and an encyclopedia (`hgca eval fidelity`; 3,836 and 7,676 rows in the store): as a head may
leave out more where more rows hold it, of twice the store it reads no more rows, and what grows is only the part that is scored by
codes. On the device, where all that is left has to hold little, a few more. Other models and texts differ; what a run reads is shown,
and feedback moves the rest.
"""

from __future__ import annotations

from hgca_cli.config import LEFT_AHEAD, QUALITY
from hgca_cli.hardware.memory import Choice, stored_rows

LEAST = 64  # rows of a KV head that are read at least (attention/select/scan.py)
AT_90, HARDER = 114.0, 0.86  # rows a head reads for a quality of 0.9; exponent of 1 / (1 - quality): 453 rows for 0.98
DEVICE_AT_90, DEVICE_HARDER = 208.0, 0.73  # of 3,836, where the device chooses: 673 rows for 0.98
DEVICE_LONGER = 0.13  # exponent of the rows in the store there: 231 of 7,676
WATCHED = 0.2  # what moving averages keep, as in attention/select


def rows_read(
    choice: Choice, rows: int | None = None, quality: float | None = None, budget: float | None = None
) -> int:
    """Rows of the store a KV head reads exactly, per token. rows: in the store, None for all a full context has."""
    rows = stored_rows(choice) if rows is None else rows
    if choice.select == "exact":
        return rows
    if choice.select == "window" or budget == 0.0:
        return 0
    if choice.select == "moving-average":
        return round(rows * (WATCHED if budget is None else budget))
    most = rows if budget is None else max(1, round(budget * rows))
    left = 1.0 - (quality or QUALITY)
    if left <= 0.0:
        return most
    if choice.device_codes:
        wanted = DEVICE_AT_90 * (0.1 / (LEFT_AHEAD * left)) ** DEVICE_HARDER * (max(rows, 1) / 3836) ** DEVICE_LONGER
    else:
        wanted = AT_90 * (0.1 / left) ** HARDER
    return min(most, max(LEAST, round(wanted)))


def scored_rows(select: str, rows: int) -> float:
    """What choosing among so many rows costs, in rows whose codes are scored.

    Groups, blocks and what is not in groups yet count as the rows whose codes take as long: benchmarks/long.py, threads' time of
    choosing over that of `scan`, 8,192 to 524,288 rows (results/long.jsonl).
    """
    if select == "two-level":  # from some length on blocks are looked at before groups
        return min(rows, 0.45 * rows + 1700, 0.2 * rows + 8000)
    if select == "cluster":
        return min(rows, 0.22 * rows + 1000)
    return rows * {"scan": 1.0, "page": 0.15}.get(select, 0.0)
