"""What config files say, as defaults of commands: flags and variables win over it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from hgca_cli.commands.config_file import Config, read_config
from hgca_cli.errors import UsageError
from hgca_cli.hf.registry import set_aliases

TAKING = ("chat", "doctor", "profile", "batch")  # commands that take the options of a chat
NOT_TAKEN = {"profile": ("profile",)}  # what means another thing there
KINDS = {"number": "a number", "integer": "a whole number", "boolean": "true or false"}
GENERAL = ("quiet", "verbose", "color")


def take_config(context: Any, given: Path | None) -> Config:
    """Read the files and make them the defaults of all commands. context: Typer's, of the app, before a command is looked at.

    Raises UsageError naming file and key, ModelError for a file that was named and is not there.
    """
    commands: dict[str, Any] = context.command.commands
    options = {param.name: param for param in commands["chat"].params}
    config = read_config(given, options)
    for name, value in config.options.items():
        check_option(context, options[name], value, config.origins[name])
    for settings in config.models.values():
        for name, (value, origin) in settings.items():
            check_option(context, options[name], value, origin)
    set_aliases(config.aliases)
    context.obj = config
    general = {name: _general(context, config, name) for name in GENERAL}
    defaults: dict[str, Any] = {}
    for name, command in commands.items():
        if (inner := getattr(command, "commands", None)) is not None:
            defaults[name] = dict.fromkeys(inner, general)
        else:
            defaults[name] = general | _taken(name, command, config.options)
    context.default_map = defaults
    return config


def model_chosen(context: typer.Context, value: str) -> str:
    """The model is known before other options are looked at: what is set for it goes before what is set for all."""
    config, name = context.find_root().obj, str(context.info_name)
    if isinstance(config, Config) and name in TAKING:
        own = config.of_model(value)
        taken = _taken(name, context.command, {option: what for option, (what, _) in own.items()})
        context.default_map = {**(context.default_map or {}), **taken}
        config.origins.update({option: own[option][1] for option in taken})
    return value


def _taken(name: str, command: Any, options: dict[str, Any]) -> dict[str, Any]:
    if name not in TAKING:
        return {}
    has = {param.name for param in command.params} - set(NOT_TAKEN.get(name, ()))
    return {option: value for option, value in options.items() if option in has}


def _general(context: Any, config: Config, name: str) -> Any:
    source = getattr(context.get_parameter_source(name), "name", "")
    return config.options.get(name, context.params[name]) if source == "DEFAULT" else context.params[name]


def check_option(context: Any, param: Any, value: Any, origin: str) -> None:
    """Raises UsageError, naming where it stands, for a value that is not of an option's kind."""
    if param.callback is not None:  # of --model, which any text is good for
        return
    try:
        param.process_value(context, value)
    except typer.BadParameter as error:
        why = not_of_its_kind(error.message) or error.message.rstrip(".")
        raise UsageError(f"{origin} = {value!r}: {why}.", f"See hgca chat --help, {param.opts[0]}.") from error


def not_of_its_kind(message: str) -> str:
    """What Typer says of a value that is not of its option's kind, in our words; "" for any other mistake."""
    if wrong := re.match(r"Input should be a valid (\w+)", message):
        return f"that is not {KINDS.get(wrong[1], wrong[1])}"
    if beyond := re.match(r"Input should be (greater|less) than or equal to (\S+)", message):
        return f"that is {'less' if beyond[1] == 'greater' else 'more'} than {beyond[2].removesuffix('.0')}"
    return ""
