"""Prompts over rows in the processor's memory, read by the C library, against one softmax in float64 and against torch's attention.

Where the library has bf16 dots, queries and weights over rows of 16 bits or int8 are rounded to bf16 (native/kernels_many_pairs.h):
`allowed` says how far results may be off.
"""

from __future__ import annotations

import pytest
import torch

from hgca_cli import native
from hgca_cli.attention import dense, in_place
from hgca_cli.attention.layer import LayerState
from hgca_cli.kv.layout import LayerLayout
from tests import reference
from tests.reference import nmse
from tests.test_attention_paths import FEEDS, GQA, WIDE, Text, run, state

LARGE = LayerLayout(heads=8, kv_heads=2, key_dim=64, value_dim=64)  # more queries than a block of the kernel's has


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The library attends, whatever instruction set there is; how many tokens it was asked for each time."""
    seen: list[int] = []
    attend = in_place.attend

    def counted(query: torch.Tensor, *rest: object) -> object:
        seen.append(query.shape[1])
        return attend(query, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(in_place, "FASTER", ("",))
    monkeypatch.setattr(in_place, "attend", counted)
    return seen


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("layout", [GQA, WIDE, LARGE], ids=["gqa", "wide keys", "large"])
@pytest.mark.parametrize(("window", "sinks"), [(1, 4), (40, 0), (91, 4), (8, 90)])
def test_it_is_full_attention(
    isa: str, feed: str, layout: LayerLayout, window: int, sinks: int, asked: list[int], rng: torch.Generator
) -> None:
    text = Text(rng, 90, layout, 0.0, None)
    before = native.isa()
    native.use_isa(isa)
    try:
        got = run(text, state(layout, window=window, sinks=sinks, context=90), FEEDS[feed])
    finally:
        native.use_isa(before)
    assert (got - text.wanted()).abs().max() <= 1e-5
    assert asked == [size for size in FEEDS[feed] if size > 1]


def test_caps_and_learned_sinks(rng: torch.Generator) -> None:
    text = Text(rng, 90, LARGE, 2.0, torch.randn(8, generator=rng))
    got = run(text, state(LARGE, window=16, sinks=4, context=90), FEEDS["chunks"])
    assert (got - text.wanted()).abs().max() <= 1e-5


def allowed(isa: str, kind: torch.dtype) -> float:
    """Of numbers around 1."""
    return 1e-2 if isa in ("avx512bf16", "avx512amx") and kind in (torch.bfloat16, torch.int8) else 1e-5


def assert_near(got: torch.Tensor, wanted: torch.Tensor, isa: str, kind: torch.dtype) -> None:
    assert (got - wanted).abs().max() <= allowed(isa, kind)
    assert nmse(got, wanted.double()) <= 4e-6, "rounding rows of such numbers to bf16 is 5e-6"


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_store_is_read_as_it_is(isa: str, kind: torch.dtype, asked: list[int], rng: torch.Generator) -> None:
    """Long enough for OpenMP's threads, lists of several pieces and blocks that see no row of the chunk's first tile."""
    text = Text(rng, 700, LARGE, 0.0, None)
    text.key, text.value = (one.to(kind).float() for one in (text.key, text.value))
    got = run(text, state(LARGE, store=kind, window=40, sinks=4, context=700), [200, 33, 300, 167])
    assert_near(got, text.wanted(), isa, kind)
    assert asked == [200, 33, 300, 167]


@pytest.mark.parametrize("isa", [name for name in native.isas() if name.startswith("avx512")], indirect=True)
def test_rows_of_int8_are_what_they_stand_for(
    isa: str, asked: list[int], rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries are not rounded to 15 bits then: as torch's attention over the same rows as floats. (Others leave such rows to torch.)"""
    text, feed = Text(rng, 400, LARGE, 0.0, None), [100, 100, 65, 135]
    settings = {"store": torch.int8, "window": 16, "sinks": 4, "context": 400}
    got = run(text, state(LARGE, **settings), feed)
    assert asked == feed
    monkeypatch.setattr(in_place, "FASTER", ())
    wanted = run(text, state(LARGE, **settings), feed)
    assert asked == feed
    assert_near(got, wanted, isa, torch.int8)


def test_few_queries_of_int8_and_windows_that_slide_are_left_to_torch(asked: list[int], rng: torch.Generator) -> None:
    text = Text(rng, 90, GQA, 0.0, None)
    run(text, state(GQA, store=torch.int8, window=16, sinks=4, context=90), [60, 30])
    assert asked == [60]  # nothing was stored yet
    sliding = LayerLayout(heads=6, kv_heads=2, key_dim=16, value_dim=16, sliding=11)
    run(Text(rng, 90, sliding, 0.0, None), state(sliding, window=16, context=90), [60, 30])
    assert asked == [60]


def test_queries_of_16_bits(isa: str, rng: torch.Generator) -> None:
    """As a model of such weights has them: the same numbers as in float32, and its dtype comes out."""
    text = Text(rng, 90, LARGE, 0.0, None)
    query, key, value = (one.bfloat16() for one in (text.query, text.key, text.value))
    layer: LayerState = state(LARGE, window=100, context=90)
    out, lse = in_place.attend(query, key, value, layer, text.scale, 0.0)
    wide = (one.float().repeat_interleave(4, 0) for one in (key, value))
    wanted = dense._plain(query.float(), *wide, text.scale, 0.0, None, True)
    assert_near(out, wanted.out, isa, torch.bfloat16)
    assert (lse - wanted.lse).abs().max() <= allowed(isa, torch.bfloat16)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.int8])
def test_rounded_queries_are_mended_where_keys_are_large(isa: str, kind: torch.dtype, rng: torch.Generator) -> None:
    """A model's keys are large in few numbers: scores are off by a small part of what rounding all of a query to bf16 costs."""
    tokens, rows, width = 100, 300, 64
    query, key = torch.randn(tokens, 8, width, generator=rng), torch.randn(2, rows, width, generator=rng)
    key[..., [3, 20, 21, 50]] *= 30
    value = torch.randn(2, rows, width, generator=rng)
    more = {}
    if kind == torch.int8:
        scales = torch.stack([key.abs().amax(-1), value.abs().amax(-1)], -1) / 127
        key, value = ((side / scales[..., i, None]).round() for i, side in enumerate((key, value)))
        more = {"key_scale": scales[..., 0], "value_scale": scales[..., 1]}
    key, value = key.to(kind), value.to(kind)
    scale = 0.1
    got = native.attend(native.Attention(query, key, value, scale, **more))
    k, v = (side.double() for side in (key, value))
    if more:
        k, v = k * more["key_scale"].double()[..., None], v * more["value_scale"].double()[..., None]
    wanted = [torch.stack(both) for both in zip(*(reference.attend(q, k, v, scale) for q in query), strict=True)]
    crude = [reference.attend(q.bfloat16(), k, v, scale)[0] for q in query]
    assert nmse(got.out, wanted[0]) < 0.3 * nmse(torch.stack(crude), wanted[0])


def test_a_store_knows_how_much_of_a_prompt_will_be_its_own(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer: LayerState = state(LARGE, store=torch.bfloat16, window=40, sinks=4, context=90)
    told = list[int]()
    assert layer.store is not None
    monkeypatch.setattr(layer.store, "expect", told.append)
    layer.expect(90)
    layer.expect(0)
    layer.expect(10)
    assert told == [90 - layer.window.sinks - layer.window.ring, 0, 0]
