"""The paper's policy: a row is worth reading if it was attended to while it was in the window.

Every ring row carries, per query head, an exponential moving average of the attention weight it received (MAW). When
it is evicted it joins a head's sparse set iff  MAW > beta / rows of the head.  The set stays as it is while decoding;
on an appended turn every row of the store is judged again, by the weight the turn's queries give it.

Source: HGCA, arXiv:2507.03153, sections 3-4. What the paper leaves open, chosen here (measurements in
docs/moving-average.md):

- alpha: 0.5; the last tokens that saw a row say more than its whole stay. The average starts at 0, not at the first
  weight: a token's weight for itself is large and says nothing about its later use.
- beta: 0 with a budget of a fifth of the rows, unless told otherwise: the largest averages stay.
- pooling: a KV head reads a row if the mean over its group's query heads passes; one list then serves the group.
- re-evaluation: the mean weight over the queries of the turn's last prefill chunk, against the same threshold.
- A prompt read in chunks gives the averages that reading it token by token gives: a row's weights count only as long as
  it would have been in the window.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from hgca_cli.attention.dense import scores
from hgca_cli.attention.select.contract import Chosen, Turn
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.store import Store

JUDGE_ROWS = 2048  # rows of the store that are fetched at once
WEIGHED = (
    1 << 22
)  # numbers, weights of a KV head's group that are there at once: 16 MiB (as hardware/memory.py counts them)

Pool = Literal["mean", "max", "none"]
Known = tuple[Tensor, int, list[Tensor], list[Tensor], Chosen | None]


class MovingAverage:
    """Sparse sets of one layer and one sequence.

    window  ring rows of the layer
    beta    share of the uniform weight 1 / rows a row must exceed on average (paper: 0.25 .. 1)
    alpha   weight of the newest token in the average
    pool    how the query heads of a KV head agree: "mean", "max", or "none" (a list per query head)
    budget  most rows of a list as a share of the store; the largest averages stay. None: the threshold alone decides
    """

    watches = True

    def __init__(
        self,
        layout: LayerLayout,
        window: int,
        *,
        beta: float = 1.0,
        alpha: float = 0.5,
        pool: Pool = "mean",
        budget: float | None = None,
    ) -> None:
        self.beta = beta
        self.alpha = alpha
        self.pool: Pool = pool
        self._window = window
        self.budget = budget
        self._heads = layout.heads
        self._kv_heads = layout.kv_heads
        self.average = torch.zeros(layout.heads, 0)  # f32 [heads, ring rows], oldest first, on the window's device
        self._left = 0  # rows gone to the store
        lists = layout.heads if pool == "none" else layout.kv_heads
        self._rows = [torch.zeros(0, dtype=torch.int32) for _ in range(lists)]  # ascending
        self._worth = [torch.zeros(0) for _ in range(lists)]  # the average each was chosen by
        self._chosen: Chosen | None = None

    def choose(self, query: Tensor, store: Store) -> Chosen | None:
        """The sparse set, whatever the query."""
        if self._chosen is None:
            kept = [self._capped(rows, worth, store.rows) for rows, worth in zip(self._rows, self._worth, strict=True)]
            start = torch.tensor([0, *(len(rows) for rows in kept)], dtype=torch.int64).cumsum(0)
            share = float(start[-1]) / (len(kept) * store.rows)
            self._chosen = Chosen(start, torch.cat(kept), share)
        return self._chosen

    @property
    def counts(self) -> list[int]:
        """Rows of each list that was last read; empty before."""
        start = None if self._chosen is None else self._chosen.row_start
        return [] if start is None else start.diff().tolist()

    def known(self) -> Known:
        """What it knows of the rows at present. Cheap: later steps put other tensors in their places, and change none."""
        return self.average, self._left, list(self._rows), list(self._worth), self._chosen

    def know(self, before: Known) -> bool:
        """It knows what it knew then, of a sequence as long as then; False, and nothing happened, if other rows are in the window."""
        if before[1] != self._left:
            return False
        self.average, self._left, rows, worth, self._chosen = before
        self._rows, self._worth = list(rows), list(worth)
        return True

    def stored(self, store: Store) -> None:
        """Rows were judged when they left."""

    def see_step(self, weight: Tensor) -> None:
        """One token's weights enter the average; the token's own row is new."""
        grown = torch.zeros_like(weight)
        grown[:, : self.average.shape[1]] = self.average
        self.average = grown.lerp_(weight, self.alpha)

    def see_chunk(self, turn: Turn, store: Store) -> None:
        """A chunk's weights enter the averages; at the end of an appended turn the store is judged again."""
        if turn.last and not turn.first:
            self._judge_again(turn, store)
        queries, rows = turn.query.shape[1], sum(key.shape[1] for key in turn.keys)
        device, first = turn.query.device, 0
        average = torch.zeros(self._heads, rows, device=device)
        average[:, : self.average.shape[1]] = self.average
        row_at = torch.arange(rows, device=device) - (rows - queries)  # ring rows have negative ones
        last_at = torch.clamp(row_at + self._window - 1, max=queries - 1)  # the last query that finds the row there
        average *= (1.0 - self.alpha) ** (last_at + 1).clamp_(min=0)
        for key in turn.keys:
            for part in key.split(_at_once(turn), dim=1):
                average[:, first : first + part.shape[1]] += self._gained(turn, part, first - (rows - queries))
                first += part.shape[1]
        self.average = average

    def _gained(self, turn: Turn, key: Tensor, at: int) -> Tensor:
        """What the chunk's weights add to the averages of rows `key` [kv_heads, n, key_dim]: f32 [heads, n].

        at  of the first row: 0 is the chunk's first one
        """
        queries, rows, device = turn.query.shape[1], key.shape[1], key.device
        asked = slice(max(0, at), min(queries, at + rows + self._window - 1))  # queries that find one of them there
        if asked.start >= asked.stop:
            return torch.zeros(self._heads, rows, device=device)
        query_at = torch.arange(asked.start, asked.stop, dtype=torch.int32, device=device)[:, None]
        row_at = torch.arange(at, at + rows, dtype=torch.int32, device=device)
        later = (row_at + self._window - 1).clamp_(
            max=queries - 1
        ) - query_at  # queries that still find it after this one
        hidden = (later < 0) | (query_at < row_at)
        share = ((1.0 - self.alpha) ** later.clamp_(min=0)).mul_(self.alpha).masked_fill_(hidden, 0.0)
        return torch.cat([_weight(turn, head, key, asked).mul_(share).sum(dim=1) for head in range(len(key))])

    def leave(self, count: int, length: int) -> None:
        """The oldest rows are judged by their average and join the sets, or not."""
        going, self.average = self.average[:, :count], self.average[:, count:]
        self._add(going, self._left, self.beta / length)
        self._left += count

    def truncate(self, store_rows: int, ring_rows: int) -> None:
        """Rewound: rows no longer stored leave the sets; of those that are in the ring again nothing is known."""
        back = self.average.new_zeros(self._heads, min(self._left - store_rows, ring_rows))
        self._left = store_rows
        self.average = torch.cat([back, self.average], dim=1)[:, :ring_rows]
        for index, rows in enumerate(self._rows):
            stay = rows < store_rows
            self._rows[index], self._worth[index] = rows[stay], self._worth[index][stay]
        self._chosen = None

    def learned(self) -> dict[str, Tensor]:
        """What cannot be found out from the rows again: the averages, and the rows that were chosen by them."""
        counts = torch.tensor([len(rows) for rows in self._rows], dtype=torch.int64)
        return {
            "average": self.average,
            "counts": counts,
            "rows": torch.cat(self._rows),
            "worth": torch.cat(self._worth),
        }

    def learn(self, learned: dict[str, Tensor], store_rows: int, ring_rows: int) -> bool:
        """Take what `learned` gave; False, and nothing happened, if it is not of so many rows."""
        average, counts, rows, worth = (learned.get(name) for name in ("average", "counts", "rows", "worth"))
        if average is None or counts is None or rows is None or worth is None or counts.shape != (len(self._rows),):
            return False
        sizes = counts.tolist()
        kinds = (average.dtype, counts.dtype, rows.dtype, worth.dtype)
        good = kinds == (torch.float32, torch.int64, torch.int32, torch.float32) and min(sizes, default=0) >= 0
        if not good or average.shape != (self._heads, ring_rows) or not rows.shape == worth.shape == (sum(sizes),):
            return False
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < store_rows:
            return False
        self.average = average.to(self.average.device).clone()
        self._rows = [one.clone() for one in rows.split(sizes)]
        self._worth = [one.clone() for one in worth.split(sizes)]
        self._left = store_rows
        self._chosen = None
        return True

    def _add(self, average: Tensor, first_row: int, threshold: float) -> None:
        """Judge rows first_row, first_row + 1, ... by their averages [heads, n]."""
        grouped = average.reshape(self._kv_heads, -1, average.shape[1])
        if self.pool == "mean":
            pooled = grouped.mean(dim=1)
        elif self.pool == "max":
            pooled = grouped.amax(dim=1)
        else:
            pooled = average
        pooled = pooled.cpu()
        for index, worth in enumerate(pooled):
            passed = torch.nonzero(worth > threshold).flatten()
            rows = (passed + first_row).to(torch.int32)
            self._rows[index] = torch.cat([self._rows[index], rows])
            self._worth[index] = torch.cat([self._worth[index], worth[passed]])
        self._chosen = None

    def _capped(self, rows: Tensor, worth: Tensor, store_rows: int) -> Tensor:
        if self.budget is None:
            return rows
        most = math.floor(self.budget * store_rows)
        if len(rows) <= most:
            return rows
        best = torch.topk(worth, most).indices
        return rows[best.sort().values]

    def _judge_again(self, turn: Turn, store: Store) -> None:
        """Every row of the store against the threshold, by its mean weight over the turn's queries."""
        self._rows = [rows[:0] for rows in self._rows]
        self._worth = [worth[:0] for worth in self._worth]
        every, first = slice(0, turn.query.shape[1]), 0
        for key, _ in store.blocks(JUDGE_ROWS, turn.query.device, turn.query.dtype):
            parts = key.split(_at_once(turn), dim=1)
            means = [[_weight(turn, head, one, every).mean(dim=1) for head in range(len(one))] for one in parts]
            average = torch.cat([torch.cat(heads) for heads in means], dim=1)
            self._add(average, first, self.beta / turn.length)
            first += key.shape[1]


def _at_once(turn: Turn) -> int:
    """Rows that are weighed at once."""
    heads, queries = turn.query.shape[:2]
    return max(1, WEIGHED // (heads // turn.keys[-1].shape[0] * queries))


def _weight(turn: Turn, head: int, key: Tensor, asked: slice) -> Tensor:
    """Softmax weights the turn's queries `asked` gave a KV head's rows of `key` [kv_heads, n, key_dim]: f32 [group, asked, n].

    Rows later than a query get a weight too (at most 1); the caller hides them.
    """
    group = turn.query.shape[0] // key.shape[0]
    mine = slice(head * group, (head + 1) * group)
    score = scores(turn.query[mine, asked], key[head], scale=turn.scale, softcap=turn.softcap)
    return score.sub_(turn.lse[mine, asked].unsqueeze(-1)).clamp_(max=0.0).exp_()
