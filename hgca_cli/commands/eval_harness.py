"""`hgca eval harness`: the lm-evaluation-harness, with hgca among its models."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import typer

from hgca_cli.commands import options
from hgca_cli.errors import ModelError


def harness(context: typer.Context, debug: options.Debug = False) -> None:
    """Run lm_eval on hgca: everything after the command goes to it as it stands.

    Like: hgca eval harness --tasks lambada_openai --model_args window=256,select=moving-average
    """
    if find_spec("lm_eval") is None:
        raise ModelError("the lm-evaluation-harness is not installed.", "Install it: pip install 'hgca[eval]'")
    from lm_eval.__main__ import cli_evaluate

    import hgca_cli.commands.harness  # noqa: F401  (registers the model)

    before = sys.argv
    sys.argv = ["lm_eval", "--model", "hgca", *context.args]  # it looks nowhere else
    try:
        cli_evaluate()
    finally:
        sys.argv = before
