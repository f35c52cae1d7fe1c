"""What a chat is asked, and whether its flags go together: all of it looked at before anything is loaded."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgca_cli.commands.flag_values import one_of
from hgca_cli.commands.flags import OVERFLOW, exclude, exclude_prompt_flags, plan_request, sampling_flags
from hgca_cli.commands.inputs import meant_by, prompt_text, read_document, read_stdin, read_text, stdin_has_text
from hgca_cli.commands.keeping import Keeping
from hgca_cli.errors import ModelError, UsageError
from hgca_cli.hf.registry import aliases
from hgca_cli.ui.console import MARKDOWN
from hgca_cli.ui.style import Style, style_of
from hgca_cli.units import parse_bytes

if TYPE_CHECKING:
    from hgca_cli.commands.inputs import Document
    from hgca_cli.hardware.settings import PlanRequest

MOST_NAMED = 3  # files in a message
# org/name, where the name says a size or a version as those of models do: and/or is none
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/(?=[\w.-]*\d)(?=[\w.-]*-)[\w.-]+(:\w+)?")


def checked(given: Mapping[str, Any]) -> tuple[Style, PlanRequest, dict[str, Any]]:
    """What can be refused without looking at any file."""
    exclude_prompt_flags(given)
    exclude(given, "json", "plain")
    exclude(given, "raw", "session")
    one_of(given["overflow"], "--overflow", OVERFLOW)
    if one_of(given["markdown"], "--markdown", MARKDOWN) == "on" and (given["json"] or given["plain"]):
        other = "--json" if given["json"] else "--plain"
        raise UsageError(f"--markdown on and {other} exclude each other.", "Drop one of them.")
    if given["continue_"] and (given["session"] or given["raw"]):
        other = "--session" if given["session"] else "--raw"
        raise UsageError(f"--continue and {other} exclude each other.", "Drop one of them.")
    if given["reread"] and not (given["continue_"] or given["session"]):
        raise UsageError("--reread needs a session.", "Add --session NAME.")
    if given["prompt"] is not None and given["words"]:
        raise UsageError("--prompt and a prompt without a flag exclude each other.", "Drop one of them.")
    return style_of(given["color"], plain=given["plain"]), plan_request(given), sampling_flags(given)


def meant_otherwise(given: Mapping[str, Any]) -> list[str]:
    """What is likely meant as other tools take it."""
    told = []
    name = given["words"][0] if given["words"] else ""
    alone = len(given["words"] or ()) == 1
    if name in aliases() or (alone and HUB_ID.fullmatch(name)) or _is_model(name):
        told.append(f"{name} is the name of a model, and taken for the question: -m {name} chooses the model")
    elif _is_file(name):
        told.append(f"{name} is a file, and its name is taken for the question: -f {name} reads it")
    if given["system"] is not None and given["system"].strip().isdigit():
        told.append(f"the system message is {given['system']}: --seed sets the seed")
    return told


def _is_model(name: str) -> bool:
    return (name.lower().endswith(".gguf") and _is_file(name)) or _is_file(f"{name}/config.json")


def _is_file(name: str) -> bool:
    try:
        return bool(name) and Path(name).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long for a name, no home: a question
        return False


def keeping_of(given: Mapping[str, Any]) -> Keeping:
    """What is kept on disk. Raises UsageError for a size that is none."""
    limit = parse_bytes(given["kv_disk_limit"], "--kv-disk-limit")
    save, rows = not given["no_save"], not given["no_save_kv"]
    return Keeping(save=save, rows=rows, cache=not given["no_cache"], limit=limit, reread=given["reread"])


def system_message(text: str | None, file: Path | None) -> str | None:
    if file is not None:
        return read_text(file.expanduser(), str(file)).strip()
    return None if text is None else prompt_text(text, "--system")


def inputs_of(given: Mapping[str, Any]) -> tuple[str | None, list[Document]]:
    """The question, None for a conversation, and the documents: a pipe comes before the words of the command line."""
    paths = given["file"] or []
    if paths.count("-") > 1:
        raise UsageError("--file -: standard input can be read only once.", "Give it once.")
    said = given["prompt"] if given["prompt"] is not None else " ".join(given["words"] or ())
    said = prompt_text(said, "the prompt")
    for path in paths:
        if files := meant_by(path):
            told = " ".join(f"-f {shlex.quote(one)}" for one in files[:MOST_NAMED])
            more = (
                f" and so on; in a conversation /glob {shlex.quote(path)} reads all" if len(files) > MOST_NAMED else ""
            )
            raise ModelError(f"{path}: no such file.", f"Name each: {told}{more}.")
    documents = [read_document(path) for path in paths]
    if given["prompt"] is None and not given["words"] and not stdin_has_text():
        if sys.stdin is None or sys.stdin.closed:
            raise UsageError("standard input is closed: there is nobody to talk to.", "Give a prompt: hgca chat -p ...")
        return None, documents
    piped = read_stdin() if "-" not in paths and stdin_has_text() else ""
    if not given["raw"]:
        piped = piped.strip()
    question = f"{piped}\n\n{said}" if piped and said else piped or said
    if not question.strip():
        raise UsageError("the prompt is empty.", "Give one: hgca chat -p 'your question'")
    return question, documents
