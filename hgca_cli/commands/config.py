"""`hgca config`: what was set once and for all, where, and what comes of it."""

from __future__ import annotations

import contextlib
import json as jsons
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgca_cli import durable
from hgca_cli.commands import options
from hgca_cli.commands.config_file import LOCAL, NEGATED, SAMPLING, SESSIONS, UI, Config, config_of, user_file
from hgca_cli.commands.defaults import check_option, take_config
from hgca_cli.commands.origins import setter
from hgca_cli.errors import DoesNotFitError, ModelError, UsageError
from hgca_cli.ui.editor import edited_elsewhere
from hgca_cli.ui.inert import inert

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

config = typer.Typer(help="What is set in files: path, show, get, set, unset, edit.")
Key = Annotated[str, typer.Argument(metavar="KEY", help="Like model, sampling.temp, aliases.NAME, models.NAME.window.")]
PRIVATE = 0o600  # the user's own
UNTOLD = ("context", "words", "prompt", "file", "continue_", "reread")


@config.command("path")
def show_paths(context: typer.Context, debug: options.Debug = False) -> None:
    """The files, the one that wins first, and whether they are there."""
    for file in _files(context):
        typer.echo(inert(f"{file}{'' if file.is_file() else ' (not there)'}"))


@config.command("show")
def show_settings(context: typer.Context, json: options.JsonDocument = False, debug: options.Debug = False) -> None:
    """Every setting of a chat, and who decided it. What needs a model to be known, hgca doctor shows."""
    rows = _settings(context)
    if json:
        typer.echo(jsons.dumps([{"name": name, "value": value, "origin": origin} for name, value, origin in rows]))
        return
    for name, value, origin in rows:
        typer.echo(inert(f"{name:<18}{_shown(value):<24}  {origin}".rstrip()))


@config.command("get")
def get_setting(context: typer.Context, key: Key, debug: options.Debug = False) -> None:
    """The value of one setting, wherever it comes from."""
    path = _path_of(key)
    if path[0] in ("aliases", "models"):
        taken = take_config(context.find_root(), context.find_root().params.get("config"))
        table: Any = taken.aliases if path[0] == "aliases" else {
            name: {option: value for option, (value, _) in own.items()} for name, own in taken.models.items()
        }  # fmt: skip
        for part in path[1:]:
            table = table.get(part) if isinstance(table, dict) else None
        if table is None:
            raise UsageError(f"{key} is not set.", "hgca config show lists what is.")
        typer.echo(inert(_shown(table)))
        return
    values = {name: value for name, value, _ in _settings(context)}
    name = path[-1].replace("-", "_")
    if name in NEGATED:
        typer.echo(_shown(not values[NEGATED[name]]))
    elif name in values:
        typer.echo(inert(_shown(values[name])))
    else:
        raise UsageError(f"no setting {key}.", "hgca config show lists them.")


@config.command("set", context_settings={"ignore_unknown_options": True})  # a value may begin with a minus
def set_setting(
    context: typer.Context,
    key: Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="As in the file; quotes may be left out.")],
    debug: options.Debug = False,
) -> None:
    """Set one key in the user's file. Comments and everything else stay as they are."""
    import tomlkit  # here: help and Tab need not wait for it

    file = user_file()
    document = _document(file)
    path = _path_of(key)
    table: Any = document
    for part in path[:-1]:
        table = table.setdefault(part, tomlkit.table())
        if not isinstance(table, dict):
            raise UsageError(f"{file}: {part} is not a table.", "hgca config edit opens it.")
    table[_written(table, path)] = _parsed(value)
    _write(context, file, tomlkit.dumps(document))
    typer.echo(inert(f"{file}: {key} = {value}"))


@config.command("unset")
def unset_setting(context: typer.Context, key: Key, debug: options.Debug = False) -> None:
    """Take a key, or a whole table, out of the user's file. Comments and everything else stay as they are."""
    import tomlkit

    file = user_file()
    document = _document(file)
    path = _path_of(key)
    tables: list[Any] = [document]
    for part in path[:-1]:
        inner = tables[-1].get(part)
        tables.append(inner if isinstance(inner, dict) else {})
    written = _written(tables[-1], path)
    if written not in tables[-1]:
        raise UsageError(
            f"{file}: {key} is not set there.", f"hgca config get {key} tells what it is, and show who set it."
        )
    tables[-1].remove(written)
    for part, outer, inner in reversed(list(zip(path[:-1], tables[:-1], tables[1:], strict=True))):
        if not inner:  # a table of which nothing is left
            outer.remove(part)
    _write(context, file, tomlkit.dumps(document))
    typer.echo(inert(f"{file}: {key} is no longer set"))


@config.command("edit")
def edit_file(context: typer.Context, debug: options.Debug = False) -> None:
    """Open the user's file in $VISUAL or $EDITOR. What is no config is kept beside it, for the next edit to begin with."""
    file = user_file()
    rejected = file.with_name(f"{file.name}.rejected")
    begin = next((one for one in (rejected, file) if one.is_file()), None)
    text = "# hgca: see docs/cli.md, Configuration\n" if begin is None else begin.read_text(encoding="utf-8")
    text = edited_elsewhere(text, file.name, f"change {file} with hgca config set KEY VALUE")
    try:
        _write(context, file, text)
    except UsageError as error:
        with contextlib.suppress(OSError):  # the error is what there is to say
            rejected.parent.mkdir(parents=True, exist_ok=True)
            durable.replace(rejected, text.encode(), PRIVATE)
            error.hint += " What you wrote is not lost: hgca config edit opens it again."
        raise
    rejected.unlink(missing_ok=True)


def _files(context: typer.Context) -> list[Path]:
    given = context.find_root().params.get("config")
    return [given or Path(LOCAL).absolute(), user_file()]


def _settings(context: typer.Context) -> list[tuple[str, Any, str]]:
    """Name, value and origin of every option of a chat that is started without one."""
    root = context.find_root()
    taken = take_config(root, root.params.get("config"))
    chat: Any = root.command.commands["chat"]  # type: ignore[attr-defined]
    inner = chat.make_context("chat", [], parent=root)
    rows = []
    for param in chat.params:
        if param.name in UNTOLD or param.name not in inner.params:
            continue
        found = setter(inner, param.name)
        value = inner.params[param.name]
        value = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        rows.append((param.name, value, taken.origins.get(param.name, "default") if found is None else found[1]))
    return rows


def _path_of(key: str) -> list[str]:
    """The parts of a key; the section of an option may be left out."""
    try:
        table: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{key!r} is no key.", "Like sampling.temp; quote a name with dots: 'models.\"a/b.c\".ctx'"
        ) from error
    parts = []
    while isinstance(table, dict):
        part, table = next(iter(table.items()))
        parts.append(part)
    if len(parts) == 1 and parts[0] != "model":
        name = parts[0].replace("-", "_")
        section = (
            "sampling" if name in SAMPLING else "sessions" if name in SESSIONS else "ui" if name in UI else "defaults"
        )
        return [section, name]
    return parts


def _written(table: Any, path: list[str]) -> str:
    """The last part of a key as it stands in its table: an option may have dashes there, a name that somebody gave is what it is."""
    name = path[-1]
    if len(path) == 2 and path[0] in ("aliases", "models"):
        return name
    return next((one for one in table if one.replace("-", "_") == name.replace("-", "_")), name)


def _parsed(value: str) -> Any:
    """A value as TOML reads it, else as a text."""
    try:
        return tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        return value


def _document(file: Path) -> TOMLDocument:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        return tomlkit.parse(file.read_text(encoding="utf-8")) if file.is_file() else tomlkit.document()
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not TOML: {error}.", "hgca config edit opens it.") from error
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror}.", "Set HGCA_CONFIG to another file.") from error


def _write(context: typer.Context, file: Path, text: str) -> None:
    """Put it there, whole or not at all, if it is a config. Raises UsageError if it is none."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"that is not TOML: {error}.", f"{file} stays as it was.") from error
    chat: Any = context.find_root().command.commands["chat"]  # type: ignore[attr-defined]
    _check_chats(context, config_of(table, file, [param.name for param in chat.params]))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        target = Path(os.path.realpath(file))  # a link to a file among others (dotfiles) stays one
        durable.replace(target, text.encode(), PRIVATE)
    except OSError as error:
        if durable.is_full(error):
            raise DoesNotFitError(f"cannot write {file}: {error.strerror}.", "Free some space.") from error
        raise ModelError(f"{file}: {error.strerror}.", "Set HGCA_CONFIG to another file.") from error


def _check_chats(context: typer.Context, config: Config) -> None:
    """Raises UsageError for what every chat would refuse, or every chat with one of the models that have options of their own."""
    from hgca_cli.commands.flag_values import balance_of, dashboard_of, guesses_of
    from hgca_cli.commands.question import checked, keeping_of

    root = context.find_root()
    chat: Any = root.command.commands["chat"]  # type: ignore[attr-defined]
    options = {param.name: param for param in chat.params}
    usual = {name: param.process_value(root, param.default) for name, param in options.items() if name != "model"}
    all_chats = {name: (value, config.origins[name]) for name, value in config.options.items() if name != "model"}
    for own in ({}, *config.models.values()):
        given = dict(usual)
        for name, (value, origin) in (all_chats | own).items():
            check_option(root, options[name], value, origin)
            given[name] = options[name].process_value(root, value)
        checked(given)
        keeping_of(given)
        balance_of(given["balance"])
        guesses_of(given["prompt_lookup"])
        dashboard_of(given)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else jsons.dumps(value) if isinstance(value, (list, dict)) else str(value)
