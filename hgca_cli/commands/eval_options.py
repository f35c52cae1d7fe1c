"""The options the commands of `hgca eval` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SelectSeveral = Annotated[
    list[str] | None,
    typer.Option(
        "--select",
        metavar="POLICY[:budget=SHARE][:quality=SHARE]",
        help="A policy that is compared, like scan:quality=0.95; commas separate several. May be repeated. "
        "Default: every one there is.",
    ),
]
BudgetSeveral = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="SHARE",
        help="Most of the store a head reads: 0.05 or 5%. Policies that take one run with each. May be repeated.",
    ),
]
QualitySeveral = Annotated[
    list[str] | None,
    typer.Option(
        "--quality",
        metavar="SHARE",
        help="Share of the attention mass to be read. Policies that take one run with each. May be repeated.",
    ),
]
Record = Annotated[
    Path | None, typer.Option("--record", metavar="FILE", help="Append every result to it as a JSON line, as it comes.")
]
