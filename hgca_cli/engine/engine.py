"""A loaded model that answers: prefill, decode, and what both told on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cached_property

import hgca_cli.hf.attention
from hgca_cli.config import FOLLOWING, CacheSettings, SamplingSettings
from hgca_cli.engine.choosing import Chooser
from hgca_cli.engine.decode import decode
from hgca_cli.engine.feedback import Feedback
from hgca_cli.engine.lookup import PromptLookup
from hgca_cli.engine.prefill import check_characters, prefill
from hgca_cli.engine.reasoning import BEGIN
from hgca_cli.engine.sequence import Sequence
from hgca_cli.engine.text import TextStream
from hgca_cli.errors import UsageError
from hgca_cli.events import Balanced, Done, Event, Notice, Text
from hgca_cli.hf.cache import HybridCache
from hgca_cli.hf.grammar import Grammars, Guide
from hgca_cli.hf.load import LoadedModel
from hgca_cli.hf.quicken import quicken
from hgca_cli.hf.quicken_gpu import quicken_gpu
from hgca_cli.hf.shape import kv_layout
from hgca_cli.hf.straight import takes_following


class Engine:
    """A model and how its rows are kept.

    context        most tokens of a sequence, prompt and answer together
    prefill_chunk  prompt tokens read at once
    guesses        most tokens of an answer that are guessed at once from the text before (engine/lookup.py); 0: none
    balance        threads, and the mass that is aimed at, follow what is measured while answers are written
    sequence       of the latest answer; None before the first
    """

    def __init__(
        self,
        loaded: LoadedModel,
        settings: CacheSettings,
        *,
        prefill_chunk: int = 512,
        balance: bool = False,
        guesses: int = 0,
    ) -> None:
        self.loaded = loaded
        self.settings = settings
        self.prefill_chunk = prefill_chunk
        self.context = settings.context
        self.guesses = guesses
        self._feedback = Feedback(loaded.device) if balance else None
        self.sequence: Sequence | None = None
        self._told_no_graph = self._told_staged = False
        self.layout = kv_layout(loaded.model.config, loaded.dtype.itemsize, loaded.dtype.itemsize)
        loaded.model.set_attn_implementation(hgca_cli.hf.attention.NAME)
        if loaded.device.type == "cpu":
            quicken(loaded.model)
        else:
            quicken_gpu(loaded.model)

    @cached_property
    def watches(self) -> bool:
        """Whether the policy looks at attention weights, so that a prompt must be read to it."""
        return HybridCache(self.layout, self.settings).watches

    @property
    def may_guess(self) -> bool:
        """Whether the model takes several tokens of an answer in one pass; a policy that `watches` does not."""
        return self.loaded.device.type == "cpu" and takes_following(self.loaded.model)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.loaded.tokenizer)

    def guide(self, sampling: SamplingSettings) -> Guide | None:
        """What keeps one answer to its schema; None without one. Raises HgcaError for a tokenizer or a schema that cannot be used."""
        return self._grammars.guide(sampling.json_schema) if sampling.json_schema else None

    def set_quality(self, quality: float, sequence: Sequence) -> None:
        """Keep this share of the attention mass per head from the next answer on, in a sequence and in new ones.

        Raises UsageError if the policy aims at no share.
        """
        if self.settings.select not in FOLLOWING or self.settings.budget is not None:
            kept = "a budget" if self.settings.budget is not None else f"--select {self.settings.select}"
            raise UsageError(
                f"the quality cannot change: this chat was begun with {kept}.",
                f"Begin one with --select {FOLLOWING[0]} --quality {quality:g}.",
            )
        self.settings = replace(self.settings, quality=quality)
        sequence.cache.aim_for(quality)
        if self._feedback is not None:
            self._feedback.forget()

    def new_sequence(self, settings: CacheSettings | None = None) -> Sequence:
        """An empty sequence, its rows kept by other settings if given. Its windows are allocated with its first token."""
        return Sequence(HybridCache(self.layout, settings or self.settings))

    def complete(self, text: str, sampling: SamplingSettings, stop: threading.Event) -> Iterator[Event]:
        """Continue a text as it stands, without a chat template. Events and errors as of `answer`."""
        check_characters("the prompt", len(text), self.loaded.tokenizer, self.context)
        return self._complete(text, sampling, stop, time.perf_counter())

    def _complete(
        self, text: str, sampling: SamplingSettings, stop: threading.Event, began: float
    ) -> Generator[Event, None, None]:
        ids = self.loaded.tokenizer.encode_prompt(text)
        sequence = self.new_sequence()
        try:
            yield from self.answer(sequence, ids, sampling, stop, began=began, before=ids)
        finally:
            sequence.close()

    def answer(
        self,
        sequence: Sequence,
        new: list[int],
        sampling: SamplingSettings,
        stop: threading.Event,
        *,
        began: float | None = None,
        before: list[int] | None = None,
    ) -> Generator[Event, None, None]:
        """Read `new` after what the sequence holds, and write what follows.

        began   time.perf_counter() of the request, None for now; times count from it
        before  ids whose text the answer continues, None if it begins a text of its own

        Yields PrefillProgress, Text, Balanced, maybe a Notice, and one Done. `stop` ends it after the current chunk or token.

        Raises ContextOverflowError or UsageError with nothing read, DoesNotFitError if memory runs out, ModelError for
        logits that are not finite; what was read and written until then is in the sequence.
        """
        began = time.perf_counter() if began is None else began
        cached = sequence.cached
        prompt_tokens = len(sequence.tokens) + len(new)
        sequence.cache.reset_counters(prompt_tokens)
        self.sequence = sequence
        thinks = before is None and self.loaded.tokenizer.ends_with(sequence.tokens[-32:] + new, BEGIN)
        chooser = Chooser(sampling, self.loaded.tokenizer, guide=self.guide(sampling), thinks=thinks)
        stream = TextStream(self.loaded.tokenizer.decode, sampling.stop, before or ())
        lookup = PromptLookup(self.guesses) if self.guesses else None
        reading = time.perf_counter()
        logits = yield from prefill(self.loaded, sequence, new, self.context, self.prefill_chunk, stop)
        first = last = prefilled = time.perf_counter()
        written = 0
        reason = "interrupted"
        if logits is not None:
            most = sampling.max_tokens
            ids = decode(self.loaded, sequence, logits, chooser, most, self.context, stop, lookup)
            with closing(self._watched(ids, sequence, sampling, fresh=cached == 0)) as tokens:
                while True:
                    try:
                        token = next(tokens)
                    except StopIteration as end:
                        reason = end.value
                        break
                    if isinstance(token, Balanced):
                        yield token
                        continue
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
            if stream.stopped:  # the last piece, given up as a whole, held a stop string
                reason = "stop"
        if (why := sequence.no_graph) is not None and not self._told_no_graph:
            self._told_no_graph = True
            yield Notice(
                f"no CUDA graph of this model ({why}): its operations are started one by one, which is slower."
            )
        if (why := sequence.staged) is not None and not self._told_staged:
            self._told_staged = True
            yield Notice(f"the memory of older rows cannot be page-locked ({why}): prompts are read more slowly.")
        yield Done(
            finish_reason=reason,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached,
            completion_tokens=written,
            prefill_seconds=prefilled - reading,
            ttft_seconds=first - began,
            decode_seconds=last - first,
            rows=sequence.cache.rows(),
            seed=chooser.seed,
            guessed=lookup.guessed if lookup else 0,
            guessed_right=lookup.right if lookup else 0,
            text=stream.text,
        )

    def _watched(
        self, tokens: Generator[int, None, str], sequence: Sequence, sampling: SamplingSettings, *, fresh: bool
    ) -> Generator[int | Balanced, None, str]:
        """The tokens; with feedback, the moves they led to between them."""
        if self._feedback is None:
            return (yield from tokens)
        return (yield from self._feedback.watch(tokens, sequence, sampling, fresh=fresh))
