"""`hgca pull`: a model onto this machine, ready to open fast."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hgca_cli.commands import options
from hgca_cli.events import Event, Notice
from hgca_cli.hf.registry import DEFAULT, resolve
from hgca_cli.ui.inert import inert
from hgca_cli.units import format_bytes


def pull(
    name: Annotated[str, typer.Argument(help="Alias, hub id, or a .gguf file to convert.")] = DEFAULT,
    revision: options.Revision = None,
    offline: options.Offline = False,
) -> None:
    """Fetch a model (and convert a GGUF file), and print where it is."""
    files = resolve(name, revision=revision, offline=offline, notify=_tell)
    size = sum(file.stat().st_size for file in files.path.iterdir() if file.is_file())
    typer.echo(f"{inert(name)}: {format_bytes(size)} in {files.path}")


def _tell(event: Event) -> None:
    if isinstance(event, Notice):
        print(inert(event.text), file=sys.stderr, flush=True)
