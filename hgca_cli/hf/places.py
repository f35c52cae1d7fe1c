"""Where models are kept on this machine: what is there, what room is left, and whether anything can be added.

Nothing here writes, fetches or converts.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgca_cli.errors import ModelError
from hgca_cli.hf import model_cache
from hgca_cli.hf.checks import reason

CONVERTED, PACKED, HUB = "converted", "packed", "hub"


@dataclass(frozen=True)
class Stored:
    """A model on disk. whole: it has what it takes to be opened; packed_from: of packed weights, the model's directory."""

    name: str
    path: str
    bytes: int
    whole: bool
    packed_from: str = ""


@dataclass(frozen=True)
class Leftover:
    """What something that was stopped has left. seconds: since it was last touched."""

    path: str
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Place:
    """A directory models go to.

    kind     CONVERTED (by us, from .gguf files) or HUB (fetched from one)
    chosen   the environment variable that chooses it, "" if none is set
    spare    used where the first place of its kind cannot be written
    refusal  why nothing can be written to it; "" if something can
    free     bytes of its disk that are free; None where nobody can tell
    odd      what its files say that cannot be
    """

    kind: str
    path: str
    chosen: str = ""
    spare: bool = False
    refusal: str = ""
    free: int | None = None
    models: tuple[Stored, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    odd: tuple[str, ...] = ()


def model_places() -> tuple[Place, ...]:
    """The cache of converted models, the spare one if it is used, and the hub's."""
    return (*converted_places(), hub_place())


def converted_places() -> tuple[Place, ...]:
    """Where models converted by us are."""
    chosen = "HGCA_CACHE_DIR" if os.environ.get("HGCA_CACHE_DIR") else ""
    try:
        roots = model_cache.roots()
    except ModelError as error:
        return (Place(CONVERTED, os.environ["HGCA_CACHE_DIR"], chosen, refusal=error.message),)
    return tuple(_converted(root, chosen if not at else "", spare=at > 0) for at, root in enumerate(roots))


def packed_models() -> tuple[Stored, ...]:
    """Weights that --quant packed and kept (hf/packed_files.py), by model and quant."""
    with contextlib.suppress(ModelError):
        folders = [one for root in model_cache.roots() for one in sorted(_glob(root, "packed/*"))]
        return tuple(_packed(one) for one in folders if not one.name.startswith("."))
    return ()


def hub_place() -> Place:
    """The cache of huggingface_hub, as its own client tells of it."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    root = Path(constants.HF_HUB_CACHE)
    chosen = next((name for name in ("HF_HUB_CACHE", "HF_HOME") if os.environ.get(name)), "")
    models: list[Stored] = []
    odd: list[str] = []
    try:
        found: Any = scan_cache_dir(root)
        models = [_fetched(repo) for repo in found.repos if repo.repo_type == "model"]
        odd = [reason(warning) for warning in found.warnings]
    except CacheNotFound:  # nothing was fetched yet
        pass
    except (OSError, ValueError) as error:
        odd = [reason(error)]
    cut = [_left(path) for path in _glob(root, "models--*/blobs/*.incomplete")]
    return Place(
        HUB, str(root), chosen, False, refusal(root), free_bytes(root),
        tuple(sorted(models, key=lambda one: one.name)), tuple(cut), tuple(odd),
    )  # fmt: skip


def refusal(path: Path) -> str:
    """Why nothing can be written to a directory, be it there or not yet; "" if something can. Leaves nothing behind."""
    try:
        with tempfile.TemporaryFile(dir=_nearest(path)):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def free_bytes(path: Path) -> int | None:
    """Bytes that are free on the disk a directory is on, or will be; None where nobody can tell."""
    try:
        return shutil.disk_usage(_nearest(path)).free
    except OSError:
        return None


def _nearest(path: Path) -> Path:
    """The path, or what there is of the way to it."""
    return next((one for one in (path, *path.parents) if one.exists()), Path())


def _converted(root: Path, chosen: str, *, spare: bool) -> Place:
    folders = [one for one in _glob(root, "models/*") if not one.name.startswith(".")]
    models = [Stored(one.name, str(one), _size(one), _whole(one)) for one in sorted(folders)]
    left = [_left(path) for kind in ("models", "packed") for path in _listed(model_cache.leftovers, root / kind)]
    return Place(CONVERTED, str(root), chosen, spare, refusal(root), free_bytes(root), tuple(models), tuple(left))


def _packed(folder: Path) -> Stored:
    try:
        found = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        name, origin = f"{found['model']} --quant {found['quant']}", str(found.get("folder") or "")
        return Stored(name, str(folder), _size(folder), True, origin)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Stored(folder.name, str(folder), _size(folder), False)


def _whole(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file()
    except OSError:  # not permitted
        return False


def _fetched(repo: Any) -> Stored:
    from hgca_cli.hf.hub import is_complete

    try:
        whole = any(is_complete(Path(revision.snapshot_path)) for revision in repo.revisions)
    except OSError:  # not permitted
        whole = False
    return Stored(repo.repo_id, str(repo.repo_path), int(repo.size_on_disk), whole)


def _left(path: Path) -> Leftover:
    try:
        touched = path.lstat().st_mtime
    except OSError:  # it ended meanwhile
        touched = time.time()
    return Leftover(str(path), _size(path), max(0.0, time.time() - touched))


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a directory; what vanishes meanwhile, or may not be read, counts nothing."""
    total = 0
    for one in (path, *_glob(path, "**/*")):
        try:
            total += on_disk(one.lstat()) if one.is_file() else 0
        except OSError:
            continue
    return total


def on_disk(found: os.stat_result) -> int:
    """Bytes a file takes of the disk, its holes not counted."""
    return min(found.st_size, 512 * getattr(found, "st_blocks", found.st_size))


def _glob(root: Path, pattern: str) -> list[Path]:
    return _listed(lambda folder: list(folder.glob(pattern)), root)


def _listed(list_of: Any, folder: Path) -> list[Path]:
    try:
        return list(list_of(folder))
    except OSError:  # not permitted
        return []
