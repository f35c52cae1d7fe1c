"""docs/cli.md and `--help` say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hgca_cli.app import COMMANDS, GROUPS, command_names, run
from hgca_cli.commands.aliases import ALIASES
from hgca_cli.commands.slash import COMMANDS as SLASH
from hgca_cli.commands.slash import SAME
from hgca_cli.ui.json_lines import JsonSink

PAGE = (Path(__file__).parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")
PATHS = [(name,) for name in COMMANDS] + [
    (name, command) for name, group in GROUPS.items() for command in command_names(group)
]
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z0-9-]*")


def helped(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run([*words, "--help"]) == 0
    return capsys.readouterr().out


def defined(text: str) -> set[str]:
    """Options that begin a line of --help."""
    lines = [line for line in text.splitlines() if line.startswith("  -")]
    return {flag for line in lines for flag in OPTION.findall(re.split(r"  +", line.strip())[0])}


def test_every_option_is_on_the_page_and_the_other_way_round(capsys: pytest.CaptureFixture[str]) -> None:
    offered = defined(helped(capsys)) | {flag for words in PATHS for flag in defined(helped(capsys, *words))}
    assert {"--window", "-m", "--json", "--no-stats", "--version"} <= offered
    named = {flag for cell in re.findall(r"`([^`\n]+)`", PAGE) for flag in OPTION.findall(cell)}
    assert offered - named == set()
    assert named - offered - set(ALIASES) == set()


def test_the_list_of_commands_has_room_for_what_each_does(capsys: pytest.CaptureFixture[str]) -> None:
    for words, count in [((), len(COMMANDS) + len(GROUPS))] + [((g,), len(command_names(GROUPS[g]))) for g in GROUPS]:
        listed = helped(capsys, *words).split("Commands:\n")[1].splitlines()
        assert len(listed) == count and not [line for line in listed if "..." in line], listed


def test_every_alias_variable_command_and_event_is_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(f"`{alias}`" in PAGE for alias in ALIASES)
    shown = "".join(helped(capsys, *words) for words in ((), *PATHS))
    variables = set(re.findall(r"HGCA_[A-Z_]+", shown))
    assert len(variables) > 30 and set(re.findall(r"HGCA_[A-Z_]+", PAGE)) - variables == {
        "HGCA_DATA_DIR",
        "HGCA_CACHE_DIR",
        "HGCA_CONFIG",
        "HGCA_CUDA_GRAPHS",
        "HGCA_ISA",
        "HGCA_PROFILE_DIR",
    }
    assert all(variable in PAGE for variable in variables)
    assert all(f"## hgca {name}\n" in PAGE for name in [*COMMANDS, *GROUPS])
    assert all(f"`hgca {' '.join(words)}`" in PAGE for words in PATHS if len(words) > 1)
    assert all(f"`/{name}" in PAGE for name in [*SLASH, *SAME])
    source = Path(JsonSink.__module__.replace(".", "/") + ".py")
    written = set(re.findall(r'"type": "(\w+)"', (Path(__file__).parent.parent / source).read_text()))
    assert written == set(
        re.findall(r"^\| `(\w+)` \| ", PAGE.split("### JSON")[1].split("## hgca profile")[0], re.M)
    ) - {"type"}


def test_every_variable_belongs_to_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    for row in re.findall(r"^\|.*`HGCA_.*$", PAGE, re.M):
        cells = row.split("|")
        name = re.findall(r"--([a-z-]+)", cells[1])[0]
        assert f"HGCA_{name.replace('-', '_').upper()}" in cells[3], row
