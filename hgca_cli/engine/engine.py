"""A loaded model that answers: prefill, decode, and what both told on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import hgca_cli.hf.attention
from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.engine.decode import decode
from hgca_cli.engine.prefill import prefill
from hgca_cli.engine.sampling import Sampler
from hgca_cli.engine.sequence import Sequence
from hgca_cli.engine.text import TextStream
from hgca_cli.events import Done, Event, Text
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.load import LoadedModel
from hgca_cli.hf.shape import kv_layout


class Engine:
    """A model and how its rows are kept.

    context  most tokens of a sequence, prompt and answer together
    """

    def __init__(self, loaded: LoadedModel, settings: CacheSettings, *, prefill_chunk: int = 512) -> None:
        self.loaded = loaded
        self.settings = settings
        self.prefill_chunk = prefill_chunk
        self.context = settings.context
        self._layout = kv_layout(loaded.model.config, loaded.dtype.itemsize, loaded.dtype.itemsize)
        loaded.model.set_attn_implementation(hgca_cli.hf.attention.NAME)

    def new_sequence(self) -> Sequence:
        """An empty sequence. Its windows are allocated with its first token."""
        return Sequence(HybridCache(self._layout, self.settings))

    def complete(self, text: str, sampling: SamplingSettings, stop: threading.Event) -> Iterator[Event]:
        """Continue a text as it stands, without a chat template."""
        sequence = self.new_sequence()
        try:
            yield from self.answer(sequence, self.loaded.tokenizer.encode_prompt(text), sampling, stop)
        finally:
            sequence.close()

    def answer(
        self, sequence: Sequence, new: list[int], sampling: SamplingSettings, stop: threading.Event
    ) -> Iterator[Event]:
        """Read `new` after what the sequence holds, and write what follows.

        Yields PrefillProgress, Text and one Done. `stop` ends it after the current chunk or token.

        Raises ContextOverflowError, with nothing read, if the prompt leaves no room.
        """
        began = time.perf_counter()
        cached = sequence.cached
        sequence.cache.reset_counters()
        sampler = Sampler(sampling)
        stream = TextStream(self.loaded.tokenizer.decode, sampling.stop)
        first = last = prefilled = began
        written = 0
        logits = yield from prefill(self.loaded, sequence, new, self.context, self.prefill_chunk, stop)
        prefilled = time.perf_counter()
        prompt_tokens = len(sequence.tokens)
        reason = "interrupted"
        if logits is not None:
            tokens = decode(self.loaded, sequence, logits, sampler, sampling.max_tokens, self.context, stop)
            reason = "length"
            while True:
                try:
                    token = next(tokens)
                except StopIteration as end:
                    reason = end.value
                    break
                last = time.perf_counter()
                written += 1
                if written == 1:
                    first = last
                if piece := stream.push(token):
                    yield Text(piece)
                if stream.stopped:
                    reason = "stop"
                    break
            if rest := stream.finish():
                yield Text(rest)
        yield Done(
            finish_reason=reason,
            prompt_tokens=prompt_tokens,
            cached_tokens=min(cached, prompt_tokens),
            completion_tokens=written,
            prefill_seconds=prefilled - began,
            ttft_seconds=(first if written else prefilled) - began,
            decode_seconds=last - first if written else 0.0,
            rows=sequence.cache.rows(),
            seed=sampler.seed,
            text=stream.text,
        )
