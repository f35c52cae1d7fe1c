"""How much of the store a layer's steps read."""

from __future__ import annotations

from dataclasses import dataclass, field

from hgca_cli.selection import Selection


@dataclass
class ReadCounters:
    """Sums over the steps of one layer and sequence; shares are of what the store held at the time.

    share        of its rows, mean over KV heads
    share_bytes  bytes touched, of the index too, over the bytes of the store's rows
    last         what the C library chose in the last step, whose `reads` tell more; None if it chose nothing
    """

    steps: int = 0
    share: float = 0.0
    share_bytes: float = 0.0
    last: Selection | None = field(default=None, repr=False)

    def add(self, share: float, share_bytes: float, last: Selection | None = None, steps: int = 1) -> None:
        """Count steps, of which these are the sums."""
        self.steps += steps
        self.share += share
        self.share_bytes += share_bytes
        self.last = last
