"""A .gguf file becomes a directory of safetensors, once, in the cache.

transformers keeps the weights of some GGUF files packed, which decodes slowly here, and dequantises those of all others
anew at every start; the same weights open from safetensors in a tenth of a second.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hgca_cli.errors import DoesNotFitError, HgcaError, ModelError, NotHereError
from hgca_cli.events import Notice
from hgca_cli.hf import model_cache
from hgca_cli.hf.checks import reason
from hgca_cli.hf.gguf_check import Contents, check_gguf, parts_of
from hgca_cli.hf.gguf_once import DAMAGED, reading_once
from hgca_cli.hf.packing import TYPES_FILE, held_as
from hgca_cli.hf.registry import Notify
from hgca_cli.units import format_bytes

HEAD_BYTES = 1 << 16
# Up to here weights are kept in fp32, which is what dequantising gives: nothing is lost (scale times code plus offset
# does not fit fp16 or bf16). Larger models are kept in bf16: 2^-9 of a value, below the error of every quantisation
# to 8 bits or less, in the range of fp32, and half of the disk.
FULL_PRECISION_BYTES = 1 << 30

# told, before anything is written, how many bytes, and whether matrices are left out
Begin = Callable[[int, bool], None]


def converted(path: Path, found: os.stat_result, notify: Notify, now: bool = True) -> Path:
    """The cached directory for a GGUF file; if it is not there, made now, or (not `now`) NotHereError.

    The file is known by its path, size, time and first 64 KiB. Raises ModelError for a damaged or unsupported file.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256(file.read(HEAD_BYTES))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}.", "Check its permissions.") from error
    digest.update(f"{path.resolve()}|{found.st_size}|{found.st_mtime_ns}".encode(errors="surrogateescape"))
    for part in parts_of(path)[1:]:
        with contextlib.suppress(OSError):  # its absence is told below
            here = part.stat()
            digest.update(f"|{here.st_size}|{here.st_mtime_ns}".encode())
    name = f"{path.stem[:80]}-{digest.hexdigest()[:12]}"
    if cached := model_cache.find(name):
        return cached
    contents = check_gguf(path)  # before a directory is made for it
    if not now:
        raise NotHereError(f"{path.name} was not converted yet.", f"The first use does it, or: hgca pull {path}")
    with model_cache.making(name, notify) as (work, _):
        convert(path, work, notify, contents)
    return model_cache.find(name) or work


def convert(path: Path, target: Path, notify: Notify, contents: Contents | None = None) -> None:
    """Dequantise a GGUF file into the directory `target`. Raises ModelError, or DoesNotFitError with figures.

    contents  what was found in it, if it was looked at
    """
    from hgca_cli.hf.fingerprint import digest_of

    contents, began = contents or check_gguf(path), time.monotonic()
    small, types = contents.numbers * 4 <= FULL_PRECISION_BYTES, contents.types()
    kind = "fp32" if small else "bf16"

    def begin(needed: int, waiting: bool) -> None:
        """Bytes that are going to be written."""
        model_cache.require_room(path.name, needed, target.parent.parent)
        to = "most of its weights stay there until they are needed" if waiting else f"{format_bytes(needed)}"
        what = (
            f"reading {path.name} (once; {to})"
            if waiting
            else f"converting {path.name} to safetensors in {kind} ({to}, once)"
        )
        notify(Notice(what))

    waiting = _dequantise(path, target, contents, small, not small and bool(held_as(types)), begin, notify)
    told: dict[str, Any] = dict(types)
    if waiting:
        told |= {
            "file": str(path.absolute()),
            "digest": digest_of(contents.files),
            "dtype": "bfloat16",
            "waiting": waiting,
        }
    (target / TYPES_FILE).write_text(json.dumps(told) + "\n", encoding="utf-8")
    notify(Notice(f"{'read' if waiting else 'converted'} in {time.monotonic() - began:.0f} s"))


def _dequantise(
    path: Path, target: Path, contents: Contents, small: bool, wait: bool, begin: Begin, notify: Notify
) -> list[str]:
    """Returns the names of matrices that were left out, as `wait` allows."""
    import torch
    from transformers import AutoTokenizer

    from hgca_cli.hf.gguf_stream import write_weights
    from hgca_cli.hf.quiet import quiet

    folder, name = str(path.absolute().parent), path.name  # not resolved: a hub's cache links to nameless blobs
    dtype = torch.float32 if small else torch.bfloat16
    with quiet(), reading_once():
        try:
            try:
                left = write_weights(Path(folder, name), contents, target, dtype, wait, begin, notify)
            except DAMAGED:  # what is wrong is told below; what is another transformers' does not matter there
                left = None
            if left is None:
                begin(contents.numbers * dtype.itemsize, False)
                with contextlib.redirect_stderr(io.StringIO()):  # its reader draws a bar that has no switch
                    _whole(path, target, dtype)
            tokenizer = AutoTokenizer.from_pretrained(
                folder, gguf_file=name, trust_remote_code=False, local_files_only=True
            )
            tokenizer.save_pretrained(target)
            _drop_invented(target, _embeddings(target))
        except HgcaError:
            raise
        except MemoryError as error:
            raise DoesNotFitError(f"not enough memory to convert {path}.", "Close other programs.") from error
        except OSError as error:
            if error.errno is not None:  # the disk's, told by the cache
                raise
            raise _cannot(path, error) from error
        except DAMAGED as error:
            raise _cannot(path, error) from error
    return left or []


def _whole(path: Path, target: Path, dtype: Any) -> None:
    """By transformers' own reader, all weights in memory at once."""
    from transformers import AutoModelForCausalLM, GgufConfig

    from hgca_cli.hf.load import refuse_incomplete

    model, info = AutoModelForCausalLM.from_pretrained(
        str(path.absolute().parent),
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=dtype,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    refuse_incomplete(path, info)  # else random weights would be saved as if they were the model's
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)


def _embeddings(target: Path) -> int:
    """Rows of the embedding: by the config, which the weights were held to."""
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    return int((config.get("text_config") or config)["vocab_size"])


def _drop_invented(target: Path, rows: int) -> None:
    """Take tokens away that the model has no embedding for.

    transformers builds byte-level tokenizers as GPT-2's, which adds an <|endoftext|> of its own to a vocabulary
    without one (Llama 3, Mistral Nemo): text with that word in it would index beyond the embeddings.
    """
    file, settings = target / "tokenizer.json", target / "tokenizer_config.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    added = tokenizer.get("added_tokens") or []
    invented = {token["content"] for token in added if token["id"] >= rows}
    if not invented:
        return
    tokenizer["added_tokens"] = [token for token in added if token["content"] not in invented]
    file.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    config = json.loads(settings.read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if not isinstance(value, str) or value not in invented}
    settings.write_text(json.dumps(config, ensure_ascii=False, indent=2), encoding="utf-8")


def _cannot(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{path} cannot be converted: {reason(error)}.", "Use the model's safetensors, or another file of it."
    )
