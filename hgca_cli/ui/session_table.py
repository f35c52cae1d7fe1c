"""Sessions for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from hgca_cli.config import HELD, NO_LIMIT
from hgca_cli.ui.inert import inert
from hgca_cli.units import counted, format_age, format_bytes

BEGINNING = 40  # characters of the first question


def sessions_table(
    sessions: Sequence[Any], begins: Sequence[str], now: float, *, color: bool, columns: int | None = None
) -> str:
    """A line each: name, tokens, bytes, age, model, beginning.

    begins   the first question of each
    columns  of the terminal: what is asked ends there
    """
    rows = [("name", "tokens", "size", "used", "model", "begins")]
    for one, begin in zip(sessions, begins, strict=True):
        tokens = f"{one.record.saved.rows:,}" if one.record is not None and one.record.saved is not None else "-"
        model = one.record.model.rstrip("/").rpartition("/")[2] if one.record is not None else "damaged"
        begin = inert(" ".join(begin[:400].split()))[:BEGINNING]
        rows.append((inert(one.name), tokens, format_bytes(one.bytes), format_age(now - one.used), inert(model), begin))
    wide = [max(len(row[column]) for row in rows) for column in range(5)]
    room = BEGINNING if columns is None else max(0, columns - sum(wide) - 2 * len(wide))
    lines = []
    for number, (name, tokens, size, used, model, begin) in enumerate(rows):
        cells = (
            name.ljust(wide[0]),
            tokens.rjust(wide[1]),
            size.rjust(wide[2]),
            used.rjust(wide[3]),
            model.ljust(wide[4]),
            begin[:room],
        )
        line = "  ".join(cells).rstrip()
        damaged = number > 0 and sessions[number - 1].record is None
        lines.append(
            f"\x1b[31m{line}\x1b[0m" if color and damaged else f"\x1b[2m{line}\x1b[0m" if color and not number else line
        )
    return "\n".join(lines)


def told_value(value: Any, name: str = "") -> str:
    """A setting as a person reads it: a dash where there is none."""
    if value in (None, (), [], ""):
        return "-"
    if name == "max_tokens" and value >= NO_LIMIT:
        return "no limit"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(repr, value))
    return f"{value:,}" if type(value) is int and name != "seed" else str(value)  # a seed is there to be copied


def session_lines(session: Any, messages: Sequence[dict[str, Any]], now: float) -> list[str]:
    """All that is known of one."""
    record = session.record
    pairs = [("session", session.name), ("folder", str(session.folder)), ("size", format_bytes(session.bytes))]
    pairs.append(("messages", f"{len(messages):,}"))
    if record is None:
        pairs.append(("damaged", f"{session.wrong}; its text: hgca sessions export {session.name}"))
    else:
        pairs += [
            ("used", f"{format_age(now - session.used)} ago"),
            ("created", datetime.fromtimestamp(record.created).strftime("%Y-%m-%d %H:%M")),
            ("model", _model_told(record)),
            ("sampling", ", ".join(f"{name} {told_value(value, name)}" for name, value in record.sampling.items())),
            ("saved by", f"hgca {record.hgca}"),
        ]
        if (saved := record.saved) is None:
            pairs.append(("rows", "none: the text is read again"))
        else:
            numbers = f"{saved.identity.dtype} in the window, {saved.identity.kv_dtype} in the store"
            pairs += [
                (
                    "tokens",
                    f"{saved.count:,}, rows of {saved.rows:,} in {counted(len(saved.shards), 'file')}, {numbers}",
                ),
                ("attention", f"window {saved.window:,}, sinks {saved.sinks}, select {saved.select}"),
            ]
    return [inert(f"{name:<10}{value}") for name, value in pairs]


def session_record(session: Any) -> dict[str, Any]:
    """One as plain data. Times are seconds since 1970."""
    record = session.record
    saved = record.saved if record is not None else None
    known = {} if record is None else {
        "model": record.model, "revision": record.revision, "quant": record.quant, "created": record.created, "changed": record.changed,
        "turns": record.turns, "automatic": record.automatic, "sampling": record.sampling, "hgca": record.hgca,
    }  # fmt: skip
    rows = None if saved is None else {
        "tokens": saved.rows, "dtype": saved.identity.dtype, "kv_dtype": saved.identity.kv_dtype,
        "window": saved.window, "sinks": saved.sinks, "select": saved.select, "fingerprint": saved.identity.model,
        "files": len(saved.shards), "bytes": sum(shard.bytes for shard in saved.shards),
    }  # fmt: skip
    about = {"name": session.name, "folder": str(session.folder), "used": session.used, "bytes": session.bytes}
    return about | {"damaged": session.wrong or None} | known | {"rows": rows}


def _model_told(record: Any) -> str:
    revision = f", revision {record.revision}" if record.revision else ""
    return record.model + revision + HELD.get(record.quant, f", weights in {record.quant}")
