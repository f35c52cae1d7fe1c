"""The Typer app, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from hgca_cli import __version__
from hgca_cli.commands.chat import chat
from hgca_cli.commands.options import rename_aliases
from hgca_cli.commands.output import report
from hgca_cli.commands.pull import pull
from hgca_cli.errors import HgcaError

app = typer.Typer(
    name="hgca",
    help="Long-context LLM inference when the GPU is too small for the context, or there is none.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(name="chat")(chat)
app.command(name="pull")(pull)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hgca {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="HGCA_DEBUG", help="Show tracebacks of errors.")] = False,
) -> None:
    """Options before the command; `--debug` is looked for by `run`."""


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit code (docs/cli.md)."""
    debug = "--debug" in arguments or os.environ.get("HGCA_DEBUG", "").lower() in ("1", "true", "yes", "on")
    as_json = "--json" in arguments
    for stream in (sys.stdout, sys.stderr):  # a terminal or file that knows only ASCII gets replacements, no traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, _terminated)
    try:
        # --debug may stand anywhere
        rest = [word for word in rename_aliases(arguments) if word != "--debug"] or ["--help"]
        code = app(rest, standalone_mode=False)
        with contextlib.suppress(AttributeError):
            sys.stdout.flush()
        return int(code or 0)
    except HgcaError as error:
        _trace(debug)
        report(error.message, error.hint, error.code, as_json)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _trace(debug)
        return 130
    except BrokenPipeError:  # the reader has left: say nothing, also not when Python flushes at exit
        with contextlib.suppress(OSError, AttributeError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:
        return int(stop.code or 0) if isinstance(stop.code, (int, type(None))) else 1
    except Exception as error:
        return _other(error, debug, as_json)


def _other(error: Exception, debug: bool, as_json: bool) -> int:
    """A mistake in the arguments as Typer tells it, or an error nobody expected."""
    _trace(debug)
    told: Any = getattr(error, "format_message", None)
    if told is not None:
        command = getattr(getattr(error, "ctx", None), "command_path", "hgca")
        report(_one_line(told()), f"See {command} --help.", "usage", as_json)
        return int(getattr(error, "exit_code", 2))
    report(
        f"unexpected error: {type(error).__name__}: {_one_line(str(error))[:300]}",
        "" if debug else "--debug shows where; please report it.",
        "unexpected",
        as_json,
    )
    return 1


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _trace(debug: bool) -> None:
    if debug:
        traceback.print_exc()


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
