"""A snapshot as lines: the status block under an answer, a picture, or words for whoever hears them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from hgca_cli.ui.figures import balanced_line, policy
from hgca_cli.ui.gauges import Glyphs, HeatMap, bar, heat_map, spark
from hgca_cli.ui.snapshot import Snapshot
from hgca_cli.units import format_bytes, format_seconds

COLUMNS, ROWS = 80, 24  # the smallest terminal that has room for it
LABEL = 9
NONE = "n/a"
PARTS = ("green", "cyan", "blue", "white")  # of a token's time
HEAT = ("", "blue", "blue", "cyan", "green", "green", "yellow", "red", "bold red", "bold red")

FIRST = ("select", "quality", "window", "threads", "kv_dtype")  # reasons people look for

Line = list[tuple[str, str]]  # pieces of text, each with a style of rich


def block_rows(columns: int, rows: int) -> int:
    """Lines of the block on a terminal: half of it, one where it is too small, none where there is no room at all."""
    if columns >= COLUMNS and rows >= ROWS:
        return rows // 2
    return 1 if columns >= 20 and rows >= 6 else 0


def short(snapshot: Snapshot, columns: int, rows: int) -> Line:
    """One line for a terminal that is too small, and says so."""
    now = "".join(text for text, _ in _now(snapshot, None, 0)[1:])
    return [(f"dashboard needs {COLUMNS}x{ROWS}, this is {columns}x{rows} | {now}"[:columns], "dim")]


def block(snapshot: Snapshot, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """Just so many lines (12 at least), each at most `width` cells wide."""
    lines = [header(snapshot, width, glyphs), _now(snapshot, glyphs, width), *figures(snapshot, glyphs, width)]
    left = height - len(lines)
    lines += _heads(snapshot, glyphs, width, max(1, left - 2 if left <= 6 else left * 2 // 3 - 1))
    lines += reasons(snapshot, height - len(lines))
    return [cut(line, width) for line in [*lines, *([[]] * height)][:height]]


def words(snapshot: Snapshot) -> list[str]:
    """Everything without bars or drawings, a line for each thing."""
    lines = [
        _now(snapshot, None, 0),
        *figures(snapshot, None, 0),
        *_heads(snapshot, None, 0, 0),
        *reasons(snapshot, 99),
    ]
    return said(snapshot, lines)


def said(snapshot: Snapshot, lines: Sequence[Line]) -> list[str]:
    """Lines as words, under what runs."""
    name = f"{snapshot.model}, {_run(snapshot.plan)}"
    return [name, *("".join(text for text, _ in line).strip() for line in lines)]


def header(snapshot: Snapshot, width: int, glyphs: Glyphs) -> Line:
    """A rule with what runs in it."""
    rule = glyphs.rule
    title, run = f" {snapshot.model} ", f" {_run(snapshot.plan)} "
    fill = max(0, width - 4 - len(title) - len(run))
    return [(rule * 2, "dim"), (title, "bold"), (rule, "dim"), (run, ""), (rule * (fill + 1), "dim")]


def _run(plan: Any) -> str:
    return f"{plan.device} {plan.numbers}, store {plan.kv_dtype}, {policy(plan)}"


def figures(snapshot: Snapshot, glyphs: Glyphs | None, width: int, rest: str = "rest of the model") -> list[Line]:
    """A token's time, where rows are, what is read of them, and the machine. rest: what takes the rest of the time."""
    lines = [_token(snapshot, glyphs, width, rest), *_rows(snapshot), _read(snapshot, width)]
    lines.append(_machine(snapshot))
    if snapshot.plan.device != "cpu":
        lines.append(_gpu(snapshot))
    return lines


def _now(snapshot: Snapshot, glyphs: Glyphs | None, width: int) -> Line:
    metrics, progress = snapshot.metrics, snapshot.progress
    if snapshot.phase == "reading" and progress is not None:
        new = progress.processed - progress.cached
        rate = f"{new / progress.seconds:,.0f} tok/s" if progress.seconds and new else "..."
        left = "" if snapshot.left is None else f", {format_seconds(snapshot.left)} left"
        text = f" {progress.processed:,} of {progress.total:,} tokens, {rate}{left}"
        cells = max(0, min(40, width - LABEL - len(text) - 1)) if glyphs else 0
        drawn = progress_bar(progress.processed / max(1, progress.total), cells, glyphs) if glyphs else []
        return [label("reading"), *drawn, (text if cells else text[1:], "")]
    first = NONE if snapshot.ttft is None else format_seconds(snapshot.ttft)
    tokens, context = (0, snapshot.plan.context) if metrics is None else (metrics.tokens, metrics.context)
    text = f"  first after {first}  context {tokens:,} of {context:,} ({tokens / context:.0%})"
    return speed(snapshot.phase, snapshot, glyphs, width, text)


def speed(name: str, snapshot: Snapshot, glyphs: Glyphs | None, width: int, text: str) -> Line:
    """Tokens a second, what they were before as a curve where that is drawn, and a text after it."""
    rate = NONE if snapshot.rate is None else f"{snapshot.rate:.1f}"
    curve: Line = []
    if glyphs:
        room = max(0, min(60, width - LABEL - len(rate) - 8 - len(text)))
        curve = [(f" {spark(snapshot.history, room, glyphs):<{room}}", "green")]
    return [label(name), (rate, "bold"), (" tok/s", ""), *curve, (text, "")]


def progress_bar(share: float, cells: int, glyphs: Glyphs) -> Line:
    """A bar that is full when all is done."""
    done = bar([min(1.0, share)], cells)[0]
    return [(glyphs.parts[0] * done, "green"), (glyphs.parts[3] * (cells - done), "dim")]


def _token(snapshot: Snapshot, glyphs: Glyphs | None, width: int, rest: str) -> Line:
    """A token's time by part; the rest, merging with it, is what the parts leave."""
    if snapshot.metrics is None or not snapshot.rate:
        return [label("token"), (NONE, "")]
    whole, spent = 1.0 / snapshot.rate, snapshot.metrics.spent
    on_gpu = snapshot.plan.device != "cpu"
    names = ("window", "selection", "attention", rest)
    known = [spent.window, spent.selection, spent.attention]
    seconds = [*known, max(0.0, whole - sum(part or 0.0 for part in known))]
    shown = [
        (name, part, index)
        for index, (name, part) in enumerate(zip(names, seconds, strict=True))
        if part is not None or (index == 2 or (index == 0 and on_gpu))
    ]
    line: Line = [label("token"), (f"{1e3 * whole:.1f} ms", "bold")]
    texts = [f"  {name} {NONE if part is None else f'{1e3 * part:.1f}'}" for name, part, _ in shown]
    if spent.hidden >= 5e-5:
        texts.append(f"  hidden {1e3 * spent.hidden:.1f}")
    if glyphs:
        cells = max(8, min(60, width - LABEL - len(line[1][0]) - 1 - sum(len(text) for text in texts)))
        sizes = bar([(part or 0.0) / max(whole, sum(one or 0.0 for one in seconds)) for part in seconds], cells)
        line.append((" ", ""))
        line += [(glyphs.parts[index] * size, PARTS[index]) for index, size in enumerate(sizes)]
    return [*line, *((text, PARTS[index]) for text, (_, _, index) in zip(texts, shown, strict=False)),
            *((text, "dim") for text in texts[len(shown):])]  # fmt: skip


def _rows(snapshot: Snapshot) -> Iterator[Line]:
    if snapshot.metrics is None:
        yield from ([label(name), (NONE, "")] for name in ("rows", "bytes"))
        return
    at = snapshot.metrics.places
    groups = "" if at.clustered is None else f" ({at.clustered:,} clustered)"
    yield [
        label("rows"),
        (f"{at.sinks:,} sinks | {at.window:,} window | {at.pending:,} pending | {at.store:,} store{groups}", ""),
    ]
    index = f" + {format_bytes(at.index_bytes)} index" if at.index_bytes else ""
    near, way, far = (format_bytes(size) for size in (at.window_bytes, at.pending_bytes, at.store_bytes))
    yield [label("bytes"), (f"{near} on {snapshot.metrics.device} | {way} pending | {far} store{index}", "")]


def _read(snapshot: Snapshot, width: int) -> Line:
    metrics = snapshot.metrics
    if metrics is None or not metrics.places.store:
        return [label("read"), ("every row: nothing is in the store" if metrics else NONE, "")]
    text = f"{metrics.read_share:.1%} of the store, {metrics.bytes_share:.1%} of its bytes"
    kept = NONE if metrics.quality is None else f"{metrics.quality:.1%}"
    asked = "" if metrics.asked is None else f" ({metrics.asked:.1%} asked)"
    parts = [(text, ""), (f"; quality {kept}{asked}", "bold")]
    if width == 0 or width >= 110:
        aims = "" if metrics.aim is None else f", aims at {metrics.aim:.1%}"
        parts.append((f"{aims}, {metrics.measured:,} readings", ""))
    return [label("read"), *parts]


def _machine(snapshot: Snapshot) -> Line:
    used, metrics = snapshot.used, snapshot.metrics
    if used is None:
        return [label("machine"), (NONE, "")]
    threads = snapshot.plan.threads if metrics is None else metrics.threads
    busy = NONE if used.processors is None else f"{used.processors:.1f}"
    text = f"cpu {busy} of {threads} threads, {format_bytes(used.memory)}; reads {_read_rate(snapshot)} GB/s"
    return [label("machine"), (text if snapshot.plan.device != "cpu" else f"{text}; GPU, PCIe {NONE}", "")]


def _read_rate(snapshot: Snapshot) -> str:
    """Of memory while the CPU chooses and attends, and what the profile says it can."""
    metrics, most = snapshot.metrics, snapshot.plan.predicted.read_gb_s
    rate = NONE
    if metrics is not None and metrics.read_bytes and metrics.spent.attention is not None:
        spent = metrics.spent
        seconds = (spent.selection or 0.0) + (spent.attention or 0.0) + spent.hidden
        rate = f"{metrics.read_bytes / seconds / 1e9:.1f}" if seconds else NONE
    return f"{rate} of {most:.1f}"


def _gpu(snapshot: Snapshot) -> Line:
    used, metrics = snapshot.used, snapshot.metrics
    busy = NONE if used is None or used.gpu_busy is None else f"{used.gpu_busy:.0%} busy"
    memory = NONE
    if used is not None and used.gpu_memory is not None and used.gpu_total is not None:
        memory = f"{format_bytes(used.gpu_memory)} of {format_bytes(used.gpu_total)}"
    crossing = NONE
    if metrics is not None and metrics.to_host is not None and metrics.to_device is not None and snapshot.rate:
        out, back = (format_bytes(size * snapshot.rate) for size in (metrics.to_host, metrics.to_device))
        crossing = f"{out}/s out, {back}/s back, {format_bytes(snapshot.evicting or 0)}/s evicted"
    return [label("gpu"), (f"{busy}, {memory}; PCIe {crossing}", "")]


def _heads(snapshot: Snapshot, glyphs: Glyphs | None, width: int, rows: int) -> list[Line]:
    """What each head reads, drawn in at most so many rows, and in figures."""
    heads = () if snapshot.metrics is None else snapshot.metrics.heads
    found = heat_map(heads, max(1, width - LABEL), max(1, rows))
    if found is None or not found.most:
        return [[label("heads"), ("no head has read the store yet", "dim")]]
    count = max(len(shares) for shares in heads if shares)
    layer, head = found.at
    text = f"{len(heads)} layers x {count}: mean {found.mean:.1%} of the store, most {found.most:.1%}"
    lines: list[Line] = [[label("heads"), (f"{text} (layer {layer}, head {head})", "")]]
    return lines if glyphs is None else [*lines, *_cells(found, glyphs, width)]


def _cells(found: HeatMap, glyphs: Glyphs, width: int) -> Iterator[Line]:
    wide = max(1, min(4, (width - LABEL) // len(found.cells[0])))
    for index, row in enumerate(found.cells):
        line: Line = [(f"{f'head {index * found.heads_per_cell}':<{LABEL}}", "dim")]
        for share in row:
            level = 0 if share is None else glyphs.level(math.sqrt(share))  # most heads read little
            style = HEAT[level * (len(HEAT) - 1) // (len(glyphs.levels) - 1)]
            piece = glyphs.levels[level] * wide
            if line[-1][1] == style and len(line) > 1:
                line[-1] = (line[-1][0] + piece, style)
            else:
                line.append((piece, style))
        yield line


def reasons(snapshot: Snapshot, room: int) -> list[Line]:
    """The newest moves, then why the plan is as it is."""
    moves = [balanced_line(move) for move in reversed(snapshot.moves)][: max(1, room // 3)]
    lines: list[Line] = [[label("balance"), (line.removeprefix("balance: "), "")] for line in moves]
    why = snapshot.plan.reasons
    for name, reason in sorted(why.items(), key=lambda one: FIRST.index(one[0]) if one[0] in FIRST else len(FIRST)):
        value = getattr(snapshot.plan, name, None)
        shown = f"{value:,}" if isinstance(value, int) else value
        lines.append([label("plan"), (f"{name.replace('_', '-')} {shown}: {reason}", "dim")])
    return lines[: max(0, room)]


def label(name: str) -> tuple[str, str]:
    """What a line is about, at its beginning."""
    return f"{name:<{LABEL}}", "dim"


def cut(line: Line, width: int) -> Line:
    """No wider than that; every character here is one cell wide, but in names of models and settings."""
    short: Line = []
    for text, style in line:
        if width <= 0:
            break
        short.append((text[:width], style))
        width -= len(text)
    return short
