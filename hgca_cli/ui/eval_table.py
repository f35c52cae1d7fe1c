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


RECALL = (
    f"{'task':{TEXT}} {'tokens':>7} {'policy':{POLICY}} {'right':>9} {'first':>9} {'ln p':>7} {'rows':>6} {'bytes':>6}"
    f" {'MB/tok':>7}"
)
RECALL_LEGEND = (
    "right: answers that hold what was asked for. first: the right answer is the likeliest of ten, ln p: its\n"
    "log-probability (with --score). rows, bytes: share of the store read per token, and its megabytes."
)


def recall_line(record: Mapping[str, Any]) -> str:
    """One task, length and policy (docs/cli.md, `recall`)."""
    count = record["count"]
    first = "-" if record["first"] is None else f"{record['first']}/{record['scored']}"
    log_prob = "-" if record["log_prob"] is None else f"{record['log_prob']:.2f}"
    return (
        f"{_cut(record['task'], TEXT)} {record['tokens']:>7} {_cut(record['policy'], POLICY)} "
        f"{record['right']:>{8 - len(str(count))}}/{count} {first:>9} {log_prob:>7} "
        f"{record['read_share']:>6.1%} {record['bytes_share']:>6.1%} {record['bytes_read'] / 1e6:>7.2f}"
    )


DRIFT = (
    f"{'text':{TEXT}} {'policy':{POLICY}} {'KL':>8} {'by quarter':>35} {'last/1st':>8} {'agree':>6} {'new':>5}"
    f" {'rows':>6} {'bytes':>6} {'ms/tok':>7}"
)
DRIFT_LEGEND = (
    "KL: mean KL(exact || policy) of the next token in nats, on the text the policy wrote. last/1st: last quarter over the\n"
    "first. agree: same likeliest token. new: share of runs of four tokens that are no repetition. rows, bytes: share of\n"
    "the store read per token, indexes included. ms/tok: median."
)


def drift_line(record: Mapping[str, Any]) -> str:
    """One text and policy (docs/cli.md, `drift`)."""
    quarters = " ".join(f"{one:>8.5f}" for one in record["quarters"])
    growth = "inf" if record["growth"] is None else f"{record['growth']:.2f}"
    return (
        f"{_cut(record['text'], TEXT)} {_cut(record['policy'], POLICY)} {record['kl']:>8.5f} {quarters} {growth:>8} "
        f"{record['agreement']:>6.1%} {record['distinct']:>5.0%} {record['read_share']:>6.1%} "
        f"{record['bytes_share']:>6.1%} {record['seconds'] * 1e3:>7.1f}"
    )


def _cut(text: str, width: int) -> str:
    return f"{text if len(text) <= width else text[: width - 1] + '…':{width}}"
