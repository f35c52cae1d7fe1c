"""The documents are true: every option is in docs/cli.md and nothing else is; README's commands are what CI runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from hgca_cli import events
from hgca_cli.app import app
from hgca_cli.commands import options

ROOT = Path(__file__).parent.parent
CLI = (ROOT / "docs/cli.md").read_text()


def section(command: str) -> str:
    return CLI.split(f"## hgca {command}")[1].split("\n## ")[0]


@pytest.mark.parametrize("command", ["chat", "pull"])
def test_every_option_is_documented(command: str) -> None:
    group = typer.main.get_command(app)
    known: dict[str, str | None] = {}
    for parameter in group.commands[command].params:  # type: ignore[attr-defined]
        for name in (*parameter.opts, *parameter.secondary_opts):
            if name.startswith("-"):
                known[name] = parameter.envvar
    rows = [line for line in section(command).splitlines() if line.startswith("| `-")]
    documented = {name for row in rows for name in re.findall(r"`(--?[a-z][a-z-]*)`", row.split("|")[1])}
    assert documented == set(known) - {"--help", "-h"}
    for name, variable in known.items():
        row = next((row for row in rows if f"`{name}`" in row.split("|")[1]), "")
        assert variable is None or variable in row, f"{name} is set by {variable}"


def test_aliases_are_documented() -> None:
    assert all(f"`{alias}`" in CLI for alias in options.ALIASES)


def test_every_command_has_its_section() -> None:
    group = typer.main.get_command(app)
    assert set(re.findall(r"^## hgca (\w+)", CLI, re.M)) == set(group.commands)  # type: ignore[attr-defined]


def test_readme_names_what_there_is() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in re.findall(r"\]\(((?!http)[^)]+)\)", readme):
        assert (ROOT / name).exists(), name
    for unit in re.findall(r"^  (\w+)/ ", readme, re.M):
        assert (ROOT / "hgca_cli" / unit).is_dir(), unit
    assert readme.count("<!-- command 1 -->") == readme.count("<!-- command 2 -->") == 1


def test_events_of_the_json_lines() -> None:
    assert {"Notice", "PrefillProgress", "Text", "Done"} <= set(vars(events))
    for word in ("plan", "notice", "prefill", "token", "done", "error"):
        assert f'"type": "{word}"' in CLI
