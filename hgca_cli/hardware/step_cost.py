"""Predicted seconds of one decoded token by part, and which of them pass beside others.

A step is a sum: what layers cost beyond their weights and rows, weights read, rows of the window read, and of the store
scored and read. On a GPU the store's part runs on the host meanwhile, between two small copies, and only what it takes
longer than the window's part is waited for. Where the GPU chooses rows a layer ahead, so much as choosing them and fetching them
into the host's caches is hidden behind all it does.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepCost:
    """Seconds of one token of each sequence, by what they are for.

    window              attention to the newest rows
    copies, selection, attention  of the store's rows, on the host
    beside              the host's part runs while the device attends to the window
    fetched             of attention, what is done before the query is there, and `ahead`: that and selection go beside all else,
                        which is slowed down by so much
    """

    weights: float
    layers: float
    window: float
    copies: float = 0.0
    selection: float = 0.0
    attention: float = 0.0
    beside: bool = False
    fetched: float = 0.0
    slowed: float = 0.0
    ahead: bool = False

    @property
    def host(self) -> float:
        """What the store takes."""
        return self.copies + self.selection + self.attention

    @property
    def hidden(self) -> float:
        """Of that, what passes while the device works."""
        if not self.ahead:
            return min(self.window, self.host) if self.beside else 0.0
        device = self.weights + self.layers + self.window
        asked = self.copies + self.attention - self.fetched
        waits = max(0.0, asked - self.window)
        return device + self.host - max(device + self.slowed + waits, asked + self.fetched, self.selection)

    @property
    def waits(self) -> bool:
        """Whether the device waits for the host."""
        return self.host - self.hidden > self.slowed + 1e-9

    @property
    def total(self) -> float:
        """Until the next token."""
        return self.weights + self.layers + self.window + self.host - self.hidden

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by name; what is hidden is taken off the host's parts, so that they add up to the total."""
        shown = 1.0 - self.hidden / self.host if self.host else 0.0
        host = {name: getattr(self, name) * shown for name in ("copies", "selection", "attention")}
        return {"weights": self.weights, "layers": self.layers, "window": self.window, **host}
