"""With the device on the CPU, jobs run on torch's own OpenMP threads: same results, same waiting."""

from __future__ import annotations

import pytest
import torch

from hgca_cli import native


def job(rng: torch.Generator, rows: int = 3000) -> native.Attention:
    return native.Attention(
        torch.randn(9, 64, generator=rng),
        torch.randn(3, rows, 64, generator=rng),
        torch.randn(3, rows, 64, generator=rng),
        0.125,
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_torchs_own_threads_give_the_same(threads: int, rng: torch.Generator) -> None:
    before, one = native.threads(), job(rng)
    try:
        native.set_threads(threads)
        want = native.attend(one)
        if not native.share_openmp(True):
            pytest.skip("this torch has no GNU OpenMP")
        pending = native.start([one, job(rng, 1), job(rng, 0)])
        assert torch.equal(pending.wait()[0].out, want.out)
        native.start([one])  # dropped
        assert all(torch.equal(native.attend(one).out, want.out) for _ in range(20))
    finally:
        native.share_openmp(False)
        native.set_threads(before)
    assert torch.equal(native.attend(one).lse, want.lse) or threads != before
