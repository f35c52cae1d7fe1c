"""ln p of given tokens after others, under an engine's policy: what evaluation harnesses ask for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hgca_cli.engine.engine import Engine
from hgca_cli.engine.sequence import Sequence
from hgca_cli.measure.fidelity import EXACT
from hgca_cli.measure.prompt import Prompt, feed


@dataclass(frozen=True)
class Likelihood:
    """log_prob: sum over the tokens, nats; greedy: each of them was the likeliest."""

    log_prob: float
    greedy: bool


class LikelihoodScorer:
    """Scores continuations. The prompt of the last context is kept: answers to one question are asked in a row."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._prompt: Prompt | None = None

    def score(self, context: list[int], continuation: list[int]) -> Likelihood:
        """What `continuation` is worth after `context`, at least one token.

        All of the context but its last token is read exactly; from there on the policy reads. The context's first tokens
        are dropped if both do not fit.
        """
        room = self._engine.context + 1 - len(continuation)
        assert context and room > 0
        context = context[-room:]
        sequence = self._sequence(context[:-1])
        log_prob, greedy = 0.0, True
        for logits, token in zip(self._follow(sequence, [context[-1], *continuation[:-1]]), continuation, strict=True):
            log_prob += float(logits.log_softmax(-1)[token])
            greedy = greedy and int(logits.argmax()) == token
        sequence.close()
        return Likelihood(log_prob, greedy)

    def rolling(self, prefix: int, ids: list[int]) -> float:
        """ln p of a text of any length: in pieces as long as the context, each after the token before it.

        prefix  the token before the text's first
        """
        most = self._engine.context
        total = 0.0
        for first in range(0, len(ids), most):
            piece = ids[first : first + most]
            last = first + len(piece) == len(ids)
            before = [prefix] if first == 0 else ids[first - 1 : first]
            if last and first:  # the last piece is short: what fits before it is its context
                before = ids[max(0, len(ids) - most - 1) : first]
            total += self.score(before, piece).log_prob
        return total

    def _sequence(self, ids: list[int]) -> Sequence:
        if not ids:
            return self._engine.new_sequence()
        if self._prompt is None or self._prompt.ids != ids:
            self._prompt = Prompt(self._engine, ids)
        return self._prompt.sequence(self._engine.settings)

    def _follow(self, sequence: Sequence, tokens: list[int]) -> Iterator[Tensor]:
        """Logits f32 [vocabulary] after each token; in chunks for as long as every row would be read anyway."""
        engine, settings = self._engine, self._engine.settings
        all_read = len(tokens) if settings.select == EXACT else settings.window + settings.sinks - sequence.cached
        chunked = max(0, min(all_read, len(tokens)))
        if chunked > 1:
            sequence.cache.expect(chunked)
            for chunk in torch.tensor([tokens[:chunked]], device=engine.loaded.device).split(
                engine.prefill_chunk, dim=1
            ):
                with torch.inference_mode():
                    logits = engine.loaded.forward(chunk, sequence.cache).logits[0]
                sequence.tokens += chunk[0].tolist()
                yield from logits.float().cpu()
            tokens = tokens[chunked:]
        for one, _ in feed(engine, sequence, tokens):
            yield one
