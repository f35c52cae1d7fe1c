"""How near a policy's next-token distributions are to those of exact attention, over a long text.

Teacher-forced: whatever a policy would say, the text's own next token is fed, so position by position both sides have
seen the same. Errors propagate as in decoding: a row's key and value come from layers that read by the policy, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from hgca_cli.config import CacheSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.sequence import Sequence as Tokens
from hgca_cli.measure.prompt import Prompt, Tell, feed, ignore

EXACT = "exact"


@dataclass(frozen=True)
class Fidelity:
    """A policy against exact attention on the same positions.

    kl           mean KL(exact || policy) of the next token, nats; kl_error: its standard error over positions
    agreement    share of positions where both hold the same token likeliest
    nll          mean -ln p of the text's next token, nats; exact_nll: of exact attention
    read_share   mean share of the store's rows read per token; bytes_share: of its bytes, indexes included
    bytes_read   mean bytes of the store read per token
    seconds      median of a token; exact_seconds: of exact attention
    """

    positions: int
    kl: float
    kl_error: float
    agreement: float
    nll: float
    exact_nll: float
    read_share: float
    bytes_share: float
    bytes_read: float
    seconds: float
    exact_seconds: float

    @property
    def perplexity(self) -> float:
        """exp of `nll`."""
        return math.exp(self.nll)

    @property
    def exact_perplexity(self) -> float:
        """exp of `exact_nll`."""
        return math.exp(self.exact_nll)

    @property
    def perplexity_change(self) -> float:
        """Relative to exact attention: 0.01 is one per cent worse."""
        return math.expm1(self.nll - self.exact_nll)


def kl_divergence(exact: Tensor, other: Tensor) -> Tensor:
    """KL(exact || other) in nats, never below 0; both log-probabilities [..., vocabulary].

    In float64: in float32 the rounding of 49,152 terms would be as large as the divergence of two equal attentions.
    """
    exact, other = exact.double(), other.double()
    exact, other = exact - exact.logsumexp(-1, keepdim=True), other - other.logsumexp(-1, keepdim=True)
    terms = exact.exp() * (exact - other)
    return torch.where(exact.isneginf(), 0.0, terms).sum(-1).clamp_min(0.0)


def measure_fidelity(
    engine: Engine, ids: list[int], positions: int, policies: Mapping[str, CacheSettings], tell: Tell = ignore
) -> Iterator[tuple[str, Fidelity]]:
    """Every policy by name, as it is done; the first is exact attention itself.

    ids        of the text: all but the last `positions + 1` are read in chunks, then each but the last is fed
    policies   name -> how rows are kept and read; the context has room for all ids but the last

    The log-probabilities of exact attention, f32 [positions, vocabulary], are kept meanwhile: 100 MB for 512 positions of
    49,152 tokens.
    """
    first = len(ids) - positions - 1
    assert first > 0, "nothing would be read in chunks"
    prompt = Prompt(engine, ids[:first], tell)
    fed, truth = ids[first:-1], ids[first + 1 :]
    settings = next(iter(policies.values()), engine.settings)
    yardstick = exact_settings(settings)
    sequence = prompt.sequence(yardstick)
    followed = [(logits.log_softmax(-1), seconds) for logits, seconds in feed(engine, sequence, fed, tell)]
    exact = torch.stack([row for row, _ in followed])
    seconds = median(taken for _, taken in followed)
    nll = -float(exact[torch.arange(positions), truth].double().mean())
    yield EXACT, Fidelity(positions, 0.0, 0.0, 1.0, nll, nll, *_close(sequence), seconds, seconds)
    for name, chosen in policies.items():
        sequence = prompt.sequence(chosen)
        divergence, agreed, lost, times = [], 0, 0.0, []
        for index, (logits, taken) in enumerate(feed(engine, sequence, fed, tell)):
            other = logits.log_softmax(-1)
            divergence.append(float(kl_divergence(exact[index], other)))
            agreed += int(exact[index].argmax() == other.argmax())
            lost -= float(other[truth[index]])
            times.append(taken)
        read_share, bytes_share, bytes_read = _close(sequence)
        kl, error = mean_and_error(divergence)
        yield (
            name,
            Fidelity(
                positions=positions,
                kl=kl,
                kl_error=error,
                agreement=agreed / positions,
                nll=lost / positions,
                exact_nll=nll,
                read_share=read_share,
                bytes_share=bytes_share,
                bytes_read=bytes_read,
                seconds=median(times),
                exact_seconds=seconds,
            ),
        )


def tokens_of(engine: Engine, length: int, positions: int, policies: Sequence[CacheSettings]) -> dict[str, int]:
    """Tokens `measure_fidelity` will work on, by stage, for a text of `length` ids."""
    prompt = Prompt(engine, [0] * (length - positions - 1))
    ones = [exact_settings(policies[0] if policies else engine.settings), *policies]
    return {"read": prompt.reads(ones), "decode": positions * len(ones)}


def mean_fidelity(parts: Sequence[Fidelity]) -> Fidelity:
    """Several texts together, each position counting once; times are means of the texts' medians."""
    total = sum(part.positions for part in parts)

    def mean(name: str) -> float:
        return sum(part.positions * float(getattr(part, name)) for part in parts) / total

    error = math.sqrt(sum((part.positions * part.kl_error) ** 2 for part in parts)) / total
    names = ("agreement", "nll", "exact_nll", "read_share", "bytes_share", "bytes_read", "seconds", "exact_seconds")
    return Fidelity(total, mean("kl"), error, **{name: mean(name) for name in names})


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, positions taken as independent."""
    numbers = torch.tensor(values, dtype=torch.float64)
    error = float(numbers.std() / math.sqrt(len(values))) if len(values) > 1 else 0.0
    return float(numbers.mean()), error


def exact_settings(settings: CacheSettings) -> CacheSettings:
    """The same window and store, and every row read."""
    return replace(settings, select=EXACT, budget=None, quality=None)


def _close(sequence: Tokens) -> tuple[float, float, float]:
    """Shares of the store's rows and bytes that were read per token, and those bytes; the sequence is closed."""
    rows, stored = sequence.cache.rows(), sequence.cache.stored_bytes
    sequence.close()
    return rows.read_share, rows.bytes_share, rows.bytes_share * stored
