"""Models that shall go: converted ones, packed weights, and what was fetched from the hub."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from hgca_cli.errors import ModelError
from hgca_cli.hf.places import CONVERTED, HUB, PACKED, Stored, model_places, packed_models
from hgca_cli.hf.registry import aliases, resolve


def of_name(name: str, *, packed_only: bool = False) -> list[tuple[str, Stored]]:
    """What is on disk of a model, with its kind: of this name as `hgca models ls` tells it, of an alias, or of a GGUF file.

    Packed weights go with their model, or alone. Raises ModelError if there is nothing.
    """
    wanted = {name, aliases().get(name, name)}
    every = packed_models()
    here = [(place.kind, one) for place in model_places() for one in place.models]
    exact = [(kind, one) for kind, one in here if one.name in wanted]
    begun = [(kind, one) for kind, one in here if kind == CONVERTED and name and one.name.rpartition("-")[0] == name]
    by_name = [one for one in every if {one.name, one.name.partition(" --quant ")[0]} & wanted]
    models = exact or begun or _of_file(here, name, by_name)
    folders = {one.path for _, one in models}
    packed = [(PACKED, one) for one in every if one in by_name or one.packed_from in folders]
    found = packed if packed_only or name in {one.name for one in by_name} else [*models, *packed]
    if not found:
        what = "no packed weights of model" if packed_only else "no model"
        raise ModelError(f"{what} {name!r} on this machine.", "hgca models ls lists what there is.")
    return found


def _of_file(here: list[tuple[str, Stored]], name: str, packed: list[Stored]) -> list[tuple[str, Stored]]:
    """What was made of a GGUF file that is named by its path: of the file as it is, and what its weights were packed from."""
    if not name.endswith(".gguf"):
        return []
    folders = {one.packed_from for one in packed}
    with contextlib.suppress(ModelError):  # not read by now, or gone
        folders.add(str(resolve(name, offline=True, convert=False).path))
    return [(kind, one) for kind, one in here if kind == CONVERTED and one.path in folders]


def remove(kind: str, one: Stored) -> None:
    """Delete it; of a link the link only. Raises ModelError if that is not permitted."""
    path = Path(one.path)
    try:
        if kind == HUB:
            _remove_fetched(path)
        elif path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
    except OSError as error:
        raise ModelError(f"cannot remove {path}: {error.strerror or error}.", "Check its permissions.") from error


def _remove_fetched(path: Path) -> None:
    """As the hub's own client does, whose locks and links lie beside the files."""
    from huggingface_hub import scan_cache_dir

    found: Any = scan_cache_dir(path.parent)
    revisions = [one.commit_hash for repo in found.repos if Path(repo.repo_path) == path for one in repo.revisions]
    if revisions:
        found.delete_revisions(*revisions).execute()
    if path.exists():
        shutil.rmtree(path)
