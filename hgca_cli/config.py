"""Settings, frozen and checked at the door. Units: tokens, rows, bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hgca_cli.errors import UsageError

SELECTORS = ("exact", "scan", "cluster", "two-level", "page", "window", "moving-average")
FOLLOWING = ("scan", "cluster", "two-level")  # policies that follow the query by codes of its rows' keys
QUALITY = 0.95  # of the attention mass is kept per head, unless another target is asked for
LEFT_AHEAD = (
    0.6  # of the mass that may be left out, where rows are chosen by foreseen queries and the others leave no trace
)
DTYPES = ("fp32", "bf16", "fp16")
KV_DTYPES = (*DTYPES, "int8")
QUANTS = ("none", "file", "q8", "q4")  # how weights are packed while they are loaded (hf/packed.py)
NO_LIMIT = 1 << 30  # tokens: an answer ends where the context does
MINUS_ONE = {"max_tokens": NO_LIMIT, "top_k": 0, "seed": None, "reasoning_budget": None}  # what -1 means in other tools
GRID_FEW = 16  # vectors that packed weights are multiplied with as they lie on a GPU; for more they are numbers of 16 bits first
GRID_WIDE_BYTES = 64 << 20  # of these at a time (hf/grid_gpu.py)
GUESSES = 7  # tokens that are guessed at once: with the newest they are as many as a pass takes at little more than one (docs/log.md)
MOST_GUESSES = 63
HELD = dict(zip(QUANTS, ("", ", weights as in the file", ", weights in q8", ", weights in q4"), strict=True))


@dataclass(frozen=True)
class CacheSettings:
    """How the rows of one sequence are kept and read.

    window   newest rows of each layer on the device
    sinks    first rows of each layer that stay on the device
    context  most rows a sequence may have (address space is reserved for them)
    select   the policy that chooses which rows of the store are read
    budget   most rows of the store a head may read, as a share; None leaves it to the policy
    kv_dtype dtype of the store's rows; None keeps the model's own
    quality  share of a head's attention mass that what is read is to hold; None leaves it to the policy
    dense_layers  so many of the first layers read every row, whatever the policy
    store_dir     directory of the files the stores are in; None: in memory
    device_codes  where a token is one graph of the device, a copy of `scan`'s codes is there, and rows are scored there
    look_ahead    and that by a query foreseen before the layer before, where a model's can be (hf/foresight.py)
    """

    window: int = 1024
    sinks: int = 4
    context: int = 8192
    select: str = "exact"
    budget: float | None = None
    kv_dtype: str | None = None
    quality: float | None = None
    dense_layers: int = 0
    store_dir: str | None = None
    device_codes: bool = False
    look_ahead: bool = False

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UsageError(f"--window: {self.window} rows is too few.", "Give 1 or more.")
        if self.sinks < 0:
            raise UsageError(f"--sinks: {self.sinks} is negative.", "Give 0 or more.")
        if self.context < 1:
            raise UsageError(f"--ctx: {self.context} tokens is too few.", "Give 1 or more.")
        if self.select not in SELECTORS:
            raise UsageError(f"--select: no policy {self.select!r}.", f"Choose from {', '.join(SELECTORS)}.")
        if self.kv_dtype is not None and self.kv_dtype not in KV_DTYPES:
            raise UsageError(f"--kv-dtype: no dtype {self.kv_dtype!r}.", f"Choose from {', '.join(KV_DTYPES)}.")
        if self.budget is not None and not 0.0 <= self.budget <= 1.0:
            raise UsageError(f"--budget: {self.budget} is not a share.", "Give a number from 0 to 1.")
        if self.quality is not None and not 0.0 < self.quality <= 1.0:
            raise UsageError(f"--quality: {self.quality} is out of range.", "Give a number above 0, at most 1.")
        if self.dense_layers < 0:
            raise UsageError(f"--dense-layers: {self.dense_layers} is negative.", "Give 0 or more.")
        if self.select == "exact" and self.budget not in (None, 1.0):
            raise UsageError("--budget and exact attention exclude each other.", "Drop one of them.")

    @property
    def block(self) -> int:
        """Rows evicted at once: a power of two, at most 64 and a quarter of the window."""
        block = 1
        while block < 64 and block * 8 <= self.window:
            block *= 2
        return block


@dataclass(frozen=True)
class SamplingSettings:
    """How the next token is drawn. Temperature 0 is greedy; the other filters then have no effect."""

    temperature: float = 0.7
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None  # None draws one
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    json_schema: str = ""  # that an answer fits, as JSON; "": any text
    reasoning_budget: int | None = None  # most tokens of a thought before the answer; None: no limit

    def __post_init__(self) -> None:
        checks = (
            ("--temp", self.temperature, self.temperature >= 0, "0 (greedy) or more"),
            ("--top-k", self.top_k, self.top_k >= 0, "0 (off) or more"),
            ("--top-p", self.top_p, 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("--min-p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
            ("--repeat-penalty", self.repetition_penalty, self.repetition_penalty > 0, "more than 0"),
            ("--presence-penalty", self.presence_penalty, -2 <= self.presence_penalty <= 2, "-2 to 2"),
            ("--frequency-penalty", self.frequency_penalty, -2 <= self.frequency_penalty <= 2, "-2 to 2"),
            ("--seed", self.seed, self.seed is None or 0 <= self.seed < 2**63, "0 to 2^63 - 1"),
            ("--max-tokens", self.max_tokens, self.max_tokens >= 0, "0 or more"),
            ("--reasoning-budget", self.reasoning_budget, (self.reasoning_budget or 0) >= 0, "0 or more"),
        )
        for flag, value, good, allowed in checks:
            if not good or value != value or value == float("inf"):
                raise UsageError(f"{flag}: {value} is out of range.", f"Allowed: {allowed}.")


def minus_one(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling settings with what other tools mean by -1 in its place: no limit, off, random."""
    return {name: MINUS_ONE[name] if name in MINUS_ONE and value == -1 else value for name, value in settings.items()}
