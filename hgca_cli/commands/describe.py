"""What the planner must know of a model, from its config and the headers of its files: no weights are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgca_cli.errors import ModelError
from hgca_cli.events import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from hgca_cli.commands.setup import ModelChoice
    from hgca_cli.hardware.memory import Model
    from hgca_cli.hf.registry import ModelFiles

NOT_LINEAR = ("gpt2",)  # families whose matrices are no linear layers
OWN = {"bfloat16": "bf16", "float16": "fp16"}
STORED = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}  # what safetensors calls them


def describe(files: ModelFiles, trust_remote_code: bool) -> Model:
    """Of a model whose files are here. Raises ModelError."""
    from hgca_cli.hf.checks import check_weights, tensor_dtypes, weights_bytes
    from hgca_cli.hf.load import read_config
    from hgca_cli.hf.packing import in_file, packed_numbers

    config = read_config(files, trust_remote_code=trust_remote_code)
    packed = packed_numbers(files.path) if _own_dtype(config) == "fp32" else {}
    kinds = {kind for file in check_weights(files.path) for kind in tensor_dtypes(file)}
    model = _model(config, weights_bytes(files.path, 1), packed)
    held = tuple(sorted(in_file(files.path).items()))
    return replace(model, in_file=held or model.in_file, uniform=kinds == {STORED[model.own_dtype]})


def describe_config(choice: ModelChoice, notify: Callable[[Event], None]) -> Model:
    """Of a model of which only the config need be here: a known name, a directory, a config.json, or a hub's.

    Raises ModelError.
    """
    from hgca_cli.hardware.shapes import known_model, near_model
    from hgca_cli.hf.load import read_config
    from hgca_cli.hf.registry import ModelFiles, resolve, resolve_config

    if (known := known_model(choice.name)) is not None:
        return known
    folder = resolve_config(choice.name, revision=choice.revision, offline=choice.offline, notify=notify)
    if folder is None:
        try:
            files = resolve(choice.name, revision=choice.revision, offline=choice.offline, notify=notify)
        except ModelError as error:
            if near := near_model(choice.name):
                error.hint = f"Did you mean {near}? {error.hint}"
            raise
        return describe(files, choice.trust_remote_code)
    files = ModelFiles(choice.name, folder)
    if any(folder.glob("*.safetensors")):
        return describe(files, choice.trust_remote_code)
    config = read_config(files, trust_remote_code=choice.trust_remote_code)
    return _model(config, count_parameters(config, folder, choice.trust_remote_code), {})


def count_parameters(config: Any, folder: Path, trust_remote_code: bool) -> int:
    """Numbers of the weights of the model a config describes, which is built without memory. Raises ModelError."""
    from hgca_cli.hf.checks import reason
    from hgca_cli.hf.probe_model import build_without_memory

    try:
        return build_without_memory(config, trust_remote_code=trust_remote_code)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(f"{folder / 'config.json'} describes no model: {reason(error)}.") from error


def _model(config: Any, parameters: int, packed: dict[str, int]) -> Model:
    from hgca_cli.hardware.memory import Model
    from hgca_cli.hf.float4 import numbers_by_kind, published_so
    from hgca_cli.hf.published import packs_experts
    from hgca_cli.hf.shape import experts_share, kv_layout, text_config, trained_context

    text, in_file = text_config(config), dict[str, int]()
    if published_so(config):
        parameters, in_file = numbers_by_kind(config)
    model = Model(
        layout=kv_layout(config),
        parameters=parameters,
        trained_context=trained_context(config),
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocabulary=text.vocab_size,
        own_dtype=_own_dtype(config),
        tied=bool(getattr(text, "tie_word_embeddings", getattr(config, "tie_word_embeddings", False))),
        packed=tuple(sorted(packed.items())),
        packs=getattr(config, "model_type", "") not in NOT_LINEAR,
        in_file=tuple(sorted(in_file.items())),
        quantised=getattr(config, "quantization_config", None) is not None,
    )
    held, chosen = experts_share(text, model.body)
    if chosen == 1.0:
        return model
    return replace(model, active_share=1.0 - held * (1.0 - chosen), in_experts=held, packs=packs_experts(config))


def _own_dtype(config: Any) -> str:
    own = str(getattr(config, "dtype", "") or "").removeprefix("torch.")
    return OWN.get(own, "fp32")
