"""Memory for second copies: the same numbers, apart from each other, aligned."""

from __future__ import annotations

import pytest
import torch

from hgca_cli.hf.pages import CHUNK, LINE, Pages


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float16])
def test_numbers_are_kept(dtype: torch.dtype, rng: torch.Generator) -> None:
    pages = Pages()
    tensors = [(100 * torch.rand(shape, generator=rng)).to(dtype) for shape in ((3, 5), (1,), (70, 2, 33), (16, 640))]
    kept = [pages.keep(tensor) for tensor in [*tensors, tensors[2].transpose(0, 1)]]
    assert all(torch.equal(here, tensor) for here, tensor in zip(kept, tensors, strict=False))
    assert torch.equal(kept[-1], tensors[2].transpose(0, 1))
    assert all(here.is_contiguous() and here.data_ptr() % LINE == 0 for here in kept)


def test_what_is_larger_than_a_chunk_has_its_own() -> None:
    pages = Pages()
    small, large, after = (pages.keep(torch.full((size,), 7, dtype=torch.uint8)) for size in (5, CHUNK + 9, 6))
    assert [int(one.sum()) // 7 for one in (small, large, after)] == [5, CHUNK + 9, 6]
