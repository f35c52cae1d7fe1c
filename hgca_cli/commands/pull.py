"""`hgca pull`: a model onto this machine, ready to open fast."""

from __future__ import annotations

from typing import Annotated

import typer

from hgca_cli.commands import options
from hgca_cli.hf.places import on_disk
from hgca_cli.hf.registry import DEFAULT, resolve
from hgca_cli.ui.console import HumanSink
from hgca_cli.ui.inert import inert
from hgca_cli.ui.style import style_of
from hgca_cli.units import format_bytes


def pull(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Alias, hub id (org/name, org/name:Q4_K_M), or a .gguf file.")
    ] = DEFAULT,
    revision: options.Revision = None,
    offline: options.Offline = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    color: options.Color = "auto",
    debug: options.Debug = False,
) -> None:
    """Fetch a model (and convert a GGUF file), and print where it is."""
    sink = HumanSink(style_of(color, plain=False), stats=False, stream=True, quiet=quiet)
    files = resolve(name, revision=revision, offline=offline, notify=sink.show)
    sizes = {file.name: on_disk(file.stat()) for file in sorted(files.path.iterdir()) if file.is_file()}
    if verbose:
        for file, size in sizes.items():
            sink.tell(f"{format_bytes(size):>12}  {file}")
    typer.echo(inert(f"{name}: {format_bytes(sum(sizes.values()))} in {files.path}"))
