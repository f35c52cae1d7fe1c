"""`hgca eval`: what reading only a part of the store costs in quality, against reading all of it."""

from __future__ import annotations

import typer

from hgca_cli.commands.eval_drift import drift
from hgca_cli.commands.eval_fidelity import fidelity
from hgca_cli.commands.eval_harness import harness
from hgca_cli.commands.eval_recall import recall
from hgca_cli.commands.lists import ListCommand

evaluate = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})


@evaluate.callback()
def _group() -> None:
    """Measure how good a policy is: the same tokens, with all rows of the store read and with those it chooses."""


evaluate.command("fidelity", cls=ListCommand, short_help="How near each policy is to exact attention.")(fidelity)
evaluate.command("recall", cls=ListCommand, short_help="How often each finds what a long prompt hides.")(recall)
evaluate.command("drift", cls=ListCommand, short_help="How far each strays over thousands of tokens.")(drift)
evaluate.command(
    "harness",
    short_help="Run lm_eval on hgca.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
)(harness)
