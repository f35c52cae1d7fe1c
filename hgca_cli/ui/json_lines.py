"""Events as JSON objects, one a line, for programs (docs/cli.md)."""

from __future__ import annotations

import json
import sys
from typing import Any

from hgca_cli.errors import HgcaError, UsageError
from hgca_cli.events import Balanced, Done, Event, Notice, PrefillProgress, Text, Thought


class JsonSink:
    """Objects to stdout, and nothing else there.

    stream  pieces of the answer as they come; quiet  answers and errors only; thoughts  what comes before an answer, too
    """

    def __init__(self, *, stream: bool, quiet: bool, thoughts: bool = True) -> None:
        self._stream, self._quiet, self._thoughts = stream, quiet, thoughts

    def show(self, event: Event) -> None:
        """One event."""
        if isinstance(event, Done):
            record = done_record(event)
            self._line(record | ({"reasoning": event.thought} if event.thought and self._thoughts else {}))
        elif isinstance(event, Text):
            if self._stream:
                self._line({"type": "token", "text": event.text})
        elif isinstance(event, Thought):
            if self._stream and self._thoughts:
                self._line({"type": "reasoning", "text": event.text})
        elif self._quiet:
            return
        elif isinstance(event, Notice):
            self._line({"type": "notice", "text": event.text})
        elif isinstance(event, Balanced):
            self._line(
                {
                    "type": "balance",
                    "setting": event.setting,
                    "before": event.before,
                    "after": event.after,
                    "reason": event.reason,
                }
            )
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

    def plan(self, plan: Any, model: str, *, detailed: bool = False) -> None:
        """The plan as an object; it is always detailed."""
        if not self._quiet or detailed:
            self._line({"type": "plan", "model": model} | plan_record(plan))

    def attached(self, name: str, tokens: int) -> None:
        """A document that will be read before the question."""
        if not self._quiet:
            self._line({"type": "file", "name": name, "tokens": tokens})

    def tell(self, text: str) -> None:
        """What a slash command answers."""
        self._line({"type": "info", "text": text})

    def note(self, text: str) -> None:
        """A hint for a person: nothing for a program."""

    def error(self, error: HgcaError) -> None:
        """What went wrong in a turn."""
        record = {"type": "error", "code": error.code, "message": str(error), "exit_code": error.exit_code}
        self._line(record)

    def render(self, markdown: str) -> None:
        """Raises UsageError: a program gets what the model wrote."""
        raise UsageError("with --json an answer is as the model wrote it.", "Leave --json out.")

    def cover(self, rows: int) -> None:
        """Nothing scrolls here."""

    def close(self) -> None:
        """Nothing is left open."""

    def _line(self, record: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()


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
            "draft_n": done.guessed,
            "draft_n_accepted": done.guessed_right,
        },
        "hgca": {
            "window": done.rows.window,
            "store": done.rows.store,
            "read_share": round(done.rows.read_share, 4),
            "bytes_share": round(done.rows.bytes_share, 4),
            "quality": None if done.rows.quality is None else round(done.rows.quality, 4),
            "seed": done.seed,
        },
    }


def plan_record(plan: Any) -> dict[str, Any]:
    """A plan as plain data. Bytes."""
    names = (
        "device",
        "dtype",
        "quant",
        "kv_dtype",
        "context",
        "window",
        "sinks",
        "select",
        "budget",
        "quality",
        "dense_layers",
        "store_dir",
        "threads",
        "chunk",
    )
    memory = [{"place": place.place, "limit": place.limit} | place.parts for place in plan.memory]
    told = plan.predicted
    predicted = {
        "token_ms": {name: 1e3 * seconds for name, seconds in told.step.parts.items()},
        "hidden_ms": 1e3 * told.step.hidden,
        "tokens_per_second": 1 / told.step.total,
        "tokens_per_second_empty": 1 / told.empty.total,
        "prefill_seconds": told.prefill_seconds,
        "batch": told.batch,
        "profile": told.profile,
        "origin": told.origin,
    }
    return {name: getattr(plan, name) for name in names} | {
        "memory": memory, "predicted": predicted, "reasons": plan.reasons
    }  # fmt: skip
