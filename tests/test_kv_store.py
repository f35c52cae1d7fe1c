"""The store: rows come back as they went in, in every dtype, however it grew and shrank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hgca_cli.errors import DoesNotFitError
from hgca_cli.hardware.memory import ITEMSIZE, SCALES
from hgca_cli.hf.cache import STORE_DTYPES
from hgca_cli.kv.growing import COMMIT_BYTES
from hgca_cli.kv.layout import KVLayout, LayerLayout
from hgca_cli.kv.store import Store

LAYOUT = LayerLayout(heads=4, kv_heads=2, key_dim=24, value_dim=16)
CPU = torch.device("cpu")
KINDS = [*STORE_DTYPES.values()]


def rows(rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    size = torch.logspace(-2, 2, count)[:, None] if count else 1.0  # rows differ in size: one scale would not do
    return torch.randn(2, count, 24, generator=rng) * size, torch.randn(2, count, 16, generator=rng) * size


def held(store: Store) -> tuple[Tensor, Tensor]:
    """All rows as float32, through blocks of 7."""
    pieces = list(store.blocks(7, CPU, torch.float32))
    assert all(key.shape[1] == value.shape[1] == 7 for key, value in pieces[:-1])
    keys, values = ([piece[part] for piece in pieces] or [torch.empty(2, 0, (24, 16)[part])] for part in (0, 1))
    return torch.cat(keys, 1), torch.cat(values, 1)


def agrees(got: Tensor, wanted: Tensor, kind: torch.dtype) -> bool:
    if kind != torch.int8:
        return torch.equal(got, wanted.to(kind).float())
    step = wanted.abs().amax(-1, keepdim=True) / 127
    return bool(((got - wanted).abs() <= step * 0.501).all())


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_append_truncate_and_blocks(kind: torch.dtype, source: torch.dtype, rng: torch.Generator) -> None:
    store = Store(LAYOUT, 100, kind)
    key, value = torch.empty(2, 0, 24), torch.empty(2, 0, 16)
    for count, back in ((1, 0), (0, 0), (30, 5), (7, 33), (64, 1)):
        more = [
            part.to(source).transpose(0, 1).contiguous().transpose(0, 1) for part in rows(rng, count)
        ]  # token-major
        store.append(more[0], more[1])
        key, value = torch.cat([key, more[0].float()], 1), torch.cat([value, more[1].float()], 1)
        store.truncate(store.rows - back)
        key, value = key[:, : store.rows], value[:, : store.rows]
        got = held(store)
        assert agrees(got[0], key, kind) and agrees(got[1], value, kind)
    assert store.rows == 63
    layout = next(name for name, dtype in STORE_DTYPES.items() if dtype == kind)
    counted = KVLayout((LAYOUT,), store_itemsize=ITEMSIZE[layout], store_scales=SCALES.get(layout, 0))
    assert store.bytes == 63 * counted.row_bytes == 63 * 2 * (40 * kind.itemsize + (8 if kind == torch.int8 else 0))


@pytest.mark.parametrize("kind", KINDS)
def test_growth_moves_nothing_and_large_appends_are_whole(kind: torch.dtype, rng: torch.Generator) -> None:
    many = 3 * COMMIT_BYTES // (40 * kind.itemsize)
    store = Store(LAYOUT, many, kind)
    first, whole = rows(rng, 3), rows(rng, many - 3)
    store.append(*first)
    at = store.keys.data_ptr()
    store.append(*whole)
    assert store.rows == many and store.keys.data_ptr() == at
    for part, (a, b) in enumerate(zip(first, whole, strict=True)):
        got = torch.cat([block[part] for block in store.blocks(1 << 20, CPU, torch.float32)], 1)
        assert agrees(got, torch.cat([a, b], 1), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_store_takes_nothing(kind: torch.dtype, rng: torch.Generator) -> None:
    store = Store(LAYOUT, 10, kind)
    store.append(*rows(rng, 9))
    before = held(store)
    with pytest.raises(DoesNotFitError, match="10 rows is full"):
        store.append(*rows(rng, 2))
    assert store.rows == 9 and all(torch.equal(a, b) for a, b in zip(before, held(store), strict=True))


def test_blocks_are_views_where_nothing_is_to_be_done(rng: torch.Generator) -> None:
    store = Store(LAYOUT, 10, torch.bfloat16)
    store.append(*rows(rng, 10))
    key, value = next(store.blocks(10, CPU, torch.bfloat16))
    assert key.data_ptr() == store.keys.data_ptr() and value.data_ptr() == store.values.data_ptr()
