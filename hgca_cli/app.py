"""The Typer app, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from hgca_cli import __version__
from hgca_cli.commands import options
from hgca_cli.commands.aliases import config_first, dashed, rename_aliases, split_words
from hgca_cli.commands.batch import batch
from hgca_cli.commands.bench import bench
from hgca_cli.commands.chat import chat
from hgca_cli.commands.config import config as config_group
from hgca_cli.commands.defaults import not_of_its_kind, take_config
from hgca_cli.commands.doctor import doctor
from hgca_cli.commands.elsewhere import hint_for, refuse_foreign
from hgca_cli.commands.eval import evaluate
from hgca_cli.commands.interrupt import endings
from hgca_cli.commands.models import models
from hgca_cli.commands.origins import setter
from hgca_cli.commands.output import report
from hgca_cli.commands.profile import profile
from hgca_cli.commands.pull import pull
from hgca_cli.commands.sessions import sessions
from hgca_cli.errors import HgcaError, HgcaWarning
from hgca_cli.ui.inert import inert
from hgca_cli.ui.wrapped import columns_of, wrapped

COMMANDS: dict[str, Callable[..., None]] = {
    "chat": chat,
    "batch": batch,
    "profile": profile,
    "pull": pull,
    "doctor": doctor,
}
GROUPS: dict[str, typer.Typer] = {
    "bench": bench,
    "eval": evaluate,
    "sessions": sessions,
    "models": models,
    "config": config_group,
}
ANSWERING = ("chat", "batch", "eval")
SHORT = {  # what hgca --help has room for, where a command's own first sentence is longer
    "chat": "Talk with a model, over long documents if you like.",
    "profile": "Measure this machine, and show the plan for a model.",
    "pull": "Fetch a model, and print where it is.",
    "doctor": "Show every setting with its origin, and what looks wrong.",
    "eval": "Measure how good a policy is, beside reading all rows.",
}
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)  # nothing can be written there
TRUE = ("1", "true", "t", "yes", "y", "on")

app = typer.Typer(
    name="hgca",
    help="Long-context LLM inference when the GPU is too small for the context, or there is none.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _name, _command in COMMANDS.items():
    app.command(name=_name, short_help=SHORT.get(_name))(_command)
for _name, _group in GROUPS.items():
    app.add_typer(_group, name=_name, short_help=SHORT.get(_name))


def command_names(group: typer.Typer) -> list[str]:
    """The commands in a group."""
    return [str(command.name) for command in group.registered_commands]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hgca {__version__}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    color: options.Color = "auto",
    config: options.ConfigFile = None,
    debug: options.Debug = False,
) -> None:
    """What stands before the command, or in a config file, is the default of what stands after it."""
    if context.invoked_subcommand != "config":  # that is how a file with a mistake is mended
        take_config(context, config)


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit code (docs/cli.md)."""
    arguments = dashed(arguments)
    words, _ = split_words(arguments)
    debug = "--debug" in words or os.environ.get("HGCA_DEBUG", "").lower() in TRUE
    as_json = "--json" in words or os.environ.get("HGCA_JSON", "").lower() in TRUE
    _prepare_streams()
    warnings.showwarning = _show_warning
    command = next((word for word in words if word in {*COMMANDS, *GROUPS}), "")
    with endings():
        try:
            refuse_foreign(words)
            whole = _with_help(config_first(rename_aliases(arguments)))
            code = app(whole, prog_name="hgca", standalone_mode=False)
            sys.stdout.flush()
            return int(code or 0)
        except BrokenPipeError:
            return _reader_left()
        except SystemExit as stop:  # SIGTERM, SIGHUP; Typer, too, when the reader has left
            if isinstance(stop.__context__, BrokenPipeError):
                return _reader_left()
            return int(stop.code or 0) if isinstance(stop.code, (int, type(None))) else 1
        except io.UnsupportedOperation as error:  # standard output is closed: who asked for an answer misses it
            if command not in ANSWERING or {"--help", "-h"} & {*words}:
                return _reader_left()
            return _failed(error, debug, as_json, command)
        except BaseException as error:
            return _failed(error, debug, as_json, command)


def _with_help(words: list[str]) -> list[str]:
    """Nothing, or a group of commands and none of these: its help is what is wanted."""
    alone = bool(words) and words[-1] in GROUPS and not {*COMMANDS, *GROUPS} & {*words[:-1]}
    return [*words, "--help"] if alone or not words else words


def _failed(error: BaseException, debug: bool, as_json: bool, command: str) -> int:
    """Tell what went wrong; returns the exit code."""
    if debug:
        traceback.print_exception(error)
    message, hint, code, exit_code = _explain(error, debug, command)
    if exit_code == 130:  # Ctrl-C: the person knows
        return exit_code
    try:
        report(message, hint, code, exit_code, as_json)
        sys.stdout.flush()
    except (
        OSError
    ):  # nobody can be told, or a full disk keeps what is buffered: Python would try again at exit, and say so
        return _reader_left(exit_code)
    return exit_code


def _explain(error: BaseException, debug: bool, command: str) -> tuple[str, str, str, int]:
    """Message, hint, machine-readable word and exit code of an error. command: that was begun, "" if none was."""
    if isinstance(error, HgcaError):
        return error.message, error.hint, error.code, error.exit_code
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return "interrupted.", "", "interrupted", 130
    told: Any = getattr(error, "format_message", None)  # a mistake in the arguments, as Typer tells it
    if told is not None:
        command = getattr(getattr(error, "ctx", None), "command_path", f"hgca {command}".rstrip())
        words = re.sub(r"\s*\(Possible options: (.+)\)", r". Did you mean \1?", _not_a(error) or str(told()))
        words = words if words.endswith((".", "?", "!")) else f"{words}."
        return words, hint_for(words, f"See {command} --help."), "usage", int(getattr(error, "exit_code", 2))
    if isinstance(error, OSError) and (error.errno in DISK or isinstance(error, io.UnsupportedOperation)):
        where = error.filename or "the output"
        return (
            f"cannot write {where}: {error.strerror or 'it is closed'}.",
            "Make room, or write elsewhere.",
            "output",
            1,
        )
    what = f"unexpected error: {type(error).__name__}: {str(error)[:300]}".rstrip(": ")
    return what, "" if debug else "(--debug shows the traceback; please report it.)", "unexpected", 1


def _not_a(error: BaseException) -> str:
    """That a value is not of its option's kind, naming the option and the variable that set it; "" for any other mistake."""
    why, param = not_of_its_kind(getattr(error, "message", "")), getattr(error, "param", None)
    context = getattr(error, "ctx", None)
    if not why or param is None or context is None:
        return ""
    by = setter(context, param.name)
    told = f" (set by {by[1]} in the environment)" if by is not None and by[0] == "environment" else ""
    return f"{param.opts[0]}: {why}{told}."


def _prepare_streams() -> None:
    """Streams that are there and never refuse a character: one that cannot be shown is replaced."""
    if sys.stdout is None:  # the shell closed it (>&-): nothing can be written there, and nothing else gets its number
        sys.stdout = open(os.devnull)  # noqa: SIM115, PTH123  (for as long as the process runs)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _reader_left(code: int = 0) -> int:
    """Say nothing, also not when Python flushes at exit."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """One line on stderr for a person, without file and line."""
    kind = "warning" if issubclass(category, HgcaWarning) else f"warning ({category.__name__})"
    text = f"hgca: {kind}: {inert(' '.join(str(message).split()))}"
    print(wrapped(text, columns_of(sys.stderr)), file=sys.stderr, flush=True)
