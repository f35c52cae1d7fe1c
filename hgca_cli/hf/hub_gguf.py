"""A GGUF file of a hub's repository, which often holds one for every quantisation: `org/name:Q4_K_M`, as llama.cpp writes it."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from hgca_cli.errors import ModelError, NotHereError
from hgca_cli.events import Notice
from hgca_cli.hf.gguf_check import PART, parts_of
from hgca_cli.hf.hub import explained, no_safetensors, progress, told_offline
from hgca_cli.hf.registry import Notify

USUAL = "Q4_K_M"  # where nothing is said: as llama.cpp and ollama have it
_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*):(\w[\w.-]*)", re.ASCII)
_KIND = re.compile(r"(?<![A-Za-z0-9])((?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|F32))$", re.IGNORECASE)


def of_hub(spec: str) -> tuple[str, str] | None:
    """Repository and quantisation (or file) of `org/name:Q4_K_M`; None if it is not written so."""
    match = _NAME.fullmatch(spec)
    return (match[1], match[2]) if match else None


def hub_gguf(name: str, kind: str | None, *, revision: str | None, offline: bool, notify: Notify) -> Path:
    """A GGUF file, the first of several, of a hub's repository; one that is here is used without asking the network.

    kind  quantisation, or the file's name; None: Q4_K_M, or the only file there is

    Raises ModelError, with the remedy, for what is not there, gated, or out of reach.
    """
    from huggingface_hub import HfApi, snapshot_download

    from hgca_cli.hf.quiet import quiet

    offline = offline or told_offline()
    asked = f"{name}:{kind}" if kind else name
    if (folder := _snapshot(name, revision)) is not None:
        here = [file.relative_to(folder).as_posix() for file in folder.rglob("*.gguf")]
        if (found := _choose(here, kind)) and all(part.exists() for part in parts_of(folder / found)):
            return folder / found
    if offline:
        raise NotHereError(
            f"model {asked} is not on this machine, and the hub may not be asked (offline).",
            f"Where there is a network: hgca pull {asked}",
        )
    with quiet():
        try:
            there = HfApi().list_repo_files(name, revision=revision)
            found = _choose(there, kind)
            if found is None:
                raise _not_there(name, kind, there)
            wanted = [part.as_posix() for part in parts_of(Path(found))]
            notify(Notice(f"fetching {found} of {name} from the hub"))
            folder = Path(
                snapshot_download(
                    repo_id=name, revision=revision, allow_patterns=wanted, tqdm_class=progress(name, notify)
                )
            )
        except ModelError:
            raise
        except Exception as error:  # the hub's client raises its own errors, its HTTP library's and OSError
            raise explained(name, revision, error) from error
    return folder / found


def _snapshot(name: str, revision: str | None) -> Path | None:
    """Where the hub's client has files of a repository, all of them or not; None if it has none."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    place = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    try:
        commit = (place / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):  # a revision may be a commit itself
        commit = revision or "none"
    folder = place / "snapshots" / commit
    return folder if folder.is_dir() else None


def _models(files: list[str]) -> dict[str, str]:
    """Files that are a model, or the first part of one, by their names without part and ending."""
    found = {}
    for file in sorted(file for file in files if file.endswith(".gguf")):
        name = PurePosixPath(file).name
        part, stem = PART.search(name), name.removesuffix(".gguf")
        if "mmproj" in stem.lower() or "imatrix" in stem.lower() or (part and int(part[1]) != 1):
            continue
        found[file] = name[: part.start()] if part else stem
    return found


def _choose(files: list[str], kind: str | None) -> str | None:
    models = _models(files)
    wanted = (kind or USUAL).lower()
    ends = re.compile(rf"(?:^|[^a-z0-9_]){re.escape(wanted.removesuffix('.gguf'))}$")
    fitting = [file for file, stem in models.items() if ends.search(stem.lower()) or file.lower() == wanted]
    if fitting:
        return min(fitting, key=lambda file: (len(file), file))
    return next(iter(models)) if kind is None and len(models) == 1 else None


def _not_there(name: str, kind: str | None, files: list[str]) -> ModelError:
    models = _models(files)
    if not models:
        if kind is None:
            return no_safetensors(name)
        return ModelError(f"model {name} has no .gguf file.", f"Its safetensors, if it has any: {name}")
    kinds = {(match[1] if (match := _KIND.search(stem)) else stem) for stem in models.values()}
    what = f"no {kind}" if kind else f"no {USUAL} and several others"
    return ModelError(f"model {name} has {what}.", f"Name one of them: {name}:{{{', '.join(sorted(kinds))}}}")
