"""cuDNN's attention to blocks of rows, where it is faster than torch's flash kernels: on Hopper and Blackwell, half as fast again.

cuDNN makes a plan for every shape it is asked for, which takes the host some 30 ms: so rows are cut into blocks of a few sizes,
what is left goes to the flash kernels, and only whole chunks of long texts are worth it, whose shapes come again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from hgca_cli.attention.merge import Partial

BLOCKS = (16384, 8192, 4096)  # rows, each with a plan; the smallest saves several times what its merge takes
WHOLE = 1024  # tokens: a chunk whose shape comes again is a multiple of this, the last one of a prompt hardly ever
LONG = 16384  # rows before a chunk: what is saved on fewer pays for no plan
GENERATIONS = (9, 10)  # of GPUs: Hopper, and Blackwell as in data centres. On others flash is as fast


def pays(query: Tensor, value_dim: int, before: int) -> bool:
    """Whether a chunk's queries [heads, n, key_dim] are to read rows by blocks. before: rows that are there already."""
    if not query.is_cuda or before < LONG or query.shape[1] % WHOLE:
        return False
    half = query.dtype in (torch.float16, torch.bfloat16)
    dim = query.shape[-1]
    return half and dim == value_dim and dim % 8 == 0 and dim <= 128 and works(query.device, query.dtype, dim)


def blocks(key: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of keys and values [heads, rows, dim], in order: as large blocks as there are, then what is left."""
    first, rows = 0, key.shape[1]
    while first < rows:
        size = next((size for size in BLOCKS if size <= rows - first), rows - first)
        part = slice(first, first + size)
        yield key[:, part], value[:, part]
        first += size


def attend(query: Tensor, key: Tensor, value: Tensor, *, scale: float, causal: bool = False) -> Partial:
    """As dense.attend on a GPU; of fewer KV heads than heads, each serves its group."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query[None], key[None], value[None], None, True, 0.0, causal, scale=scale
    )
    return Partial(out[0], lse.reshape(query.shape[:2]))


@lru_cache
def works(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """Whether cuDNN attends there, and faster than flash; found by trying, as not every build of it does."""
    if torch.version.cuda is None or torch.cuda.get_device_capability(device)[0] not in GENERATIONS:
        return False
    try:
        return all(_right(device, dtype, dim, causal) for causal in (False, True))
    except RuntimeError:
        return False


def _right(device: torch.device, dtype: torch.dtype, dim: int, causal: bool) -> bool:
    """Whether cuDNN's results are those of plain products, of rows [key | value] and of queries that share KV heads."""
    draw = torch.Generator(device).manual_seed(1)
    made = (torch.randn(heads, 256, 2 * dim, generator=draw, device=device) for heads in (4, 4 if not causal else 2))
    query, rows = (one.to(dtype) for one in made)
    query, key, value = query[..., :dim].contiguous(), rows[..., :dim], rows[..., dim:]
    got = attend(query, key, value, scale=dim**-0.5, causal=causal)
    wide = [one.float().repeat_interleave(4 // rows.shape[0], 0) for one in (key, value)]
    score = query.float() @ wide[0].transpose(-1, -2) * dim**-0.5
    if causal:
        score.masked_fill_(torch.ones(256, 256, device=device, dtype=torch.bool).triu(1), float("-inf"))
    out, lse = torch.softmax(score, -1) @ wide[1], torch.logsumexp(score, -1)
    return torch.allclose(got.out.float(), out, rtol=0.0, atol=0.05) and torch.allclose(
        got.lse, lse, rtol=0.0, atol=0.02
    )
