"""Well-known models' shapes, as their configs have them: plans for them need neither a network nor files."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import replace
from typing import Any

from hgca_cli.hardware.memory import Model
from hgca_cli.hardware.profiles import shipped_dir
from hgca_cli.kv.layout import KVLayout, LayerLayout


def known_model(name: str) -> Model | None:
    """The model of a hub id, or of its last part, in any case of letters; None if it is not among the known."""
    wanted = name.strip().lower()
    return next((model for known, model in known_models().items() if wanted in (known, known.rpartition("/")[2])), None)


def near_model(name: str) -> str:
    """The known hub id whose last part is most like a name that is no hub id itself; "" if none is."""
    if "/" in name:
        return ""
    lasts = {known.rpartition("/")[2].lower(): known for known in _shapes()}
    near = difflib.get_close_matches(name.strip().lower(), lasts, n=1)
    return lasts[near[0]] if near else ""


def known_models() -> dict[str, Model]:
    """All of profiles/models/models.toml, by their hub ids in small letters."""
    return {name.lower(): _model(shape) for name, shape in _shapes().items()}


def _shapes() -> dict[str, Any]:
    with (shipped_dir() / "models" / "models.toml").open("rb") as file:
        return tomllib.load(file)


def _model(shape: dict[str, Any]) -> Model:
    layer = LayerLayout(shape["heads"], shape["kv_heads"], shape["head_dim"], shape["head_dim"])
    slides = replace(layer, sliding=shape.get("sliding"))  # every second one, the first too
    model = Model(
        layout=KVLayout(tuple(layer if at % 2 else slides for at in range(shape["layers"]))),
        parameters=shape["parameters"],
        trained_context=shape["context"],
        hidden=shape["hidden"],
        intermediate=shape["intermediate"],
        vocabulary=shape["vocabulary"],
        own_dtype=shape.get("dtype", "bf16"),
        tied=shape.get("tied", False),
        packed=tuple(sorted(shape.get("packed", {}).items())),
        in_file=tuple(sorted(shape.get("in_file", {}).items())),
        quantised=shape.get("quantised", False),
    )
    if (experts := shape.get("experts")) is None:
        return model
    held = 3 * model.hidden * experts["width"] * experts["count"] * shape["layers"] / model.body
    return replace(model, in_experts=held, active_share=1.0 - held * (1.0 - experts["chosen"] / experts["count"]))
