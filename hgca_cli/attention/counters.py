"""How much of the store a layer's steps read."""

from __future__ import annotations

from dataclasses import dataclass, field

from hgca_cli.selection import Reads


@dataclass
class ReadCounters:
    """Sums over the steps of one layer and sequence; shares are of what the store held at the time.

    share        of its rows, mean over KV heads
    share_bytes  bytes touched, of the index too, over the bytes of the store's rows
    last         what the C library told of the last step, None if it chose nothing
    """

    steps: int = 0
    share: float = 0.0
    share_bytes: float = 0.0
    last: Reads | None = field(default=None, repr=False)

    def add(self, share: float, share_bytes: float, last: Reads | None = None) -> None:
        """Count one step."""
        self.steps += 1
        self.share += share
        self.share_bytes += share_bytes
        self.last = last
