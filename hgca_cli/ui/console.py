"""Where everything a command says goes: the answer to stdout, all else to stderr; or JSON lines; or nothing else."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Protocol

from hgca_cli.events import Done, Event, Notice, PrefillProgress, Text
from hgca_cli.ui.inert import inert
from hgca_cli.units import format_bytes, format_seconds

QUIET_SECONDS = 5.0  # between progress lines where there is no terminal


class Sink(Protocol):
    """Shows events."""

    def show(self, event: Event) -> None:
        """One event."""
        ...

    def plan(self, plan: Any, model: str) -> None:
        """What will be where."""
        ...

    def info(self, text: str) -> None:
        """A line for the person."""
        ...


def make_sink(*, as_json: bool, stats: bool, stream: bool, quiet: bool, plain: bool) -> Sink:
    """The sink the flags ask for."""
    return JsonSink() if as_json else HumanSink(stats=stats, stream=stream, quiet=quiet, plain=plain)


class HumanSink:
    """For a person: the answer as it comes, a progress bar while a prompt is read, one line of figures after."""

    def __init__(self, *, stats: bool, stream: bool, quiet: bool, plain: bool) -> None:
        self._stats, self._stream, self._quiet = stats, stream, quiet
        self._to_terminal = sys.stdout is not None and sys.stdout.isatty()
        self._bar = None if plain or quiet or not _lively() else _Bar()
        self._dim = _lively() and not plain and "NO_COLOR" not in os.environ
        self._told = time.monotonic()
        self._ends_line = True

    def show(self, event: Event) -> None:
        """One event."""
        if isinstance(event, PrefillProgress):
            self._progress(event)
            return
        if self._bar:
            self._bar.close()
        if isinstance(event, Text) and self._stream:
            self._answer(event.text)
        elif isinstance(event, Notice) and not self._quiet:
            self.info(event.text)
        elif isinstance(event, Done):
            if not self._stream:
                self._answer(event.text)
            if not self._ends_line or not event.text:
                self._write("\n")
            self._ends_line = True
            if self._stats:
                self.info(figures(event))

    def plan(self, plan: Any, model: str) -> None:
        """One line on what runs."""
        if not self._quiet:
            self.info(plan_line(plan, model))

    def info(self, text: str) -> None:
        """A dim line on stderr."""
        text = inert(text)
        print(f"\x1b[2m{text}\x1b[0m" if self._dim else text, file=sys.stderr, flush=True)

    def _answer(self, text: str) -> None:
        self._ends_line = text.endswith("\n")
        self._write(inert(text) if self._to_terminal else text)

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _progress(self, event: PrefillProgress) -> None:
        if event.processed <= event.cached:  # nothing read yet: the clock starts
            self._told = time.monotonic()
        if event.processed >= event.total:
            if self._bar:
                self._bar.close()
            return
        if self._bar:
            self._bar.show(event)
        elif not self._quiet and time.monotonic() - self._told > QUIET_SECONDS:
            self._told = time.monotonic()
            self.info(f"read {event.processed:,} of {event.total:,} tokens, {format_seconds(eta(event))} left")


class JsonSink:
    """For programs: one JSON object per line on stdout, nothing else there (docs/cli.md)."""

    def show(self, event: Event) -> None:
        """One event."""
        if isinstance(event, Text):
            self._line({"type": "token", "text": event.text})
        elif isinstance(event, Notice):
            self._line({"type": "notice", "text": event.text})
        elif isinstance(event, PrefillProgress):
            self._line(
                {
                    "type": "prefill",
                    "total": event.total,
                    "cache": event.cached,
                    "processed": event.processed,
                    "time_ms": round(event.seconds * 1000),
                }
            )
        elif isinstance(event, Done):
            self._line(done_record(event))

    def plan(self, plan: Any, model: str) -> None:
        """The plan as an object."""
        self._line({"type": "plan", "model": model} | plan_record(plan))

    def info(self, text: str) -> None:
        """Lines for people have no place here."""

    def _line(self, record: dict[str, Any]) -> None:
        print(json.dumps(record), flush=True)


def eta(event: PrefillProgress) -> float:
    """Seconds the rest of the prompt will take, at the rate so far."""
    done = event.processed - event.cached
    return event.seconds * (event.total - event.processed) / done if done else 0.0


def figures(done: Done) -> str:
    """The closing line of an answer."""
    rows = done.rows
    read = f", {rows.read_share:.0%} of it read" if rows.store else ""
    cached = f" ({done.cached_tokens:,} cached)" if done.cached_tokens else ""
    cut = "" if done.finish_reason == "stop" else f" | {done.finish_reason}"
    return (
        f"{done.completion_tokens:,} tokens, {done.tokens_per_second:.1f} tok/s, "
        f"first after {format_seconds(done.ttft_seconds)} | prompt {done.prompt_tokens:,}{cached} | "
        f"rows: window {rows.window:,}, store {rows.store:,}{read} | seed {done.seed}{cut}"
    )


def done_record(done: Done) -> dict[str, Any]:
    """Usage and timings in the words of the OpenAI API and llama-server."""
    new = done.prompt_tokens - done.cached_tokens
    return {
        "type": "done",
        "finish_reason": done.finish_reason,
        "text": done.text,
        "usage": {
            "prompt_tokens": done.prompt_tokens,
            "completion_tokens": done.completion_tokens,
            "total_tokens": done.prompt_tokens + done.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
        },
        "timings": {
            "cache_n": done.cached_tokens,
            "prompt_n": new,
            "prompt_ms": round(done.prefill_seconds * 1000, 1),
            "prompt_per_second": round(new / done.prefill_seconds, 1) if done.prefill_seconds else 0.0,
            "predicted_n": done.completion_tokens,
            "predicted_ms": round(done.decode_seconds * 1000, 1),
            "predicted_per_second": round(done.tokens_per_second, 2),
            "ttft_ms": round(done.ttft_seconds * 1000, 1),
        },
        "hgca": {
            "window": done.rows.window,
            "store": done.rows.store,
            "read_share": round(done.rows.read_share, 4),
            "seed": done.seed,
        },
    }


def plan_record(plan: Any) -> dict[str, Any]:
    """A plan as plain data. Bytes."""
    names = ("device", "dtype", "kv_dtype", "context", "window", "sinks", "select", "budget", "threads", "chunk")
    memory = [{"place": place.place, "limit": place.limit} | place.parts for place in plan.memory]
    return {name: getattr(plan, name) for name in names} | {"memory": memory, "reasons": plan.reasons}


def plan_line(plan: Any, model: str) -> str:
    """A plan in one line."""
    held = format_bytes(sum(plan.device_bytes.values()) + sum(plan.host_bytes.values()))
    return (
        f"{model} on {plan.device} in {plan.dtype}, context {plan.context:,}, window {plan.window:,} "
        f"+ {plan.sinks} sinks, store {plan.kv_dtype} read by {plan.select}, {plan.threads} threads, {held} at most"
    )


def plan_table(plan: Any, model: str) -> str:
    """A plan with its bytes and reasons, for --plan."""
    lines = [plan_line(plan, model)]
    for place in plan.memory:
        named = " + ".join(f"{name} {format_bytes(size)}" for name, size in place.parts.items() if size)
        lines.append(f"  {place.place}: {named} = {format_bytes(place.total)} of {format_bytes(place.limit)}")
    lines += [f"  {name.replace('_', '-')}: {reason}" for name, reason in plan.reasons.items()]
    flags = f"--device {plan.device} --dtype {plan.dtype} --kv-dtype {plan.kv_dtype} --ctx {plan.context}"
    flags += f" --window {plan.window} --sinks {plan.sinks} --select {plan.select} --threads {plan.threads}"
    lines.append(f"  flags: {flags} --prefill-chunk {plan.chunk}")
    return "\n".join(lines)


def _lively() -> bool:
    """Whether stderr is a terminal that can move its cursor."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class _Bar:
    """A transient progress bar on stderr."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None

    def show(self, event: PrefillProgress) -> None:
        """Move the bar."""
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._progress = Progress(
                TextColumn("reading"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task("", total=event.total - event.cached, rate="")
        speed = (event.processed - event.cached) / event.seconds if event.seconds else 0.0
        rate = f"{speed:,.0f} tok/s, {format_seconds(eta(event))} left  (Ctrl-C stops)"
        self._progress.update(self._task, completed=event.processed - event.cached, rate=rate)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
