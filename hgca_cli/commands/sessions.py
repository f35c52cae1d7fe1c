"""`hgca sessions`: what was kept of chats, and what shall go."""

from __future__ import annotations

import json as jsons
import sys
import time
from typing import Annotated

import typer

from hgca_cli.commands import options
from hgca_cli.commands.flag_values import choice_of
from hgca_cli.engine.session_files import sessions_dir
from hgca_cli.engine.sessions import File, Links, every_session, kept_bytes, messages_of, one_session, remove
from hgca_cli.engine.transcript import exported
from hgca_cli.errors import HgcaError, UsageError
from hgca_cli.ui.inert import inert
from hgca_cli.ui.session_table import session_lines, session_record, sessions_table
from hgca_cli.ui.style import is_terminal, style_of
from hgca_cli.ui.wrapped import columns_of, wrapped
from hgca_cli.units import format_bytes, parse_age, parse_bytes

FORMATS = ("md", "json", "openai")

sessions = typer.Typer(help="What was kept of chats: list, show, remove, export, prune.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The session's name.")]


@sessions.command("ls")
def list_sessions(
    json: options.JsonDocument = False,
    quiet: options.Quiet = False,
    color: options.Color = "auto",
    debug: options.Debug = False,
) -> None:
    """Every session, the latest first. Name, tokens, bytes, age, model, and how it begins; --quiet: names only."""
    found = every_session()
    if json:
        typer.echo(jsons.dumps([session_record(one) for one in found], indent=2))
    elif quiet:
        for one in found:
            typer.echo(inert(one.name))
    elif not found:
        typer.echo("no sessions yet: hgca chat --session NAME begins one")
    else:
        begins = [next((m["content"] for m in messages_of(one) if m["role"] == "user"), "") for one in found]
        colored = style_of(color, plain=False).color
        typer.echo(sessions_table(found, begins, time.time(), color=colored, columns=columns_of(sys.stdout)))
        typer.echo(inert(f"{format_bytes(kept_bytes(sessions_dir()))} of rows in {sessions_dir()}"))


@sessions.command("show")
def show_session(name: Name, json: options.JsonDocument = False, debug: options.Debug = False) -> None:
    """What is kept of one session: its run, its rows, its files."""
    found = one_session(name)
    if json:
        typer.echo(jsons.dumps(session_record(found) | {"messages": len(messages_of(found))}, indent=2))
    else:
        lines = session_lines(found, messages_of(found), time.time())
        typer.echo(wrapped("\n".join(lines), columns_of(sys.stdout)))


@sessions.command("rm")
def remove_sessions(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Sessions to remove.")],
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Remove sessions, their text included."""
    links = Links(every_session())
    for one in [one_session(name) for name in dict.fromkeys(names)]:  # all of them are there, or none is removed
        remove(one)
        freed = links.take(one)
        if not quiet:
            typer.echo(inert(f"removed {one.name} ({format_bytes(freed)} freed)"))


@sessions.command("export")
def export_session(
    name: Name,
    form: Annotated[
        str,
        typer.Option(
            "--format", metavar="md|json|openai", help="Markdown, one object, or messages for the OpenAI API."
        ),
    ] = "md",
    debug: options.Debug = False,
) -> None:
    """Print the text of a session. Of a damaged one what can be read."""
    kind = choice_of(form, "--format", FORMATS)
    if kind is None:
        raise UsageError("--format: no such choice 'auto'.", f"Choose from {', '.join(FORMATS)}.")
    found = one_session(name)
    text = exported(messages_of(found), kind, session_record(found))
    if found.wrong:
        typer.echo(
            inert(f"hgca: warning: session {name} is damaged ({found.wrong}): this is what can be read"), err=True
        )
    typer.echo(inert(text) if is_terminal(sys.stdout) else text)


@sessions.command("prune")
def prune_sessions(
    keep: Annotated[int | None, typer.Option("--keep", metavar="N", min=0, help="So many of the latest stay.")] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="What was not used for longer goes: 12h, 30d, 8w.")
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option("--max-size", metavar="SIZE", help="The latest stay, as long as these have no more bytes."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing: show what would go.")] = False,
    json: options.JsonDocument = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Remove the sessions that any of the options names. One that is open stays."""
    if keep is None and older_than is None and max_size is None:
        raise UsageError("prune: nothing says what goes.", "Give --keep, --older-than or --max-size.")
    age = None if older_than is None else parse_age(older_than, "--older-than")
    most = None if max_size is None else parse_bytes(max_size, "--max-size")
    found = every_session()
    links, gone, stay = Links(found), [], []
    held: dict[File, int] = {}  # what stays, by file: sessions that begin alike have some in common
    for place, one in enumerate(found):
        too_old = age is not None and time.time() - one.used > age
        too_much = most is not None and sum((held | one.files).values()) > most
        if not ((keep is not None and place >= keep) or too_old or too_much):
            held |= one.files
            continue
        try:
            remove(one, pretend=dry_run)
            gone.append((one, links.take(one)))
        except HgcaError as error:
            held |= one.files
            stay.append({"name": one.name, "why": str(error)})
            typer.echo(inert(f"hgca: warning: {error}"), err=True)
    if json:
        removed = [session_record(one) | {"freed": freed} for one, freed in gone]
        typer.echo(jsons.dumps({"removed": removed, "kept": stay, "dry_run": dry_run}, indent=2))
    elif not quiet:
        for one, freed in gone:
            done = "would remove" if dry_run else "removed"
            typer.echo(inert(f"{done} {one.name} ({format_bytes(freed)} freed)"))
        if not gone:
            typer.echo("nothing to remove")
