"""How much of the store a layer's steps read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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


class Late:
    """Steps of a layer that the C library adds up in a relay's description (`hgca_relay *`), until they are told. It keeps neither
    relay nor layer from being given back.

    chosen     what was chosen from, the same in all of these steps; row_bytes: of a row of all KV heads
    """

    def __init__(self, described: Any, chosen: Selection, row_bytes: int) -> None:
        self.described, self._chosen, self._row_bytes = described, chosen, row_bytes

    def tell(self, to: ReadCounters) -> None:
        """Count what was not told yet."""
        own, rows = self.described, self._chosen.rows
        if own.steps:
            share, share_bytes = own.rows_read / (rows * self._chosen.kv_heads), own.bytes / (rows * self._row_bytes)
            steps, own.steps, own.rows_read, own.bytes = own.steps, 0, 0, 0
            to.add(share, share_bytes, self._chosen, steps)
