"""`hgca models`: which models are on this machine, what a token of context takes with them, and which shall go."""

from __future__ import annotations

import json as jsons
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgca_cli.commands import options
from hgca_cli.commands.completion import complete_model
from hgca_cli.errors import HgcaError
from hgca_cli.ui.inert import inert
from hgca_cli.units import format_bytes

if TYPE_CHECKING:
    from hgca_cli.hf.places import Stored

ITEM = 2  # bytes of a number of keys and values, as bf16 and fp16 have them

models = typer.Typer(help="Models on this machine: list, remove.")


@models.command("ls")
def list_models(json: options.JsonDocument = False, quiet: options.Quiet = False, debug: options.Debug = False) -> None:
    """Every model that is here, and short names.

    Fetched or converted ones, and weights that --quant packed, with their bytes, and the bytes of 16-bit keys and values a
    token of context has.

    --quiet: names only.
    """
    from hgca_cli.hf.places import PACKED, model_places, packed_models
    from hgca_cli.hf.registry import PACKAGED, aliases

    stored = [(place.kind, one) for place in model_places() for one in place.models]
    packed = [(PACKED, one) for one in packed_models()]
    if quiet and not json:
        for _, one in stored:
            typer.echo(inert(one.name))
        return
    rows = [_row(kind, one) for kind, one in [*stored, *packed]]
    if json:
        typer.echo(jsons.dumps({"models": rows, "aliases": aliases()}))
        return
    wide = max([len(row["name"]) for row in rows] + [4])
    if rows:
        typer.echo(f"{'name':<{wide}}  {'bytes':>10}  {'KV a token':>10}  {'context':>9}  from")
    for row in rows:
        per = format_bytes(row["kv_bytes_per_token"]) if row["kv_bytes_per_token"] else "?"
        trained = f"{row['trained_context']:,}" if row["trained_context"] else "?"
        whole = "" if row["whole"] else " (not whole)"
        line = f"{row['name']:<{wide}}  {format_bytes(row['bytes']):>10}  {per:>10}  {trained:>9}  {row['kind']}{whole}"
        typer.echo(inert(line))
    typer.echo("" if rows else "no models yet: hgca pull fetches the default one")
    for name, target in aliases().items():
        typer.echo(inert(f"{name} = {'the default model, of a Python package' if target == PACKAGED else target}"))


@models.command("rm")
def remove_models(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Models to remove, as `ls` shows them.", autocompletion=complete_model),
    ],
    packed: Annotated[bool, typer.Option("--packed", help="Only the weights that --quant packed.")] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Remove models, and weights that --quant packed.

    NAME is what ls shows, an alias, a GGUF file's path, or a converted file's name without its last part.
    """
    from hgca_cli.hf.removing import of_name, remove

    found = [one for name in dict.fromkeys(names) for one in of_name(name, packed_only=packed)]
    for kind, one in dict.fromkeys(found):  # all of them are there, or none is removed
        remove(kind, one)
        if not quiet:
            typer.echo(inert(f"removed {one.name} ({format_bytes(one.bytes)}, {kind})"))


def _row(kind: str, one: Stored) -> dict[str, Any]:
    """A model as plain data; what its config does not tell is null."""
    from pathlib import Path

    from hgca_cli.commands.describe import describe
    from hgca_cli.hf.registry import ModelFiles

    row: dict[str, Any] = {"name": one.name, "path": one.path, "kind": kind, "bytes": one.bytes, "whole": one.whole}
    row |= {"kv_bytes_per_token": None, "trained_context": None}
    folders = [Path(one.path), *Path(one.path).glob("snapshots/*")] if one.whole else []
    for folder in folders:
        if (folder / "config.json").is_file():
            try:
                model = describe(ModelFiles(one.name, folder), False)
            except HgcaError:
                continue
            return row | {
                "kv_bytes_per_token": ITEM
                * sum(one.row_elements for one in model.layout.layers if one.sliding is None),
                "trained_context": model.trained_context,
            }
    return row
