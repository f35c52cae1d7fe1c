"""What is wanted of answers, as JSON on the command line: a schema they fit, and options of the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hgca_cli.commands.inputs import prompt_text, read_text
from hgca_cli.errors import UsageError
from hgca_cli.hf.template import wrong_option


def schema_of(text: str, flag: str = "--json-schema") -> str:
    """A JSON schema that can be used, as JSON. Raises UsageError naming what is wrong with it, or what to install."""
    from hgca_cli.hf import grammar

    if not grammar.is_there():
        raise UsageError(f"{flag} needs the package llguidance.", f"{grammar.REMEDY}.")
    try:
        return grammar.checked(prompt_text(text, flag))
    except ValueError as error:
        raise UsageError(
            f"{flag}: {str(error)[:300].rstrip('.')}.", "See json-schema.org for what a schema is."
        ) from error


def schema_flag(given: Mapping[str, Any]) -> str | None:
    """The schema of --json-schema or --json-schema-file; None without. Raises UsageError, ModelError."""
    path: Path | None = given.get("json_schema_file")
    if path is not None:
        return schema_of(read_text(path.expanduser(), str(path)), "--json-schema-file")
    text: str | None = given.get("json_schema")
    return None if text is None else schema_of(text)


def template_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the chat template that --chat-template-kwargs gives. Raises UsageError."""
    text, flag = given.get("chat_template_kwargs"), "--chat-template-kwargs"
    if text is None:
        return {}
    try:
        options = json.loads(prompt_text(text, flag))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{flag}: {text[:60]!r} is no JSON.", """Like '{"enable_thinking": false}'.""") from error
    if not isinstance(options, dict):
        raise UsageError(f"{flag}: {text[:60]!r} is no object.", """Like '{"enable_thinking": false}'.""")
    if (name := wrong_option(options)) is not None:
        raise UsageError(f"{flag}: {name!r} is no option of a template.", "Leave it out.")
    return options
