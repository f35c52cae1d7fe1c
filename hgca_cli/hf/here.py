"""What a model that is here says about how it wants to be sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hgca_cli.errors import ModelError
from hgca_cli.hf.checks import FETCH_AGAIN, read_json, reason
from hgca_cli.hf.default_model import recommended


def generation_settings(path: Path) -> dict[str, Any]:
    """generation_config.json of a model directory, as a loaded model has it, and what else is known of the default model.

    Empty where there is neither.

    Raises ModelError for a damaged one.
    """
    file = path / "generation_config.json"
    if not file.exists():
        return recommended(path)
    read_json(file)
    from transformers import GenerationConfig

    from hgca_cli.hf.quiet import quiet

    with quiet():
        try:
            settings: dict[str, Any] = GenerationConfig.from_pretrained(path, local_files_only=True).to_diff_dict()
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"{file} is not usable: {reason(error)}.", FETCH_AGAIN) from error
    return recommended(path) | settings
