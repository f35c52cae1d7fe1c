"""Random rows with an index of them, and what the C library chooses of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hgca_cli import indexing, native, selection
from hgca_cli.selection import Aimed, Reads, Selection

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


def row_bytes(dtype: torch.dtype, width: int) -> int:
    return width * dtype.itemsize + (8 if dtype == torch.int8 else 0)


@dataclass(frozen=True)
class Result:
    """out f32 [heads, value_dim], lse and read_lse f32 [heads], rows_read i64 [kv_heads]."""

    out: Tensor
    lse: Tensor
    read_lse: Tensor
    rows_read: Tensor
    reads: Reads


@dataclass(frozen=True)
class Clustering:
    """As Selection.cluster wants it."""

    rows: int
    order: Tensor
    group_codes: Tensor
    means: Tensor
    apart: Tensor
    block_codes: tuple[Tensor, Tensor] | None = None
    shared: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Indexed:
    """Rows [kv_heads, rows, dim] as they are stored, their scales [kv_heads, rows, 2] if i8, and codes of the first ones."""

    key: Tensor
    value: Tensor
    scales: Tensor | None
    codes: Tensor
    block_means: Tensor
    indexed: int
    clustering: Clustering | None = None

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Keys and values f64."""
        if self.scales is None:
            return self.key.double(), self.value.double()
        return self.key.double() * self.scales[..., :1].double(), self.value.double() * self.scales[..., 1:].double()

    def selection(self, heads: int, *, estimate: bool = False, **options: Any) -> Selection:
        gate = options.pop("gate", None)
        made = Selection(
            heads, self.key, self.value, self.codes,
            scales=self.scales, block_means=self.block_means if estimate else None, **options,
        )  # fmt: skip
        made.hold(self.key.shape[1], self.indexed)
        if self.clustering is not None:
            c = self.clustering
            gate = {"block_codes": c.block_codes, **gate} if gate else {"gate": "none", "mass": 1.0}
            made.cluster(c.rows, c.order, c.group_codes, c.means, c.apart, shared=c.shared, **gate)
        return made

    def choose(self, query: Tensor, scale: float, softcap: float = 0.0, **options: Any) -> Result:
        near, beside = options.pop("near", None), options.pop("beside", None)
        made = self.selection(query.shape[0], **options)
        (got,) = selection.start([Aimed(made, query, scale, softcap, near, beside)]).wait()
        return Result(got.out, got.lse, made.read_lse.clone(), made.rows_read.clone(), made.reads)

    def chosen(self, query: Tensor, scale: float, softcap: float = 0.0, **options: Any) -> Tensor:
        """Which rows are read, bool [kv_heads, rows]: with the unit vectors as values the output is the rows' weights."""
        kv_heads, rows, _ = self.key.shape
        one = torch.eye(rows).to(self.value.dtype).expand(kv_heads, rows, rows)
        # nor do blocks, with a mean value of zero: what is estimated is chosen by another rule
        blocks = self.clustering is not None and self.clustering.block_codes is not None
        guessed = blocks or options.get("estimate", False)
        means = torch.zeros(kv_heads, self.block_means.shape[1] if guessed else 0, rows, dtype=torch.bfloat16)
        probe = replace(self, value=one, block_means=means)
        if self.clustering is not None:  # groups not taken leave no trace: their mean value is zero
            c = self.clustering
            keys = c.means[..., : self.key.shape[2]]
            groups = torch.cat([keys, torch.zeros(kv_heads, keys.shape[1], rows, dtype=keys.dtype)], 2)
            probe = replace(probe, clustering=replace(c, means=groups))
        out = probe.choose(query, scale, softcap, **(options | {"estimate": guessed, "near": None})).out
        return (out.view(kv_heads, -1, rows) != 0).any(1)


def index(
    kv_heads: int,
    rows: int,
    key_dim: int,
    value_dim: int,
    dtype: torch.dtype,
    *,
    indexed: int | None = None,
    seed: int = 1,
) -> Indexed:
    """Normal rows, [key | value | gap] in memory; a few channels of keys are large, as a model's are."""
    rng = torch.Generator().manual_seed(seed)
    shape = (kv_heads, rows, key_dim + value_dim + 1)
    scales = None
    if dtype == torch.int8:
        memory = torch.randint(-127, 128, shape, generator=rng).to(torch.int8)
        scales = (0.5 + torch.rand(kv_heads, rows, 2, generator=rng)) / 64
    else:
        memory = torch.randn(shape, generator=rng)
        memory[..., :key_dim:7] = memory[..., :key_dim:7] * 2 + 3
        memory = memory.to(dtype)
    return reindex(memory[..., :key_dim], memory[..., key_dim:-1], scales, rows if indexed is None else indexed)


def reindex(key: Tensor, value: Tensor, scales: Tensor | None, indexed: int) -> Indexed:
    """Codes of the first `indexed` rows."""
    blocks = -(-indexed // indexing.BLOCK)
    codes = torch.empty(key.shape[0], blocks, indexing.block_bytes(key.shape[2]), dtype=torch.uint8)
    means = torch.empty(key.shape[0], blocks, value.shape[2], dtype=torch.bfloat16)
    key_scale, value_scale = (None, None) if scales is None else scales[:, :indexed].unbind(-1)
    indexing.encode(key[:, :indexed], codes, 0, scale=key_scale)
    indexing.average(value[:, :indexed], means, 0, each=indexing.BLOCK, scale=value_scale)
    return Indexed(key, value, scales, codes, means, indexed)


def cluster(plain: Indexed, clustered: int, apart: int, means_dtype: torch.dtype = torch.bfloat16) -> Indexed:
    """The first `clustered` rows in groups; the positions behind them as they were."""
    kv_heads, _, key_dim = plain.key.shape
    order = torch.empty(kv_heads, clustered, dtype=torch.int32)
    key_scale, value_scale = (None, None) if plain.scales is None else plain.scales.unbind(-1)
    indexing.cluster(plain.key, order, 0, apart=apart, scale=key_scale)
    codes, block_means = plain.codes.clone(), plain.block_means.clone()
    whole = torch.cat([order, torch.arange(clustered, plain.indexed, dtype=torch.int32).expand(kv_heads, -1)], 1)
    indexing.encode(plain.key, codes, 0, scale=key_scale, order=whole)
    indexing.average(plain.value, block_means, 0, each=indexing.BLOCK, scale=value_scale, order=whole)
    groups = clustered // indexing.GROUP
    means = torch.empty(kv_heads, groups, key_dim + plain.value.shape[2], dtype=torch.bfloat16)
    indexing.average(plain.key, means[..., :key_dim], 0, each=indexing.GROUP, scale=key_scale, order=order)
    indexing.average(plain.value, means[..., key_dim:], 0, each=indexing.GROUP, scale=value_scale, order=order)
    group_codes = torch.empty(kv_heads, -(-groups // indexing.BLOCK), codes.shape[2], dtype=torch.uint8)
    indexing.encode(means[..., :key_dim], group_codes, 0)
    flags = torch.zeros(kv_heads, groups, dtype=torch.uint8)
    flags[:, groups - apart :] = 1
    made = Clustering(clustered, order, group_codes, means.to(means_dtype), flags)
    return replace(plain, codes=codes, block_means=block_means, clustering=made)


def with_shared_scales(made: Indexed, span: int, shared: int) -> Indexed:
    """Every `span` blocks of the clustering begin with so many that share their scales."""
    c = made.clustering
    assert c is not None
    scale, codes = None if made.scales is None else made.scales[..., 0], made.codes.clone()
    for first in range(0, c.rows, span * indexing.BLOCK):
        end = min(c.rows, first + shared * indexing.BLOCK)
        indexing.encode(made.key, codes, first, scale=scale, order=c.order[:, :end], shared=span)
    return replace(made, codes=codes, clustering=replace(c, shared=(span, shared)))


def with_blocks(made: Indexed) -> Indexed:
    """Codes of the mean keys of blocks and of the variances about them, beside those of groups."""
    c = made.clustering
    assert c is not None
    blocks, (heads, _, dim) = c.rows // indexing.BLOCK, made.key.shape
    scale = None if made.scales is None else made.scales[..., 0]
    keys = torch.empty(2, heads, blocks, dim, dtype=torch.bfloat16)
    codes = torch.empty(2, heads, -(-blocks // indexing.BLOCK), indexing.block_bytes(dim), dtype=torch.uint8)
    for spread in (0, 1):
        indexing.average(
            made.key, keys[spread], 0, each=indexing.BLOCK, scale=scale, order=c.order, spread=bool(spread)
        )
        indexing.encode(keys[spread], codes[spread], 0)
    return replace(made, clustering=replace(c, block_codes=(codes[0], codes[1])))


def random_query(heads: int, key_dim: int, seed: int = 7) -> Tensor:
    return torch.randn(heads, key_dim, generator=torch.Generator().manual_seed(seed))


def near_rows(rows: Indexed, query: Tensor, scale: float, lists: native.Lists | None = None) -> native.Step:
    scales = () if rows.scales is None else rows.scales.unbind(-1)
    return native.Step(query, native.Rows(rows.key, rows.value, *scales), rows.key.shape[1], scale, 0.0, lists)
