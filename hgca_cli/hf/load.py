"""Weights into memory: complete, finite, of the shapes the config says, and nothing executed on the way."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from hgca_cli.errors import DoesNotFitError, HgcaError, ModelError
from hgca_cli.events import Event
from hgca_cli.hf.checks import FETCH_AGAIN, check_config, check_size, check_weights, read_json, reason
from hgca_cli.hf.default_model import recommended
from hgca_cli.hf.elsewhere import Elsewhere
from hgca_cli.hf.experts_apart import Apart
from hgca_cli.hf.fingerprint import fingerprint
from hgca_cli.hf.float4 import Floats4, as_plain, published_so
from hgca_cli.hf.gguf_waiting import Waiting
from hgca_cli.hf.mapped import all_tensors, load, too_large
from hgca_cli.hf.packed import HALF, Packing
from hgca_cli.hf.packed_files import PackedFiles
from hgca_cli.hf.packed_gpu import PackingGpu, packed_layers
from hgca_cli.hf.published import dtype_of, mostly_linear, only_dtype
from hgca_cli.hf.quiet import quiet
from hgca_cli.hf.registry import ModelFiles
from hgca_cli.hf.shape import refuse_unsupported, text_config, trained_context
from hgca_cli.hf.tokenizer import Tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HALVES = (torch.bfloat16, torch.float16)
HARMLESS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # buffers old checkpoints carry


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run: in eval mode, without gradients, on its device.

    dtype            of what is computed
    trained_context  tokens the model was made for (0: unknown); weights_bytes as loaded
    fingerprint      of the config, the weights' names, shapes and file sizes, and samples of them: the same files give
                     the same, a model trained further gives another, and so does one whose weights are packed
    quant            how weights are packed: "none", or of hf/packed.py BITS
    """

    name: str
    files: ModelFiles
    model: Any
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype
    trained_context: int
    weights_bytes: int
    fingerprint: str
    quant: str = "none"

    @property
    def token_operations(self) -> int:
        """Products and sums of a prompt's token with weights, those of all experts: embedding and output layer are not met."""
        ends = {id(end.weight) for end in (self.model.get_input_embeddings(), self.model.get_output_embeddings())}
        packed = {id(layer.weight): layer.in_features * layer.out_features for layer in packed_layers(self.model)}
        weights = {id(weight): weight for weight in self.model.parameters()}
        return 2 * max(1, sum(packed.get(one, weights[one].numel()) for one in weights.keys() - ends))

    def forward(self, ids: Tensor, cache: Any, **more: Any) -> Any:
        """Run the model on the next tokens [1, n] of a sequence whose rows so far are in `cache`."""
        return forward(self.model, ids, cache, **more)


def forward(model: Any, ids: Tensor, cache: Any, **more: Any) -> Any:
    """Run a transformers model on the next tokens [1, n] of a sequence whose rows so far are in `cache`."""
    return model(input_ids=ids, use_cache=True, **with_cache(model, cache), **more)


def with_cache(model: Any, cache: Any) -> dict[str, Any]:
    """A cache as the argument that a transformers model takes it by, in `forward` and in `generate`."""
    return {_cache_argument(cast(Hashable, type(model))): cache}


@lru_cache
def _cache_argument(model: Hashable) -> str:
    """transformers 5.24 renamed the argument and warns of the old name at every call."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"  # type: ignore[attr-defined]


def read_config(files: ModelFiles, *, trust_remote_code: bool = False) -> Any:
    """The transformers config of a model, checked; no weights are touched. Raises ModelError."""
    check_config(files.path, trust_remote_code=trust_remote_code)
    from transformers import AutoConfig

    with quiet():
        try:
            config = AutoConfig.from_pretrained(files.path, trust_remote_code=trust_remote_code, local_files_only=True)
        except (ValueError, KeyError, TypeError, OSError, AttributeError) as error:
            raise ModelError(f"{files.path / 'config.json'} is not usable: {reason(error)}.", FETCH_AGAIN) from error
    refuse_unsupported(config)
    return config


def load_model(
    files: ModelFiles,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    yarn_context: int | None = None,
    quant: str = "none",
    notify: Callable[[Event], None] = lambda _: None,
) -> LoadedModel:
    """Load a model's weights and tokenizer.

    dtype         "fp32", "bf16", "fp16"; "auto" is fp32 on the CPU (a prompt's matrix products are fastest in fp32, and
                  a token's read no more bytes than in 16 bits: hf/linear.py), the config's own elsewhere. Weights that were
                  published in 16 bits stay in these there, and are made fp32 when they are multiplied
    yarn_context  stretch the rotary positions (YaRN, arXiv:2309.00071) to so many tokens
    quant         of hf/packed.py BITS holds the weights packed, and nothing else of them; dtype is fp32 then on the CPU
    notify        told what takes long, and what is kept on disk

    Raises ModelError for missing, mismatched, damaged or non-finite weights, DoesNotFitError if memory runs out.
    """
    config = read_config(files, trust_remote_code=trust_remote_code)
    trained = trained_context(config)
    if yarn_context is not None and yarn_context > trained:
        stretch(config, yarn_context)
    shards = check_weights(files.path)
    known_by = fingerprint(files, shards, quant)
    if (files.path / "generation_config.json").exists():
        read_json(files.path / "generation_config.json")  # transformers goes on without it, and answers never end
    tokenizer = Tokenizer.load(files.path, trust_remote_code=trust_remote_code)
    waiting = Waiting.of(files.path)
    kind = DTYPES.get(dtype) or (torch.float32 if device == "cpu" else _own_dtype(config))
    floats4 = quant == "file" and device == "cpu" and published_so(config)
    if floats4:
        config = as_plain(config)
    if quant != "none" and getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"--quant {quant}: the weights of {files.name} are quantised already.", "Leave --quant out.")
    from transformers import AutoModelForCausalLM

    with quiet():
        try:
            check_size(config, files.path, trust_remote_code=trust_remote_code)
            if waiting is not None and quant == "none":
                waiting.write(notify)
                waiting = None
            # mismatched sizes are reported, and refused below with their shapes
            told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
            own = {"use_safetensors": True, "trust_remote_code": trust_remote_code, "local_files_only": True}
            how = {"config": config, **told, **own}
            plain = quant == "none" and device == "cpu" and kind is torch.float32
            published = only_dtype(shards) if plain else None
            as_published = published in HALVES and getattr(config, "quantization_config", None) is None
            held = dtype_of(shards) if as_published or quant != "none" else kind
            elsewhere: Elsewhere | None = waiting
            packed = quant != "none" or as_published
            if floats4:
                elsewhere = Floats4(files.path, shards)
            elif packed and waiting is None and not trust_remote_code and device == "cpu":
                elsewhere = Apart.of(shards, config, held)
            if elsewhere is not None or (packed and not trust_remote_code and too_large(shards)):
                state = all_tensors(shards) if elsewhere is None else elsewhere.state()
                model, info = load(files.path, config, state, held, **told)
            else:
                model, info = AutoModelForCausalLM.from_pretrained(files.path, dtype=held, **how)
            if as_published and not mostly_linear(model):
                as_published, model = False, None  # given back before all is read once more
                model, info = AutoModelForCausalLM.from_pretrained(files.path, dtype=kind, **how)
            refuse_incomplete(files.path, info)
            model = model.eval().requires_grad_(False)
            if quant != "none" or as_published:
                count = 0 if as_published else sum(one.numel() for one in model.parameters())
                kept = PackedFiles(files, quant, known_by, count, notify, wanted=waiting is not None)
                given = model, files.path, kept, notify, elsewhere
                there = torch.device(device)
                packing = Packing(*given) if device == "cpu" else PackingGpu(*given, device=there, gives=kind)
                packing.run(HALF if as_published else quant)
            model = model.to(device)
        except HgcaError:
            raise
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise _too_large(files, device, quant) from error
        except (ValueError, RuntimeError, KeyError, TypeError, OSError, AttributeError, ImportError) as error:
            if "can't allocate memory" in str(error):  # how torch says it on the CPU
                raise _too_large(files, device, quant) from error
            raise ModelError(f"{files.path} cannot be loaded: {reason(error)}.", FETCH_AGAIN) from error
    for name, value in recommended(files.path).items():
        if getattr(model.generation_config, name, None) is None:
            setattr(model.generation_config, name, value)
    _refuse_not_finite(files, model, kind)
    embedding = model.get_input_embeddings()
    rows = getattr(embedding, "num_embeddings", len(embedding.weight))
    if tokenizer.largest_id >= rows:
        raise ModelError(
            f"{files.path}: the tokenizer has id {tokenizer.largest_id}, the model only {rows} embeddings.",
            "Tokenizer and weights are of different models.",
        )
    return LoadedModel(
        name=files.name,
        files=files,
        model=model,
        tokenizer=tokenizer.with_ends(_end_ids(model)),
        device=torch.device(device),
        dtype=kind,
        trained_context=trained,
        weights_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        fingerprint=known_by,
        quant=quant,
    )


def stretch(config: Any, context: int) -> None:
    """Set YaRN rope scaling in a config. Raises ModelError for models without plain rotary positions."""
    text = text_config(config)
    rope = getattr(text, "rope_parameters", None)  # nested per kind of layer in some families
    trained = trained_context(config)
    kind = rope.get("rope_type", "default") if isinstance(rope, dict) and "rope_theta" in rope else None
    if not isinstance(rope, dict) or kind != "default" or not trained:
        raise ModelError(
            f"--yarn: models of family {config.model_type!r} have no plain rotary positions to stretch.",
            "Leave --yarn out, or use a model trained for longer contexts.",
        )
    text.rope_parameters = rope | {
        "rope_type": "yarn",
        "factor": context / trained,
        "original_max_position_embeddings": trained,
    }
    text.max_position_embeddings = context


def _too_large(files: ModelFiles, device: str, quant: str) -> DoesNotFitError:
    others = [] if quant == "q4" else ["--quant q4"]
    other = " or ".join([*others, *([] if device == "cpu" else ["--device cpu"])]) or "a smaller model"
    return DoesNotFitError(f"{files.name} does not fit into the memory of {device}.", f"Try {other}.")


def _own_dtype(config: Any) -> torch.dtype:
    own = getattr(config, "dtype", None)
    return own if own in (torch.bfloat16, torch.float16) else torch.bfloat16


def refuse_incomplete(path: Path, info: dict[str, Any]) -> None:
    """Raises ModelError for weights that transformers found missing, left over or of another shape.

    info  what from_pretrained gives with output_loading_info
    """
    for name, have, want in sorted(info.get("mismatched_keys") or ()):
        raise ModelError(
            f"{path}: {name} has shape {list(have)}, the config wants {list(want)}.",
            "config.json and weights are of different models.",
        )
    for what in ("missing", "unexpected"):
        names = sorted(n for n in info.get(f"{what}_keys") or () if not n.endswith(HARMLESS))
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"{path}: weights are {what}: {names[0]}{more}.", "config.json and weights do not belong together."
            )


def _refuse_not_finite(files: ModelFiles, model: torch.nn.Module, kind: torch.dtype) -> None:
    """One pass over the weights at memory speed: 0.04 s for 135M parameters in fp32."""
    for name, parameter in model.named_parameters():
        if (
            parameter.numel()
            and parameter.is_floating_point()
            and not bool(torch.isfinite(torch.stack(torch.aminmax(parameter))).all())
        ):
            hint = "In fp16 large weights overflow: try --dtype bf16." if kind == torch.float16 else FETCH_AGAIN
            raise ModelError(f"{files.path}: {name} holds NaN or infinite numbers.", hint)


def _end_ids(model: Any) -> set[int]:
    """Ids that end an answer, as generation_config and config name them."""
    ids: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config):
        end = getattr(source, "eos_token_id", None)
        ids.update(end if isinstance(end, (list, tuple)) else [end] if end is not None else [])
    return ids
