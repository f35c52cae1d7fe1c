"""A model hub's pages and client: what is told of them."""

from __future__ import annotations

import logging
import re
from typing import Any

import huggingface_hub
import pytest

from hgca_cli.errors import ModelError
from hgca_cli.events import Event, Notice
from hgca_cli.hf import registry


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("https://huggingface.co/org/model", "org/model"),
        ("https://huggingface.co/org/model/tree/main?a=b", "org/model"),
        ("hf.co/org/model-GGUF:Q4_K_M", "org/model-GGUF:Q4_K_M"),
    ],
)
def test_a_page_of_the_hub_is_told_by_its_name(spec: str, name: str) -> None:
    with pytest.raises(ModelError, match=f"no such file or directory. Name it {re.escape(name)}.$"):
        registry.resolve(spec)


def test_what_the_hubs_client_logs_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It logs every time it tries again; the error at last is told in one line."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    client = logging.getLogger("huggingface_hub.utils._http")
    heard: list[Event] = []

    def hf_hub_download(*_: str, local_files_only: bool = False, **__: Any) -> str:
        client.warning("Retrying in 1s")
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    client.warning("heard")
    with pytest.raises(ModelError):
        registry.resolve_config("org/model", notify=heard.append)
    assert caplog.messages == ["heard"]
    assert heard == [Notice("fetching the config of org/model from the hub")]
    client.warning("again")
    assert caplog.messages == ["heard", "again"]
