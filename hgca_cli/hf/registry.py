"""A model by the name a person gives it: alias, hub id, directory, or .gguf file -> a directory of safetensors.

Nothing here imports torch or transformers: names are resolved, and wrong ones refused, before anything heavy loads.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hgca_cli.errors import ModelError
from hgca_cli.events import Event

Notify = Callable[[Event], None]

DEFAULT = "smollm2-135m"
PACKAGED = "package"  # what DEFAULT stands for: a model inside a Python package, not on a hub
ALIASES = {DEFAULT: PACKAGED}  # short name -> hub id, directory or file
_users: dict[str, str] = {}  # the person's own short names


def set_aliases(aliases: Mapping[str, str]) -> None:
    """The person's own short names, in place of those there were; one may stand for another of ALIASES."""
    _users.clear()
    _users.update(aliases)


def aliases() -> dict[str, str]:
    """All short names, and what they stand for."""
    return ALIASES | _users


def target_of(name: str) -> str:
    """What a name stands for, itself if it is no short name."""
    target = _users.get(name, name)
    return ALIASES.get(target, target)


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
    spec: str, *, revision: str | None = None, offline: bool = False, convert: bool = True, notify: Notify = ignore
) -> ModelFiles:
    """Find a model, fetching and converting it where that is needed.

    spec     alias, hub id `org/name`, directory, or `.gguf` file; what looks like a path is never taken for a hub id.
             `org/name:Q4_K_M` is a GGUF file of a hub's repository
    offline  True: only what is on this machine
    convert  False: no .gguf file is converted now, only one that was before is found

    Raises ModelError for what is not there, and says how to get it; NotHereError if only `offline` or `convert` is in
    the way.
    """
    name = spec.strip()
    target = target_of(name)
    if target == PACKAGED:
        from hgca_cli.hf.default_model import default_model

        return ModelFiles(name, default_model(notify=notify, offline=offline))
    if not target:
        raise ModelError("the model name is empty.", f"Try -m {DEFAULT}.")
    from hgca_cli.hf.hub_gguf import hub_gguf, of_hub

    if (there := of_hub(target)) and not exists(Path(target)):
        file = hub_gguf(*there, revision=revision, offline=offline, notify=notify)
        return ModelFiles(name, _converted(file, file.stat(), convert, notify))
    if _looks_like_path(target) or exists(Path(target)):
        return ModelFiles(name, _local(target, convert, notify))
    parts = target.split("/")
    if len(parts) != 2 or not all(parts) or any(ord(c) <= 32 for c in target):
        near = difflib.get_close_matches(name.lower(), aliases(), n=1)
        raise ModelError(
            f"no model {name[:100]!r}: neither an alias ({', '.join(aliases())}), a file or directory, nor a hub id "
            "(org/name).",
            f"{f'Did you mean {near[0]}? ' if near else ''}See hgca pull --help.",
        )
    from hgca_cli.hf.hub import NoSafetensorsError, snapshot

    try:
        return ModelFiles(name, snapshot(target, revision=revision, offline=offline, notify=notify))
    except NoSafetensorsError:
        file = hub_gguf(target, None, revision=revision, offline=offline, notify=notify)
        return ModelFiles(name, _converted(file, file.stat(), convert, notify))


def resolve_config(
    spec: str, *, revision: str | None = None, offline: bool = False, notify: Notify = ignore
) -> Path | None:
    """A directory that holds a model's config.json, its weights or not; of a hub model only that file is fetched.

    None for a model whose config is made with its weights: the default model before its first use, a `.gguf` file, here or
    of a hub.
    Raises ModelError as `resolve` does.
    """
    from hgca_cli.hf.hub_gguf import of_hub

    name = spec.strip()
    target = target_of(name)
    if target == PACKAGED:
        return None
    if _looks_like_path(target) or exists(Path(target)):
        path = Path(target).expanduser()
        if path.name == "config.json" and exists(path):
            return path.parent
        return path if exists(path / "config.json") else None
    if of_hub(target) or len(target.split("/")) != 2:
        return None
    from hgca_cli.hf.hub import config_file

    return config_file(target, revision=revision, offline=offline, notify=notify).parent


def _looks_like_path(spec: str) -> bool:
    return (
        spec.startswith((".", "/", "~", "\\")) or spec.endswith((".gguf", ".safetensors", "/")) or spec.count("/") > 1
    )


def exists(path: Path) -> bool:
    """Whether there is something, as far as that can be told."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or a directory on the way that may not be read
        return False


def _local(spec: str, convert: bool, notify: Notify) -> Path:
    """A directory of safetensors for a local path."""
    try:
        path = Path(spec).expanduser()
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            names = sorted(p.name for p in path.iterdir())
            if "config.json" in names:
                return path
            path /= _only_gguf(path, names)
            found = path.stat()
    except FileNotFoundError as error:
        page = re.match(r"(?:https?://)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)", spec)
        hint = f"Name it {page[1]}." if page else "A hub id looks like org/name."
        raise ModelError(f"{spec}: no such file or directory.", hint) from error
    except (OSError, ValueError, RuntimeError) as error:  # not permitted, too long, a NUL, no such ~user
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{spec[:200]!r}: {reason}.", "Name a directory of a model, or a .gguf file.") from error
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"{path} is neither a directory nor a regular file.", "Name a directory, or a .gguf file.")
    if path.suffix != ".gguf":
        raise ModelError(f"{path} is a file.", "Name the directory it is in, or a .gguf file.")
    return _converted(path, found, convert, notify)


def _converted(path: Path, found: os.stat_result, convert: bool, notify: Notify) -> Path:
    from hgca_cli.hf.gguf_convert import converted

    return converted(path, found, notify, convert)


def _only_gguf(path: Path, names: list[str]) -> str:
    from hgca_cli.hf.gguf_check import parts_of

    ggufs = [name for name in names if name.endswith(".gguf")]
    if len(ggufs) > 1 and ggufs == [part.name for part in parts_of(path / ggufs[0])]:
        return ggufs[0]
    if len(ggufs) > 1:
        raise ModelError(f"{path} holds several models: {', '.join(ggufs)}.", "Name one of the files.")
    if not ggufs:
        raise ModelError(f"{path} holds no model: no config.json and no .gguf file.", "Name a directory of a model.")
    return ggufs[0]
