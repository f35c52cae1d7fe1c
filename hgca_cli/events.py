"""What happened, as plain data: the engine yields these, the console and `--json` show them.

Sizes are tokens or rows, times are seconds, unless a name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """Something a person or a program may want to know."""


@dataclass(frozen=True)
class Notice(Event):
    """A fact that changes what the user gets (a fallback, a context beyond the trained length, ...)."""

    text: str


@dataclass(frozen=True)
class PrefillProgress(Event):
    """Prompt tokens read so far. `cached` of `total` were in the cache already.

    growth  what every row before a token adds to its time, as a share of what it takes without any (by operations)
    """

    total: int
    cached: int
    processed: int  # includes `cached`
    seconds: float
    growth: float = 0.0


@dataclass(frozen=True)
class Worked(Event):
    """Part of an evaluation is done: `tokens` more were read in chunks ("read") or fed one by one ("decode")."""

    stage: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Balanced(Event):
    """A setting was moved between two tokens, because of what was measured.

    setting  "mass" (share of the attention a policy aims to keep) or "threads"
    """

    setting: str
    before: float
    after: float
    reason: str


@dataclass(frozen=True)
class Text(Event):
    """A piece of the answer; whole characters only."""

    text: str


@dataclass(frozen=True)
class Thought(Event):
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class Rows:
    """Where the rows of one layer and KV head are, and how many of the store's were read per step."""

    window: int  # on the device, sinks included
    store: int  # in CPU memory
    read_share: float  # mean share of the store's rows read per layer, head and step; 0 with an empty store
    bytes_share: float = 0.0  # mean share of the store's bytes read per step, a policy's indexes included
    quality: float | None = None  # share of the attention mass read, where it was measured; None: nothing was left out


@dataclass(frozen=True)
class Done(Event):
    """The end of an answer.

    finish_reason  "stop" (end of text or stop string), "length" (max tokens or context), "interrupted", "error"
    """

    finish_reason: str
    prompt_tokens: int  # tokens of the conversation before the answer
    cached_tokens: int  # of those, already in the cache
    completion_tokens: int
    prefill_seconds: float
    ttft_seconds: float  # from the request to the first token
    decode_seconds: float  # from the first token to the last
    rows: Rows
    seed: int = 0  # what the tokens were drawn with
    guessed: int = 0  # tokens that were computed before they were known to come (engine/lookup.py)
    guessed_right: int = 0  # and came
    text: str = field(default="", repr=False)  # the whole answer
    thought: str = field(default="", repr=False)  # what the model thought before it

    @property
    def tokens_per_second(self) -> float:
        """Decode rate, the first token excluded (it belongs to the prefill)."""
        steps = self.completion_tokens - 1
        return steps / self.decode_seconds if steps > 0 and self.decode_seconds > 0 else 0.0
