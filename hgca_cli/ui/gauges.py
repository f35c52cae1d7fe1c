"""Numbers as characters: bars, a curve on one line, a map of shares. Blocks where the terminal has them, else ASCII."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEVELS = " ▁▂▃▄▅▆▇█"
ASCII_LEVELS = " .:-=+*#%@"


@dataclass(frozen=True)
class Glyphs:
    """levels: from nothing to full; parts: what the pieces of a bar are made of; rule: of lines; dot: between words."""

    levels: str
    parts: str
    rule: str

    def level(self, share: float) -> int:
        """Which of the levels shows a share 0 .. 1; 0 only for nothing."""
        top = len(self.levels) - 1
        return 0 if share <= 0 else max(1, min(top, round(share * top)))


BLOCKS = Glyphs(LEVELS, "█▓▒░", "─")
ASCII = Glyphs(ASCII_LEVELS, "#=+.", "-")


def glyphs_for(encoding: str | None) -> Glyphs:
    """Blocks if an encoding has them."""
    try:
        (LEVELS + BLOCKS.parts + BLOCKS.rule).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS


def bar(shares: Sequence[float], width: int) -> list[int]:
    """Cells of each part of a bar `width` cells long; shares that add up to 1 fill it, and what is there has a cell."""
    ends, total = [], 0.0
    for share in shares:
        total += max(0.0, share)
        ends.append(round(min(1.0, total) * width))
    cells = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    for index, share in enumerate(shares):
        largest = cells.index(max(cells))
        if share > 0 and cells[index] == 0 and cells[largest] > 1:
            cells[index] += 1
            cells[largest] -= 1
    return cells


def spark(values: Sequence[float], width: int, glyphs: Glyphs) -> str:
    """The newest `width` values against the largest of them."""
    shown = values[-width:]
    most = max(shown, default=0.0)
    return "".join(glyphs.levels[glyphs.level(value / most if most else 0.0)] for value in shown)


@dataclass(frozen=True)
class HeatMap:
    """Shares of layers x KV heads in few cells: a cell is the largest of the shares it stands for.

    cells        rows of KV heads, each with a share per column of layers; None: no such head, or no store
    mean, most   over all heads; at: layer and head of the largest
    layers_per_cell, heads_per_cell
    """

    cells: list[list[float | None]]
    mean: float
    most: float
    at: tuple[int, int]
    layers_per_cell: int
    heads_per_cell: int


def heat_map(heads: Sequence[Sequence[float] | None], width: int, height: int) -> HeatMap | None:
    """Layers across, KV heads down, in at most width x height cells; None if no layer has a store."""
    known = [(share, layer, head) for layer, shares in enumerate(heads) for head, share in enumerate(shares or ())]
    if not known or width < 1 or height < 1:
        return None
    count = max(len(shares) for shares in heads if shares)
    across, down = -(-len(heads) // width), -(-count // height)
    cells: list[list[float | None]] = [
        [
            max(
                (
                    share
                    for shares in heads[left : left + across]
                    if shares
                    for share in shares[top : top + down]
                ),
                default=None,
            )
            for left in range(0, len(heads), across)
        ]
        for top in range(0, count, down)
    ]  # fmt: skip
    most, layer, head = max(known, key=lambda one: one[0])
    return HeatMap(cells, sum(share for share, *_ in known) / len(known), most, (layer, head), across, down)
