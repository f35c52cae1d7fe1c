"""What does not fit together is refused with a line a person can act on, and nothing is written or started."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hgca_cli import native
from hgca_cli.errors import NativeError, UsageError


def good() -> native.Attention:
    rows = torch.ones(2, 10, 8)
    return native.Attention(torch.ones(4, 8), rows, rows, 0.5)


def lists(starts: list[int], rows: list[int]) -> dict[str, torch.Tensor]:
    return {"row_start": torch.tensor(starts), "row": torch.tensor(rows, dtype=torch.int32)}


@pytest.mark.parametrize(
    "change",
    [
        {"query": torch.ones(5, 8)},  # heads do not divide
        {"query": torch.ones(4, 7)},  # another width
        {"query": torch.ones(0, 8)},
        {"query": torch.ones(8)},
        {"query": torch.ones(4, 8, dtype=torch.float64)},
        {"query": torch.ones(8, 4).T},
        {"query": torch.ones(4, 8, device="meta")},
        {"key": torch.ones(2, 9, 8)},  # fewer keys than values
        {"key": torch.ones(1, 10, 8)},
        {"key": torch.ones(2, 10, 8, dtype=torch.bfloat16)},  # not the values' dtype
        {"key": torch.ones(2, 10, 16)[..., ::2]},  # numbers of a row apart
        {"key": torch.ones(2, 10, 8, dtype=torch.int32), "value": torch.ones(2, 10, 8, dtype=torch.int32)},
        {"key": torch.ones(2, 10, 8, device="meta")},
        {"value": torch.ones(2, 10, 0)},
        {"softcap": -1.0},
        {"softcap": float("nan")},
        {"softcap": float("inf")},
        {"row_start": torch.tensor([0, 1, 2])},  # without rows
        lists([0, 1], []),  # ends beyond its rows
        lists([0, 1], [1]),  # one list for two KV heads
        lists([0, 1, 2, 3], [1, 2, 3]),  # three lists for four heads
        lists([0, 1, 2], [3, 10]),  # row out of range
        lists([0, 1, 2], [-1, 3]),
        lists([0, 2, 1], [3, 3]),  # falls
        lists([-1, 1, 2], [3, 3]),
        lists([0], []),
        {"row_start": torch.tensor([0, 1, 2], dtype=torch.int32), "row": torch.tensor([1, 1], dtype=torch.int32)},
        {"row_start": torch.tensor([0, 1, 2]), "row": torch.tensor([1, 1])},  # i64 rows
        {"row_start": torch.tensor([0, 1, 2]), "row": torch.tensor([1, 1, 1, 1], dtype=torch.int32)[::2]},
    ],
)
def test_a_bad_job_is_refused_and_stops_its_batch(change: dict[str, object]) -> None:
    job = good()
    native.attend(job)
    for name, value in change.items():
        setattr(job, name, value)
    with pytest.raises(NativeError):
        native.start([good(), job])


def test_no_jobs() -> None:
    with pytest.raises(NativeError):
        native.start([])


def test_message_names_the_shapes() -> None:
    job = good()
    job.key = torch.ones(2, 9, 8)
    with pytest.raises(NativeError, match=r"float32 \[4, 8\], float32 \[2, 9, 8\], float32 \[2, 10, 8\]"):
        native.attend(job)


def test_no_rows_need_no_memory() -> None:
    empty = torch.empty(2, 0, 8)
    out, lse = native.attend(native.Attention(torch.ones(4, 8), empty, empty, 0.5))
    assert (out == 0).all() and (lse == float("-inf")).all()


@pytest.mark.parametrize("threads", [0, -1, 1025, 10**12])
def test_thread_counts(threads: int) -> None:
    before = native.threads()
    with pytest.raises(UsageError, match=f"--threads: {threads} is out of range"):
        native.set_threads(threads)
    assert native.threads() == before


def test_default_dtype_of_torch_does_not_matter() -> None:
    try:
        torch.set_default_dtype(torch.bfloat16)
        got = native.attend(native.Attention(*(side.float() for side in (good().query, good().key, good().value)), 0.5))
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.out.dtype == torch.float32 and (got.out == 1).all()


def test_instruction_sets() -> None:
    assert native.isas()[-1] == "scalar" and native.isa() in native.isas()
    with pytest.raises(UsageError, match=r"'mmx'.*scalar"):
        native.use_isa("mmx")


def imported(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_environment_chooses_the_instruction_set() -> None:
    assert imported("from hgca_cli import native; print(native.isa())", HGCA_ISA="scalar").stdout == "scalar\n"
    code = """
from hgca_cli.errors import UsageError
try:
    from hgca_cli import native
except UsageError as error:
    print(error)
"""
    said = imported(code, HGCA_ISA="sse9").stdout
    assert "HGCA_ISA" in said and "'sse9'" in said and "scalar" in said


def test_missing_module_says_how_to_build_it() -> None:
    code = """
import sys
sys.modules["hgca_cli._native"] = None
from hgca_cli.errors import ModelError
try:
    from hgca_cli import native
except ModelError as error:
    print(error)
"""
    said = imported(code).stdout
    assert "not built" in said and "pip install" in said
