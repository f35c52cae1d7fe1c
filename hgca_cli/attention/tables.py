"""Where several sequences' rows are on the device, by layer: what a kernel for all of them looks up, as each has memory of its own.

A graph holds addresses that stay, and those of a sequence's rows do not stay when another takes its place. So a kernel is given
the address of a table, and an anchor in memory of the rows' dtype; the table says how far from the anchor rows begin.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hgca_cli.attention.select.mirror import Coded

KEYS, VALUES, KEY_HEAD, VALUE_HEAD, CODES, CODE_HEAD, MEANS, MEAN_HEAD = range(8)
FIELDS = 8
UNIT = 32  # bytes: what tables count in, so that a compiler sees that rows begin where wide loads can

Rows = tuple[Tensor, Tensor]  # keys, values [kv_heads, slots, dim]


class Places:
    """One layer of all sequences, of so many KV heads.

    table         i64 [sequences, 8] on the device
    rows, codes   anchors
    windows       keys and values of each sequence, and `coded`, for whoever needs no table. A table keeps nobody's memory from being
                  given back
    """

    def __init__(self, table: Tensor, rows: Tensor, codes: Tensor, kv_heads: int) -> None:
        self.table, self.rows, self.codes, self.kv_heads = table, rows, codes, kv_heads
        self.windows: list[Rows | None] = [None] * len(table)
        self.coded: list[Coded | None] = [None] * len(table)


class Tables:
    """Of all layers. dtype: of the windows' rows; looked_up: whether kernels are told, and not who holds the rows."""

    def __init__(
        self,
        layers: int,
        sequences: int,
        kv_heads: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        looked_up: bool | None = None,
    ) -> None:
        on_gpu = device.type == "cuda"
        self._looked_up = on_gpu if looked_up is None else looked_up
        with torch.inference_mode(False):
            self._host = torch.zeros(layers, sequences, FIELDS, dtype=torch.int64, pin_memory=on_gpu)
            self._there = torch.zeros_like(self._host, device=device)
            rows, codes = (torch.zeros(UNIT, dtype=kind, device=device) for kind in (dtype, torch.uint8))
        self._lines = self._host.numpy()  # the same memory: a line costs Python less so
        self.changed = True  # since `send`
        self.layers = [Places(table, rows, codes, kv_heads) for table in self._there]

    def put(self, layer: int, sequence: int, window: Rows | None, coded: Coded | None) -> None:
        """A sequence's rows of one layer; None: it has none, or is none. `send` brings it to the device."""
        to, line = self.layers[layer], [0] * FIELDS
        self.changed = True
        if not self._looked_up:
            to.windows[sequence], to.coded[sequence] = window, coded
            return
        if window is not None:
            line[KEYS], line[VALUES] = (away(one, to.rows) for one in window)
            line[KEY_HEAD], line[VALUE_HEAD] = (a_head(one) for one in window)
        if coded is not None:
            line[CODES], line[MEANS] = (away(one, to.codes) for one in coded)
            line[CODE_HEAD], line[MEAN_HEAD] = (a_head(one) for one in coded)
        self._lines[layer, sequence] = line

    def send(self) -> None:
        """The device is done with what was there."""
        self.changed = False
        if self._looked_up:
            self._there.copy_(self._host, non_blocking=True)


def placed(
    windows: Sequence[Rows], coded: Sequence[Coded | None] | None = None, *, looked_up: bool | None = None
) -> Places:
    """One layer of sequences with these rows, which the caller keeps."""
    some = windows[0][0]
    tables = Tables(1, len(windows), len(some), some.device, some.dtype, looked_up=looked_up)
    for index, window in enumerate(windows):
        tables.put(0, index, window, None if coded is None else coded[index])
    tables.send()
    return tables.layers[0]


def away(rows: Tensor, anchor: Tensor) -> int:
    """Units from an anchor to where rows begin."""
    units, rest = divmod(rows.data_ptr() - anchor.data_ptr(), UNIT)
    assert rest == 0 and rows.stride(-1) == 1, "rows begin where wide loads can"
    return units


def a_head(rows: Tensor) -> int:
    """Units from a KV head's rows to the next one's."""
    units, rest = divmod(rows.stride(0) * rows.element_size(), UNIT)
    assert rest == 0 or len(rows) == 1, "rows begin where wide loads can"
    return units
