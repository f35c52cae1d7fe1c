"""Rows that are read and nothing else: what attention over chosen rows is measured by."""

import pytest
import torch

from hgca_cli import native
from hgca_cli.errors import NativeError


def rows(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    numbers = torch.randint(-100, 100, (2, 300, 48), generator=torch.Generator().manual_seed(1)).to(dtype)
    scale = torch.ones(2, 300) if dtype is torch.int8 else None
    return {"key": numbers[..., :24], "value": numbers[..., 24:], "key_scale": scale, "value_scale": scale}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("chosen", [None, "rows", "runs"])
def test_the_result_is_as_over_no_rows(dtype: torch.dtype, chosen: str | None) -> None:
    start = torch.tensor([0, 3, 5]) if chosen else None
    row = torch.tensor([0, 7, 299, 1, 2], dtype=torch.int32) if chosen == "rows" else None
    run = None
    if chosen == "runs":
        row = torch.tensor([0, 7, 200, 1, 40], dtype=torch.int32)
        run = torch.tensor([5, 0, 100, 30, 1], dtype=torch.int32)
    job = native.Attention(
        torch.randn(4, 24), scale=0.2, row_start=start, row=row, run=run, only_read=True, **rows(dtype)
    )
    found = native.attend(job)
    assert torch.equal(found.out, torch.zeros(4, 24)) and torch.equal(found.lse, torch.full((4,), -torch.inf))


def test_rows_that_are_not_there_are_refused() -> None:
    start, row = torch.tensor([0, 1, 1]), torch.tensor([300], dtype=torch.int32)
    job = native.Attention(
        torch.randn(4, 24), scale=0.2, row_start=start, row=row, only_read=True, **rows(torch.bfloat16)
    )
    with pytest.raises(NativeError):
        native.attend(job)
