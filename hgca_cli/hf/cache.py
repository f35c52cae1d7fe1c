"""A transformers Cache whose rows live in two places: newest on the device, older ones in CPU memory."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from hgca_cli.attention.ahead import Ahead
from hgca_cli.attention.clock import Clock
from hgca_cli.attention.following import Following
from hgca_cli.attention.meter import QualityMeter
from hgca_cli.attention.select import make_selector
from hgca_cli.attention.select.exact import Unwatching
from hgca_cli.attention.select.moving_average import MovingAverage
from hgca_cli.attention.select.scan import Scan
from hgca_cli.config import CacheSettings
from hgca_cli.events import Rows
from hgca_cli.hf.cache_layer import HybridLayer, Policy
from hgca_cli.hf.shape import kv_layout
from hgca_cli.kv.held import Piece, Refill, held, natural_start
from hgca_cli.kv.layout import KVLayout
from hgca_cli.kv.pieces import Pieces
from hgca_cli.kv.shared import SharedFiles


class HybridCache(Cache):
    """Pass it to a model whose attention implementation is "hgca": `model(..., cache=HybridCache(config))`.

    config_or_layout  a transformers config, or the KVLayout made from it
    settings          window, sinks, context, policy by name
    policy            makes the selector of a layer; None takes the one the settings name
    """

    layers: list[HybridLayer]

    def __init__(
        self, config_or_layout: Any, settings: CacheSettings | None = None, policy: Policy | None = None
    ) -> None:
        layout = config_or_layout if isinstance(config_or_layout, KVLayout) else kv_layout(config_or_layout)
        self.layout = layout
        self.settings = settings or CacheSettings()
        policy = policy or partial(make_selector, self.settings)
        self.ahead: Ahead | None = None  # once a token was computed in one call
        self.following: Following | None = None  # once several, one behind the other, were
        self.meter = QualityMeter(sum(layer.sliding is None for layer in layout.layers))
        self.clock = Clock()
        self.pieces = Pieces()
        super().__init__(
            layers=[
                HybridLayer(index, layer, self.settings, policy, self.meter, self.clock, self.pieces)
                for index, layer in enumerate(layout.layers)
            ]
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen."""
        return self.layers[layer_idx].get_seq_length()

    def expect(self, tokens: int) -> None:
        """A turn of so many prompt tokens begins: they may come in chunks, even of one token."""
        for layer in self.layers:
            layer.expect(tokens)

    def can_rewind(self, length: int) -> bool:
        """Whether the cache can go back to its first `length` tokens without reading them again."""
        return all(state.can_rewind(length) for layer in self.layers for state in layer.states)

    def rewind(self, length: int) -> bool:
        """Forget tokens `length` and later; False, and nothing happened, if rows needed for that are gone. After an error it is empty,
        as some layers would be longer than others.
        """
        if not self.can_rewind(length):
            return False
        try:
            for layer in self.layers:
                for state in layer.states:
                    state.rewind(length)
        except BaseException:
            self.close()
            raise
        return True

    def rows(self) -> Rows:
        """Where rows are (of a layer that sees everything, one KV head), and the mean share of the store read."""
        states = [state for layer in self.layers for state in layer.states]
        full = [state for state in states if state.store is not None]
        steps = max(1, sum(state.reads.steps for state in full))
        share = sum(state.reads.share for state in full) / steps
        share_bytes = sum(state.reads.share_bytes for state in full) / steps
        if not states:
            return Rows(0, 0, 0.0, 0.0)
        shown = (full or states)[0]
        waiting = shown.evictor.pending if shown.evictor else 0
        return Rows(
            shown.window.rows, shown.store.rows + waiting if shown.store else 0, share, share_bytes, self.meter.quality
        )

    def aim_at(self, mass: float) -> None:
        """Policies that follow the query by their rows' codes keep this share of the mass from the next token on."""
        for layer in self.layers:
            for state in layer.states:
                if isinstance(state.selector, Scan):
                    state.selector.aim_at(mass)

    def aim_for(self, quality: float) -> None:
        """This quality in place of the one in the settings."""
        self.settings = replace(self.settings, quality=quality)
        policy = partial(make_selector, self.settings)
        for layer in self.layers:
            if not layer.states:  # those that are there are told
                layer.policy, layer.settings = policy, self.settings
        self.aim_at(quality)

    def set_read_all(self, on: bool) -> None:
        """Read every row of the stores from the next token on, or what the policies choose, which never stop learning."""
        for layer in self.layers:
            layer.set_read_all(on)

    def last_reads(self) -> tuple[float, float] | None:
        """Of the last token, where the C library chose the rows: mean share of the store's rows that were read, and for how
        many seconds of threads, over all layers. None: it chose none.
        """
        share = seconds = 0.0
        count = 0
        for layer in self.layers:
            for state in layer.states:
                if (last := state.reads.last) is not None and state.store is not None:
                    reads = last.reads
                    share += reads.read / (state.store.rows * last.kv_heads)
                    seconds += reads.read_seconds
                    count += 1
        return (share / count, seconds) if count else None

    @property
    def stored_bytes(self) -> int:
        """Bytes of the rows in the stores of all layers."""
        stores = [state.store for layer in self.layers for state in layer.states]
        return sum(store.bytes for store in stores if store is not None)

    @property
    def watches(self) -> bool:
        """Whether the policy looks at attention weights, so that a prompt must be read to it."""
        full = [layer for layer in self.layers if layer.layout.sliding is None]
        return bool(full) and full[-1].policy(full[-1].layout, full[-1].index).watches  # the first ones may be dense

    def every_row(self) -> list[tuple[Tensor, Tensor]] | None:
        """Copies in CPU memory of all rows of a batch of one: keys and values [kv_heads, tokens, dim] of each layer.

        None if a layer slides: its older rows are gone.
        """
        states = [layer.states[0] for layer in self.layers]
        if any(state.store is None for state in states):
            return None
        return [state.every_row() for state in states]

    def fill(self, rows: list[tuple[Tensor, Tensor]], device: torch.device, chunk: int) -> None:
        """Take rows another cache gave (`every_row`) into this empty one, as a prompt read in chunks brings them.

        Window, store and the policy's index are then as if the prompt had been read; a policy that watches is not.
        """
        with torch.inference_mode():
            for layer, (keys, values) in zip(self.layers, rows, strict=True):
                layer.lazy_initialization(keys[None, :, :1].to(device), values[None, :, :1].to(device))
                layer.states[0].take_prompt(keys, values, chunk)

    def held(self, first: int, end: int) -> list[tuple[int, Piece]]:
        """Views of the rows at positions first .. end - 1 of a batch of one, each with its layer."""
        pieces: list[tuple[int, Piece]] = []
        for index, layer in enumerate(self.layers):
            state = layer.states[0]
            state.settle()
            pieces += [(index, piece) for piece in held(state.window, state.store, first, end)]
        return pieces

    @property
    def ring_start(self) -> int:
        """The first position in the ring of the layers that see everything: what is before it was evicted."""
        full = [layer.states[0] for layer in self.layers if layer.layout.sliding is None]
        return full[0].window.start if full else 0

    def refill(
        self, rows: int, start: int | None, slides: int, device: torch.device, dtype: torch.dtype
    ) -> list[Refill]:
        """For each layer of this empty cache, what takes the first `rows` rows of a sequence as `held` gave them.

        start   of the ring of layers that see everything, if that is possible; None: as after a prompt of so many rows
        slides  the first position whose rows are there for sliding layers
        """
        refills = []
        for layer in self.layers:
            one = layer.layout
            key = torch.empty(1, one.kv_heads, 1, one.key_dim, device=device, dtype=dtype)
            layer.lazy_initialization(key, key.new_empty(1, one.kv_heads, 1, one.value_dim))
            state = layer.states[0]
            block = 0 if one.sliding is not None else self.settings.block
            begin = natural_start(state.window, rows, block)
            if one.sliding is not None:
                begin = max(begin, slides)
            elif start is not None and state.window.sinks <= start <= rows < start + state.window.ring:
                begin = start
            if state.store is not None and begin > state.window.sinks:
                state.round_window()
            refills.append(Refill(state.window, state.store, rows, begin))
        return refills

    def share(self) -> None:
        """The rows in the stores of this batch of one, and their indexes, are what others may begin with: in the same memory, which
        none of them writes to. Raises DoesNotFitError; nothing is lost then.
        """
        files = SharedFiles()
        for layer in self.layers:
            state = layer.states[0]
            state.settle()
            state.stay()
            if state.store is not None and isinstance(state.selector, Unwatching):
                state.selector.share(files, state.store)
                state.store.share(files)

    def begin_as(self, other: HybridCache, refills: list[Refill]) -> None:
        """Take rows for this cache's stores, and their indexes, from another one of the same settings that begins alike: what that one
        shares is shared. `held` gives the rest. Raises DoesNotFitError.
        """
        for mine, theirs, refill in zip(self.layers, other.layers, refills, strict=True):
            selector, source = mine.states[0].selector, theirs.states[0].selector
            if (rows := refill.begin_as(theirs.states[0].store)) and isinstance(selector, Unwatching):
                assert isinstance(source, Unwatching), "policies differ"
                selector.begin_as(source, rows)

    def index_stored(self) -> None:
        """Rows were put into the stores: the policies learn of them."""
        for layer in self.layers:
            state = layer.states[0]
            if state.store is not None and state.store.rows:
                state.selector.stored(state.store)

    def learned(self) -> dict[str, Tensor]:
        """What policies that watch know of the rows, by layer and name; empty where the rows say it all."""
        return {
            f"{index}.{name}": tensor
            for index, layer in enumerate(self.layers)
            if isinstance(watcher := layer.states[0].selector, MovingAverage) and layer.states[0].store is not None
            for name, tensor in watcher.learned().items()
        }

    def learn(self, learned: dict[str, Tensor]) -> bool:
        """Give the policies that watch what `learned` gave; False if it is not of these rows."""
        for index, layer in enumerate(self.layers):
            state = layer.states[0]
            if not isinstance(state.selector, MovingAverage) or state.store is None:
                continue
            mine = {name.partition(".")[2]: one for name, one in learned.items() if name.startswith(f"{index}.")}
            if not state.selector.learn(mine, state.store.rows, state.window.ring_rows):
                return False
        return True

    def reset_counters(self, tokens: int = 0) -> None:
        """Start counting the share read, and the mass kept, anew: for an answer that comes after so many tokens."""
        self.meter.reset(tokens)
        for layer in self.layers:
            for state in layer.states:
                state.reset_reads()

    def put_away(self) -> None:
        """Windows give their device's memory back until `bring_back`; nothing may be computed until then. Errors as of
        Window.put_away.
        """
        self.ahead = self.following = None
        for layer in self.layers:
            for state in layer.states:
                state.put_away()

    def bring_back(self) -> None:
        """Windows are where they were. After an error some are: call it again, or `put_away`."""
        for layer in self.layers:
            for state in layer.states:
                state.bring_back()

    def close(self) -> None:
        """Give the memory back."""
        self.reset()

    def reset(self) -> None:
        """As `close`."""
        self.ahead = self.following = None
        super().reset()
