"""A device's copy of a layer's codes, so that rows can be scored where the query is (attention/scoring.py)."""

from __future__ import annotations

import torch

from hgca_cli import selection
from hgca_cli.attention.select.codes import Codes
from hgca_cli.kv.layout import LayerLayout


class Mirror:
    """Of one layer and sequence, with room for `rows` rows.

    codes  u8 [kv_heads, blocks, bytes]; means bf16 [kv_heads, blocks, value_dim]: as of Codes
    """

    def __init__(self, layout: LayerLayout, rows: int, device: torch.device) -> None:
        blocks = -(-rows // selection.BLOCK)
        heads, width = layout.kv_heads, selection.block_bytes(layout.key_dim)
        with torch.inference_mode(False):
            self.codes = torch.zeros(heads, blocks, width, dtype=torch.uint8, device=device)
            self.means = torch.zeros(heads, blocks, layout.value_dim, dtype=torch.bfloat16, device=device)
        self._of: Codes | None = None

    def follow(self, codes: Codes) -> None:
        """Copy what changed since the last time. There is room for it."""
        first = codes.kept if self._of is codes else 0
        changed = slice(first, -(-codes.rows // selection.BLOCK))
        if changed.start < changed.stop:
            self.codes[:, changed].copy_(codes.whole[:, changed])
            self.means[:, changed].copy_(codes.means[:, changed])
        self._of, codes.kept = codes, changed.stop
