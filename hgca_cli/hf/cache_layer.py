"""One layer of the cache: what transformers tells it, handed to the states of its sequences.

`update` hands back only the new rows and remembers the layer; the attention function that transformers calls next
(hf/attention.py) picks the layer up, attends to all of its rows and takes the new ones in.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from hgca_cli.attention.clock import Clock
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.meter import QualityMeter
from hgca_cli.attention.select.contract import Selector
from hgca_cli.config import CacheSettings
from hgca_cli.errors import ModelError, UsageError
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.pieces import Pieces

if TYPE_CHECKING:
    from hgca_cli.attention.recorded import Recorder

Policy = Callable[[LayerLayout, int], Selector]  # of a layer and its index

STORE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}

# The layer whose `update` ran last: set by `HybridLayer.update`, taken by the attention function right after it.
updated_layer: ContextVar[HybridLayer | None] = ContextVar("hgca_updated_layer", default=None)


class HybridLayer(CacheLayerMixin):
    """One layer of a batch of sequences of equal length."""

    is_croppable = True

    def __init__(
        self,
        index: int,
        layout: LayerLayout,
        settings: CacheSettings,
        policy: Policy,
        meter: QualityMeter,
        clock: Clock,
        pieces: Pieces,
    ) -> None:
        super().__init__()
        self.meter, self.clock, self.pieces = meter, clock, pieces
        self.policy = policy
        self.index = index
        self.layout = layout
        self.settings = settings
        self.is_sliding = layout.sliding is not None
        self.states: list[LayerState] = []
        self.several: list[int] | None = (
            None  # tokens of each sequence, one sequence's after another's: of prompts in one pass
        )
        self.recorder: Recorder | None = None  # while a token is computed that may be captured
        self._expected = 0
        self.read_all = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The first rows tell batch size, device and dtype; their shape must be what the config said."""
        wanted = (self.layout.kv_heads, self.layout.key_dim, self.layout.value_dim)
        got = (key_states.shape[1], key_states.shape[-1], value_states.shape[-1])
        if wanted != got:
            raise ModelError(
                f"layer {self.index} has KV heads, key and value width {got}, the config says {wanted}.",
                "This model family is not supported.",
            )
        store_dtype = STORE_DTYPES[self.settings.kv_dtype] if self.settings.kv_dtype else key_states.dtype
        self.states = [
            LayerState(
                self.layout,
                self.settings,
                self.policy(self.layout, self.index),
                key_states.device,
                key_states.dtype,
                store_dtype,
                self.meter,
                self.clock,
                self.pieces,
            )
            for _ in range(key_states.shape[0])
        ]
        self.set_read_all(self.read_all)
        self.expect(self._expected)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Announce new rows; they are taken in by the attention function, which gets just them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[0] != len(self.states) and self.recorder is None:  # which may have places for more
            raise UsageError(
                f"the cache was made for {len(self.states)} sequences and got {key_states.shape[0]}.",
                "Make a new HybridCache for another batch.",
            )
        updated_layer.set(self)
        return key_states, value_states

    def expect(self, tokens: int) -> None:
        """A turn of so many prompt tokens begins."""
        self._expected = 0 if self.states else tokens  # before the first rows there is no state to tell
        for state in self.states:
            state.expect(tokens)

    def set_read_all(self, on: bool) -> None:
        """Read every row of the store from the next token on, or what the policy chooses."""
        self.read_all = on
        for state in self.states:
            state.read_all = on

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.states[0].length if self.states else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Rows a mask would have to cover, and the position of the first."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Most tokens there is room for."""
        return self.settings.context

    def reset(self) -> None:
        """Forget every row and give the memory back."""
        for state in self.states:
            if state.evictor is not None:
                state.evictor.drop()
        self.states = []
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest `-tokens_to_remove` tokens (transformers passes a negative number)."""
        length = self.get_seq_length() - abs(tokens_to_remove)
        if not all(state.can_rewind(length) for state in self.states):
            raise UsageError(f"layer {self.index} slides and no longer has the rows that {length} tokens need.")
        for state in self.states:
            state.rewind(length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search moves rows between sequences, which a store in CPU memory does not."""
        raise UsageError("hybrid attention does not do beam search.", "Use num_beams=1.")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Not with a store per sequence."""
        raise UsageError("hybrid attention cannot repeat a filled cache.", "Repeat the prompt instead.")

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the batch's sequences."""
        self.states = [self.states[index] for index in indices.tolist()]
