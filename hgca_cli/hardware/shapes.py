"""Well-known models' shapes, as their configs have them: plans for them need neither a network nor files."""

from __future__ import annotations

import tomllib

from hgca_cli.hardware.memory import Model
from hgca_cli.hardware.profiles import shipped_dir
from hgca_cli.kv.layout import KVLayout, LayerLayout


def known_model(name: str) -> Model | None:
    """The model of a hub id, or of its last part, in any case of letters; None if it is not among the known."""
    return known_models().get(name.strip().lower().rpartition("/")[2])


def known_models() -> dict[str, Model]:
    """All of profiles/models/models.toml, by the last part of their hub ids in small letters."""
    with (shipped_dir() / "models" / "models.toml").open("rb") as file:
        table = tomllib.load(file)
    return {name.rpartition("/")[2].lower(): _model(shape) for name, shape in table.items()}


def _model(shape: dict[str, int | bool]) -> Model:
    layer = LayerLayout(shape["heads"], shape["kv_heads"], shape["head_dim"], shape["head_dim"])
    return Model(
        layout=KVLayout((layer,) * shape["layers"]),
        parameters=shape["parameters"],
        trained_context=shape["context"],
        hidden=shape["hidden"],
        intermediate=shape["intermediate"],
        vocabulary=shape["vocabulary"],
        tied=bool(shape.get("tied", False)),
    )
