"""What a job has done so far, and what the rest will take. Times are seconds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

from hgca_cli.events import Done

BYTES_PER_TOKEN = 3.5  # of a line, until some were counted


@dataclass
class Tally:
    """Of `rows` rows with `size` bytes altogether, those finished.

    done, failed     rows; read, written: tokens, also of rows that still run; cached: prompt tokens that were not read
    running, waiting sequences that write, and whose prompts are read
    aside            those that wait for memory; set_aside: how often one did
    """

    rows: int
    size: int
    done: int = 0
    failed: int = 0
    read: int = 0
    written: int = 0
    cached: int = 0
    running: int = 0
    waiting: int = 0
    aside: int = 0
    set_aside: int = 0
    finished_bytes: int = 0
    prompts: int = 0  # tokens of prompts, of finished rows
    answers: int = 0  # tokens of answers, of finished rows
    began: float = field(default_factory=time.perf_counter)
    ttft: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    qualities: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Rows run from now on: what came before, loading a model, is none of their time."""
        self.began = time.perf_counter()

    def finish(self, size: int, answers: Sequence[Done]) -> None:
        """A row of so many bytes is finished; without answers it failed."""
        self.finished_bytes += size
        if not answers:
            self.failed += 1
            return
        self.done += 1
        for done in answers:
            self.prompts += done.prompt_tokens
            self.answers += done.completion_tokens
            self.cached += done.cached_tokens
            self.ttft.append(done.ttft_seconds)
            if done.completion_tokens > 1:
                self.per_token.append(done.decode_seconds / (done.completion_tokens - 1))
            if done.rows.store:
                self.shares.append(done.rows.read_share)
            if done.rows.quality is not None:
                self.qualities.append(done.rows.quality)

    @property
    def seconds(self) -> float:
        """Since rows began to run."""
        return time.perf_counter() - self.began

    @property
    def rate(self) -> float:
        """Tokens written in a second."""
        return self.written / max(1e-9, self.seconds)

    @property
    def left(self) -> float | None:
        """What the rest is expected to take, by tokens: those that prompts of so many bytes have, and answers so far. None:
        nobody knows yet.
        """
        finished = self.done + self.failed
        if not self.done or not self.read + self.written:
            return None
        per_byte = (self.prompts + self.answers) / max(1, self.finished_bytes)
        whole = self.read + self.cached + self.written + per_byte * max(0, self.size - self.finished_bytes)
        whole -= max(0, self.read + self.cached + self.written - self.prompts - self.answers)  # of rows that still run
        done = self.read + self.cached + self.written
        return 0.0 if finished >= self.rows else self.seconds * max(0.0, whole - done) / done

    def summary(self) -> dict[str, Any]:
        """The figures of a job that is over."""
        seconds = self.seconds
        figures: dict[str, Any] = {
            "rows": self.rows,
            "done": self.done,
            "failed": self.failed,
            "missing": self.rows - self.done - self.failed,
            "seconds": round(seconds, 3),
            "prompt_tokens": self.prompts,
            "cached_tokens": self.cached,
            "completion_tokens": self.answers,
            "tokens_per_second": round(self.answers / seconds, 2) if seconds else 0.0,
            "rows_per_second": round(self.done / seconds, 3) if seconds else 0.0,
            "ttft_seconds": spread(self.ttft),
            "token_seconds": spread(self.per_token),
            "read_share": _mean(self.shares),
            "quality": _mean(self.qualities),
            "set_aside": self.set_aside,
        }
        return figures


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """p50 and p90; None without values."""
    if not values:
        return None
    if len(values) == 1:
        return {"p50": round(values[0], 5), "p90": round(values[0], 5)}
    tenths = quantiles(values, n=10, method="inclusive")
    return {"p50": round(tenths[4], 5), "p90": round(tenths[8], 5)}


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None
