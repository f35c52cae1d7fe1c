"""A snapshot from a model hub, through huggingface_hub: safetensors, tokenizer and configuration only."""

from __future__ import annotations

import errno
import io
import json
import os
import time
from pathlib import Path
from typing import Any

from hgca_cli.errors import DoesNotFitError, ModelError, NotHereError
from hgca_cli.events import Notice
from hgca_cli.hf.checks import reason
from hgca_cli.hf.registry import Notify
from hgca_cli.units import format_bytes

# Never pickles, never code; and of the weights one copy (some repositories hold the same ones in folders, or whole).
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*", "*.txt", "*.tiktoken"]
UNWANTED = ["*/*", "consolidated*", "*.bin", "*.pt", "*.pth", "*.py", "*.gguf"]
TELL_EVERY_SECONDS = 5.0


class NoSafetensorsError(ModelError):
    """A hub model that has no safetensors: it may have GGUF files."""


def snapshot(name: str, *, revision: str | None, offline: bool, notify: Notify) -> Path:
    """The directory of a hub model; what is complete here already is used without asking the network.

    Raises ModelError, with the remedy, for a name that is not there, gated, or out of reach.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    from hgca_cli.hf.quiet import quiet

    offline = offline or told_offline()
    options: dict[str, Any] = {
        "repo_id": name, "revision": revision, "allow_patterns": WANTED, "ignore_patterns": UNWANTED
    }  # fmt: skip
    with quiet():
        try:
            path = Path(snapshot_download(**options, local_files_only=True))
            if is_complete(path):
                return path
            if any(path.rglob("*.gguf")) and not any(path.glob("*.safetensors")):
                raise no_safetensors(name)
        except HFValidationError as error:
            raise explained(name, revision, error) from error
        except OSError:
            pass  # not here yet, or not all of it
        if offline:
            raise NotHereError(
                f"model {name} is not on this machine, and the hub may not be asked (offline).",
                f"Where there is a network: hgca pull {name}, or: hf download {name}",
            )
        notify(Notice(f"fetching {name} from the hub"))
        try:
            path = Path(snapshot_download(**options, tqdm_class=progress(name, notify)))
        except Exception as error:  # the hub's client raises its own errors, its HTTP library's and OSError
            raise explained(name, revision, error) from error
    if not any(path.glob("*.safetensors")):
        raise no_safetensors(name)
    return path


def no_safetensors(name: str) -> NoSafetensorsError:
    """What is said of a model that has no file we open."""
    return NoSafetensorsError(
        f"model {name} has no safetensors weights, nor a .gguf file (pickle weights are refused: they can run code).",
        "Take another model, or one that somebody converted.",
    )


def config_file(name: str, *, revision: str | None, offline: bool, notify: Notify) -> Path:
    """The config.json of a hub model, from the cache or fetched alone. Raises ModelError as `snapshot`."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    from hgca_cli.hf.quiet import quiet

    offline = offline or told_offline()
    with quiet():
        try:
            return Path(hf_hub_download(name, "config.json", revision=revision, local_files_only=True))
        except HFValidationError as error:
            raise explained(name, revision, error) from error
        except OSError:
            pass
        if offline:
            raise NotHereError(
                f"the config of model {name} is not on this machine, and the hub may not be asked (offline).",
                f"Where there is a network: hf download {name} config.json, or name a config.json you have.",
            )
        notify(Notice(f"fetching the config of {name} from the hub"))
        try:
            return Path(hf_hub_download(name, "config.json", revision=revision))
        except Exception as error:  # the hub's client raises its own errors, its HTTP library's and OSError
            raise explained(name, revision, error) from error


def told_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "ON", "YES")


def is_complete(path: Path) -> bool:
    """Whether a snapshot has its config, a tokenizer and all its weights (a fetch may have been stopped half-way)."""
    if not (path / "config.json").is_file() or not any(path.glob("tokenizer*")):
        return False
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return any(path.glob("*.safetensors"))
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return True  # damaged, not incomplete: said where the weights are checked
    return all(isinstance(shard, str) and (path / shard).is_file() for shard in shards)


def explained(name: str, revision: str | None, error: Exception) -> ModelError | DoesNotFitError:
    """What the hub's client raised, as an error of ours."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return ModelError(f"{name[:100]!r} is not a hub id.", "A hub id looks like org/name.")
    if isinstance(error, errors.GatedRepoError):
        hint = "Accept its licence on the hub, then: hf auth login, or set HF_TOKEN."
        return ModelError(f"model {name} is gated.", hint)
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(f"no model {name} on the hub.", "Check the name; a private model needs: hf auth login.")
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"model {name} has no revision {revision!r}.", "Check --revision.")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DoesNotFitError(f"the disk is full: {name} cannot be fetched.", "Make room, or set HF_HOME elsewhere.")
    reach = "Check the network (HF_ENDPOINT sets a mirror), or name a model you have: -m DIRECTORY."
    if isinstance(error, errors.LocalEntryNotFoundError):
        return ModelError(f"cannot reach the model hub for {name}.", reach)
    return ModelError(f"cannot fetch {name} from the hub: {reason(error)}.", reach)


def progress(name: str, notify: Notify) -> type:
    """A progress bar for huggingface_hub that draws nothing and tells every few seconds."""
    from tqdm.std import tqdm  # type: ignore[import-untyped]

    told = {"bytes": 0, "at": time.monotonic()}

    class Progress(tqdm):
        """Counts bytes over all files; several bars may count the same ones, so the largest tells."""

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **options | {"disable": False, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> bool:
            if self.unit == "B" and self.n > told["bytes"] and time.monotonic() - told["at"] > TELL_EVERY_SECONDS:
                told.update(bytes=int(self.n), at=time.monotonic())
                whole = f" of {format_bytes(self.total)}" if (self.total or 0) > self.n else ""
                notify(Notice(f"fetching {name}: {format_bytes(self.n)}{whole}"))
            return True

    return Progress
