"""The tree is the architecture: a unit imports lower floors only, and each outside package has one owner."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "hgca_cli"
FLOORS = {
    "errors": 0,
    "units": 1, "plain": 1, "durable": 1,
    "config": 2, "events": 2,
    "native": 3, "metrics": 3,
    "kv": 4, "indexing": 4,
    "selection": 5,
    "attention": 6,
    "hf": 7,
    "engine": 8, "hardware": 8,
    "measure": 9, "batch": 9, "ui": 9,
    "commands": 10,
    "app": 11,
    "__main__": 12,
}  # fmt: skip
OWNERS = {
    "transformers": {"hf"}, "huggingface_hub": {"hf"}, "tokenizers": {"hf"}, "gguf": {"hf"}, "jinja2": {"hf"},
    "llguidance": {"hf"}, "ray": {"batch"},
    "rich": {"ui"}, "prompt_toolkit": {"ui"},
    "typer": {"app", "commands", "__main__"},
    "psutil": {"hardware"}, "tomli_w": {"hardware"}, "matplotlib": {"ui"}, "llama_cpp": {"measure"}, "lm_eval": {"commands"},
    "tomlkit": {"commands"}, "markdown_it": {"ui"},
    "safetensors": {"engine", "hf"},
    "cffi": {"native"}, "hgca_cli._native": {"native"},
}  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    if path.parent == ROOT and path.name == "__init__.py":
        return
    here = unit(path)
    for name in imports(path):
        owners = next((owners for package, owners in OWNERS.items() if (name + ".").startswith(package + ".")), None)
        assert owners is None or here in owners, f"{here} may not import {name}: it belongs to {owners}"
        parts = name.split(".")
        if parts[0] != "hgca_cli" or len(parts) < 2 or parts[1] == here or parts[1] not in FLOORS:
            continue
        assert FLOORS[parts[1]] < FLOORS[here], (
            f"{here} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[parts[1]]})"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400, "one idea a file: split it"
    assert unit(path) in FLOORS or path.name == "__init__.py", "a new unit needs a floor"


def test_the_planner_counts_without_torch() -> None:
    for name in ("units.py", "errors.py", "config.py", "events.py", "kv/layout.py", "measure/case.py"):
        assert not any(i.split(".")[0] in ("torch", "transformers") for i in imports(ROOT / name)), name
