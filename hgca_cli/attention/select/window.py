"""Nothing older than the window: sinks and newest rows only.

Source: StreamingLLM, arXiv:2309.17453. The lower yardstick: what a model without a store would answer.
"""

from __future__ import annotations

from torch import Tensor

from hgca_cli.attention.select.contract import Chosen
from hgca_cli.attention.select.exact import Unwatching
from hgca_cli.kv.store import Store


class WindowOnly(Unwatching):
    """Reads no row of the store."""

    def choose(self, query: Tensor, store: Store) -> Chosen | None:
        """No row."""
        return None
