"""A snapshot from a model hub, through huggingface_hub: safetensors, tokenizer and configuration only."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from hgca_cli.errors import ModelError
from hgca_cli.events import Notice
from hgca_cli.hf.registry import HUB_FILES, Notify


def snapshot(name: str, *, revision: str | None, offline: bool, notify: Notify) -> Path:
    """The directory of a hub model; what is complete here already is used without asking the network.

    Raises ModelError, with the remedy, for a name that is not there, gated, or out of reach.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from hgca_cli.hf.quiet import quiet

    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "ON", "YES")
    get = f"Fetch it first: hgca pull {name}"
    get_files = partial(snapshot_download, name, revision=revision, allow_patterns=HUB_FILES)
    with quiet():
        try:
            path = Path(get_files(local_files_only=True))
            if any(path.glob("*.safetensors")) and (path / "config.json").exists():
                return path
        except (LocalEntryNotFoundError, FileNotFoundError):
            pass
        except HFValidationError as error:
            raise ModelError(f"{name!r} is not a hub id.", "A hub id looks like org/name.") from error
        if offline:
            raise ModelError(f"model {name} is not on this machine and the hub may not be asked (offline).", get)
        notify(Notice(f"fetching {name} from the hub"))
        try:
            return Path(get_files())
        except GatedRepoError as error:
            raise ModelError(
                f"model {name} is gated.", "Accept its licence on the hub, then: hf auth login, or set HF_TOKEN."
            ) from error
        except RepositoryNotFoundError as error:
            raise ModelError(
                f"no model {name} on the hub.", "Check the name; a private model needs hf auth login."
            ) from error
        except RevisionNotFoundError as error:
            raise ModelError(f"model {name} has no revision {revision!r}.", "Check --revision.") from error
        except LocalEntryNotFoundError as error:
            raise ModelError(
                f"cannot reach the model hub for {name}.", "Check the network, or use --offline."
            ) from error
        except (HfHubHTTPError, OSError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"cannot fetch {name} from the hub ({first}).", "Check the network.") from error
