"""Attention over some of the rows, and how two such parts become one: exactly, by log-sum-exp.

Source: HGCA, arXiv:2507.03153, section 3; the same identity as in FlashAttention's split-KV decoding.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

KERNEL_PAYS = 1 << 22  # numbers, of a chunk of 1,024 tokens: for less Triton need not be started


class Partial(NamedTuple):
    """Softmax attention over some of the rows; leading shapes agree."""

    out: Tensor  # [..., value_dim], zeros over no rows; f32, but for what a GPU's kernels give
    lse: Tensor  # f32 [...], natural ln sum exp(score); -inf over no rows


def merge(a: Partial, b: Partial) -> Partial:
    """Attention over the rows of both (which must be different rows).

    An empty part gives exactly the other part; two empty parts give zeros and -inf.
    """
    lse = torch.logaddexp(a.lse, b.lse)
    share = torch.exp(a.lse - lse).masked_fill_(lse.isneginf(), 0.0)  # both empty: -inf - -inf
    # weight times row, not lerp: b + share * (a - b) loses digits where |a| >> |b|, and an empty part must add nothing
    share_b = torch.exp(b.lse - lse).masked_fill_(lse.isneginf(), 0.0)
    return Partial(a.out * share.unsqueeze(-1) + b.out * share_b.unsqueeze(-1), lse)


def take_in(whole: Partial, more: Partial) -> None:
    """`merge` into the memory of `whole`, in as few passes over it as there can be: chunks of a prompt are large.

    On a GPU that is one pass where Triton works: reading twice and writing twice took a tenth of what attention did.
    """
    out = whole.out
    if (
        out.is_cuda
        and out.dim() == 3
        and out.numel() >= KERNEL_PAYS
        and out.is_contiguous()
        and _kernel_works(out.device)
    ):
        from hgca_cli.attention import merge_triton

        merge_triton.take_in(whole, more)
    else:
        take_in_plainly(whole, more)


@lru_cache
def _kernel_works(device: torch.device) -> bool:
    """Triton is not everywhere, and needs a C compiler and Python's headers where it is."""
    try:
        from hgca_cli.attention import merge_triton

        return merge_triton.works(str(device))
    except Exception:
        return False


def take_in_plainly(whole: Partial, more: Partial) -> None:
    """As take_in, by torch."""
    lse = torch.logaddexp(whole.lse, more.lse)
    neither = lse.isneginf()
    share, share_more = (torch.exp(part.lse - lse).masked_fill_(neither, 0.0).unsqueeze(-1) for part in (whole, more))
    whole.out.mul_(share).addcmul_(more.out, share_more)
    whole.lse.copy_(lse)


def absorb_sink(partial: Partial, logit: Tensor) -> Partial:
    """A learned attention sink: one more logit per head whose value is zero (gpt-oss).

    partial  out [heads, ..., value_dim]; logit  [heads], not scaled
    """
    shape = (-1,) + (1,) * (partial.lse.dim() - 1)
    sink = logit.to(partial.lse.dtype).reshape(shape).expand_as(partial.lse)
    return merge(partial, Partial(torch.zeros_like(partial.out), sink))
