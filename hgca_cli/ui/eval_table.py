"""Evaluations as tables: the columns of `hgca eval`, a line per result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT, POLICY = 22, 30  # characters

FIDELITY = (
    f"{'text':{TEXT}} {'policy':{POLICY}} {'KL':>8} {'+-':>7} {'agree':>6} {'ppl':>7} {'change':>7}"
    f" {'rows':>6} {'bytes':>6} {'ms/tok':>7}"
)
FIDELITY_LEGEND = (
    "KL: mean KL(exact || policy) of the next token in nats, with its standard error. agree: same likeliest token. ppl,\n"
    "change: perplexity of the text, and against exact attention. rows, bytes: share of the store read per token, indexes\n"
    "included. ms/tok: median."
)


def fidelity_line(record: Mapping[str, Any]) -> str:
    """One text and policy, or all texts (docs/cli.md, `fidelity`)."""
    return (
        f"{_cut(record['text'], TEXT)} {_cut(record['policy'], POLICY)} {record['kl']:>8.5f} {record['kl_error']:>7.5f} "
        f"{record['agreement']:>6.1%} {record['perplexity']:>7.2f} {record['perplexity_change']:>+7.2%} "
        f"{record['read_share']:>6.1%} {record['bytes_share']:>6.1%} {record['seconds'] * 1e3:>7.1f}"
    )


def _cut(text: str, width: int) -> str:
    return f"{text if len(text) <= width else text[: width - 1] + '…':{width}}"
