"""Does a policy drift from exact attention while it writes? Divergence by position over thousands of its own tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median

import torch

from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.sampling import Sampler
from hgca_cli.measure.fidelity import exact_settings, kl_divergence, mean_and_error
from hgca_cli.measure.prompt import Prompt, Tell, ignore, step

QUARTERS = 4
RUN = 4  # tokens in a row that are looked for again


@dataclass(frozen=True)
class Drift:
    """A policy's own text, beside exact attention over the same tokens.

    kl, kl_error  mean KL(exact || policy) of the next token in nats, and its standard error
    quarters      the same by quarter of the text; growth: the last over the first
    agreement     share of positions where both hold the same token likeliest
    distinct      share of runs of four tokens that are no repetition: near 0, the text is a loop and says little
    read_share    mean share of the store's rows read per token; bytes_share: of its bytes, indexes included
    seconds       median of a token under the policy; exact_seconds: of exact attention
    """

    tokens: int
    kl: float
    kl_error: float
    quarters: tuple[float, ...]
    agreement: float
    distinct: float
    read_share: float
    bytes_share: float
    seconds: float
    exact_seconds: float
    text: str

    @property
    def growth(self) -> float:
        """Last quarter over first; infinite if only the first has none, 1 if neither has."""
        first, last = self.quarters[0], self.quarters[-1]
        return last / first if first else float("inf") if last else 1.0


def measure_drift(
    engine: Engine,
    ids: list[int],
    tokens: int,
    policies: Mapping[str, CacheSettings],
    sampling: SamplingSettings,
    tell: Tell = ignore,
) -> Iterator[tuple[str, Drift]]:
    """Every policy by name, each with the text it writes itself.

    ids     of the prompt, at least two; the settings' context has room for them and for `tokens`, at least four
    tokens  that are written; end tokens are never drawn
    """
    prompt = Prompt(engine, ids[:-1], tell)
    ends = torch.tensor(sorted(engine.loaded.tokenizer.end_ids), dtype=torch.int64)
    for name, settings in policies.items():
        theirs, ours = prompt.sequence(exact_settings(settings)), prompt.sequence(settings)
        sampler = Sampler(sampling)
        written = [ids[-1]]
        divergence, agreed, times, exact_times = [], 0, [], []
        for _ in range(tokens):
            logits, taken = step(engine, ours, written[-1], tell)
            exact, exact_taken = step(engine, theirs, written[-1], tell)
            divergence.append(float(kl_divergence(exact, logits)))
            agreed += int(exact.argmax() == logits.argmax())
            times.append(taken)
            exact_times.append(exact_taken)
            logits = logits.index_fill(0, ends, float("-inf"))
            written.append(sampler(logits, ours.tokens))
        rows = ours.cache.rows()
        ours.close()
        theirs.close()
        kl, error = mean_and_error(divergence)
        yield (
            name,
            Drift(
                tokens=tokens,
                kl=kl,
                kl_error=error,
                quarters=by_quarter(divergence),
                agreement=agreed / tokens,
                distinct=distinct_runs(written[1:]),
                read_share=rows.read_share,
                bytes_share=rows.bytes_share,
                seconds=median(times),
                exact_seconds=median(exact_times),
                text=engine.loaded.tokenizer.decode(written[1:]),
            ),
        )


def by_quarter(values: list[float]) -> tuple[float, ...]:
    """Means of the four quarters of at least four values."""
    edges = [index * len(values) // QUARTERS for index in range(QUARTERS + 1)]
    return tuple(mean(values[first:last]) for first, last in pairwise(edges))


def distinct_runs(tokens: list[int]) -> float:
    """Share of runs of four tokens that did not occur before; 1 for a text shorter than that."""
    runs = [tuple(tokens[index : index + RUN]) for index in range(len(tokens) - RUN + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0
