"""The GPU's kernel of attention/merge.py. Importing this needs Triton."""

from __future__ import annotations

import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]

from hgca_cli.attention.merge import Partial

ROWS = 16  # of a program: 2,048 numbers where they are 128 wide


@triton.jit
def _take_in(  # type: ignore[no-untyped-def]
    whole, whole_lse, more, more_lse, rows, queries, more_head, more_row,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows [heads, queries, WIDTH] of `whole`, packed, become those of both; rows of `more` have strides."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, PADDED)
    real = row < rows
    some = real[:, None] & (at < WIDTH)[None, :]
    a = tl.load(whole_lse + row, mask=real, other=float("-inf"))
    b = tl.load(more_lse + row, mask=real, other=float("-inf"))
    top = tl.where(a > b, a, b)
    base = tl.where(top == float("-inf"), 0.0, top)  # neither has a row: -inf - -inf
    mine, other = tl.exp(a - base), tl.exp(b - base)
    total = mine + other
    none = total == 0.0  # a sum that is no number goes on
    divisor = tl.where(none, 1.0, total)
    mine_at = whole + row[:, None] * WIDTH + at[None, :]
    other_at = more + ((row // queries) * more_head + (row % queries) * more_row)[:, None] + at[None, :]
    out = tl.load(mine_at, mask=some, other=0.0) * (mine / divisor)[:, None]
    out += tl.load(other_at, mask=some, other=0.0).to(tl.float32) * (other / divisor)[:, None]
    tl.store(mine_at, out, mask=some)
    tl.store(whole_lse + row, tl.where(none, float("-inf"), base + tl.log(divisor)), mask=real)


def take_in(whole: Partial, more: Partial) -> None:
    """As merge.take_in, of [heads, queries, value_dim]: `whole` and both log-sum-exps packed, rows of `more` too."""
    heads, queries, width = whole.out.shape
    out = more.out if more.out.stride(-1) == 1 else more.out.contiguous()
    rows = heads * queries
    _take_in[(triton.cdiv(rows, ROWS),)](
        whole.out, whole.lse, out, more.lse.contiguous(), rows, queries, out.stride(0), out.stride(1),
        WIDTH=width, PADDED=triton.next_power_of_2(width), ROWS=ROWS,
    )  # fmt: skip


def works(device: str) -> bool:
    """Whether the kernel compiles there and does what it is to do, found by trying; errors are whatever Triton raises."""
    import torch

    from hgca_cli.attention.merge import take_in_plainly

    lse = torch.tensor([[0.5, float("-inf"), float("-inf"), 3.0], [1.0, 2.0, float("-inf"), -90.0]])
    both = [lse, lse.flip(0)]
    outs = [
        torch.arange(48.0).view(2, 4, 6) / (7 + turn) * ~one.isneginf().unsqueeze(-1) for turn, one in enumerate(both)
    ]
    results = []
    for there, how in (("cpu", take_in_plainly), (device, take_in)):
        whole, more = (
            Partial(out.to(there).clone(), one.to(there).clone()) for out, one in zip(outs, both, strict=True)
        )
        how(whole, more)
        results.append([one.cpu() for one in whole])
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*results, strict=True))
