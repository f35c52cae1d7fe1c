"""README says what is there, and its two commands are where .ci/run looks for them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_what_readme_names_exists() -> None:
    for name in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / name).exists(), name
    tree = README.split("## The tree")[1]
    for unit in re.findall(r"^  (\w+)/ ", tree, re.M):
        assert (ROOT / "hgca_cli" / unit).is_dir(), unit
    for folder in re.findall(r"^(\w+)/ ", tree, re.M):
        assert (ROOT / folder).is_dir(), folder


def test_ci_runs_the_test_command() -> None:
    assert README.count("<!-- command 1 -->") == README.count("<!-- command 2 -->") == 1
    command = re.search(r"<!-- command 2 -->\n```sh\n(.+)\n", README)
    assert command is not None and "pytest" in command[1] and "constraints.txt" in command[1]
    assert "<!-- command 2 -->" in (ROOT / ".ci/run").read_text()
