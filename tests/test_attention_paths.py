"""The two tiers against one softmax in float64: prompts in chunks, steps, evictions, sinks, sliding, rewinds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hgca_cli.attention import cudnn, dense, in_place, stream
from hgca_cli.attention.layer import LayerState
from hgca_cli.attention.merge import Partial, take_in
from hgca_cli.attention.select import make_selector
from hgca_cli.attention.step import decode_attention
from hgca_cli.attention.stream import prompt_attention
from hgca_cli.config import CacheSettings
from hgca_cli.errors import ContextOverflowError
from hgca_cli.kv import layout as sizes
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.pieces import Pieces

CPU = torch.device("cpu")


class Text:
    """Random queries, keys and values of a sequence, and what attention over it must give."""

    def __init__(self, rng: torch.Generator, n: int, layout: LayerLayout, softcap: float, sink: Tensor | None) -> None:
        self.layout, self.softcap, self.sink = layout, softcap, sink
        self.query = torch.randn(layout.heads, n, layout.key_dim, generator=rng)
        self.key = torch.randn(layout.kv_heads, n, layout.key_dim, generator=rng)
        self.value = torch.randn(layout.kv_heads, n, layout.value_dim, generator=rng)
        self.scale = layout.key_dim**-0.5

    def wanted(self) -> Tensor:
        group = self.layout.heads // self.layout.kv_heads
        key, value = (x.double().repeat_interleave(group, 0) for x in (self.key, self.value))
        score = self.query.double() @ key.transpose(-1, -2) * self.scale
        if self.softcap:
            score = self.softcap * torch.tanh(score / self.softcap)
        at = torch.arange(score.shape[-1])
        distance = at[:, None] - at
        hidden = (distance < 0) | (distance >= (self.layout.sliding or 1 << 30))
        score = score.masked_fill(hidden, float("-inf"))
        if self.sink is not None:
            logit = self.sink.double().reshape(-1, 1, 1).expand(*score.shape[:2], 1)
            return torch.softmax(torch.cat([score, logit], -1), -1)[..., :-1] @ value
        return torch.softmax(score, -1) @ value

    def feed(self, layer: LayerState, first: int, count: int) -> Tensor:
        """Tokens first .. first + count - 1: a step if it is one and no prompt is expected, else a chunk."""
        piece = slice(first, first + count)
        query, key, value = self.query[:, piece], self.key[:, piece], self.value[:, piece]
        extra = {"scale": self.scale, "softcap": self.softcap, "sink": self.sink}
        if count == 1 and layer.prompt_left == 0:
            step = decode_attention(query[None, :, 0], key[None], value[None], [layer], **extra)
            return step[0][:, None]
        return prompt_attention(query, key, value, layer, **extra)


def run(text: Text, layer: LayerState, sizes: list[int]) -> Tensor:
    outs, first = [], 0
    for size in sizes:
        outs.append(text.feed(layer, first, size))
        first += size
    return torch.cat(outs, dim=1)


def state(layout: LayerLayout, store: torch.dtype = torch.float32, **settings: object) -> LayerState:
    chosen = CacheSettings(**settings)  # type: ignore[arg-type]
    return LayerState(layout, chosen, make_selector(chosen, layout, 0), CPU, torch.float32, store)


GQA = LayerLayout(heads=6, kv_heads=2, key_dim=16, value_dim=16)
WIDE = LayerLayout(heads=4, kv_heads=4, key_dim=24, value_dim=16)
SLIDING = LayerLayout(heads=6, kv_heads=2, key_dim=16, value_dim=16, sliding=11)
FEEDS = {
    "steps": [1] * 90,
    "prompt then steps": [60] + [1] * 30,
    "chunks": [7, 1, 30, 2, 33, 17],
    "turns": [20, 1, 1, 1, 25, 1, 1, 1, 1, 1, 30] + [1] * 7,
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store comes in pieces of 7 rows, of one KV head where rows are narrow."""
    monkeypatch.setattr(sizes, "PIECE_NUMBERS", 32 * 7)
    monkeypatch.setattr(sizes, "PIECE_ROWS", 7)


@pytest.fixture(autouse=True)
def torch_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts over rows in the processor's memory, too: elsewhere they are the library's (test_attention_in_place.py)."""
    monkeypatch.setattr(in_place, "FASTER", ())


def as_on_a_gpu(layer: LayerState, apart: bool) -> LayerState:
    """The window, still empty, is not the C library's to read: torch attends to it, as on any other device, and the store is
    copied there.
    """
    if apart:
        layer.window.read = None
        layer.pieces = Pieces(apart=True)
    return layer


@pytest.mark.parametrize("apart", [False, True], ids=["window in the call", "window apart"])
@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("layout", [GQA, WIDE, SLIDING], ids=["gqa", "wide keys", "sliding"])
@pytest.mark.parametrize(
    ("window", "sinks"), [(1, 0), (1, 4), (16, 4), (40, 0), (89, 0), (90, 0), (91, 4), (16, 95), (8, 90)]
)
def test_exact_over_two_tiers_is_full_attention(
    feed: str, layout: LayerLayout, window: int, sinks: int, apart: bool, rng: torch.Generator
) -> None:
    text = Text(rng, 90, layout, 0.0, None)
    layer = as_on_a_gpu(state(layout, window=window, sinks=sinks, context=90), apart)
    got = run(text, layer, FEEDS[feed])
    assert (got - text.wanted()).abs().max() <= 1e-5
    if layer.store is not None and window + sinks >= 90:
        assert layer.store.rows == 0 and layer.evictor is not None and layer.evictor.pending == 0


@pytest.mark.parametrize("rounded", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize(("least", "numbers"), [(1, 1), (4, 60), (1, 1000), (128, 1000)])
def test_sliding_layers_attend_slice_by_slice(
    least: int,
    numbers: int,
    feed: str,
    softcap: float,
    rounded: torch.dtype,
    rng: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slices of 1, of 5, of as many as rows are seen, and whole chunks; plain products a few queries at a time."""
    monkeypatch.setattr(stream, "LEAST_SLICE", least)
    monkeypatch.setattr(stream, "BIAS_NUMBERS", numbers)
    monkeypatch.setattr(dense, "SCORE_BYTES", 4 * 2 * 16 * 7)
    text = Text(rng, 90, SLIDING, softcap, None)
    text.query, text.key, text.value = (one.to(rounded) for one in (text.query, text.key, text.value))
    chosen = CacheSettings(window=16, context=90)
    layer = LayerState(SLIDING, chosen, make_selector(chosen, SLIDING, 0), CPU, rounded, rounded)
    got = run(text, layer, FEEDS[feed])
    assert (got - text.wanted()).abs().max() <= (1e-5 if rounded is torch.float32 else 0.02)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows are read in blocks of 8 and of 4, as with cuDNN, by plain products; how many each block had."""
    seen = []

    def attend(query: Tensor, key: Tensor, value: Tensor, *, scale: float, causal: bool = False) -> Partial:
        seen.append(key.shape[1])
        wide = (one.repeat_interleave(query.shape[0] // one.shape[0], 0) for one in (key, value))
        return dense._plain(query, *wide, scale, 0.0, None, causal)

    monkeypatch.setattr(cudnn, "BLOCKS", (8, 4))
    monkeypatch.setattr(cudnn, "pays", lambda query, value_dim, before: query.shape[-1] == value_dim and before >= 8)
    monkeypatch.setattr(cudnn, "attend", attend)
    return seen


@pytest.mark.parametrize("apart", [False, True], ids=["window in the call", "window apart"])
@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("layout", [GQA, WIDE], ids=["gqa", "wide keys"])
@pytest.mark.parametrize(("window", "sinks"), [(1, 4), (16, 4), (40, 0), (91, 4)])
def test_blocks_of_rows_are_attended_to_once(
    feed: str, layout: LayerLayout, window: int, sinks: int, apart: bool, planned: list[int], rng: torch.Generator
) -> None:
    text = Text(rng, 90, layout, 0.0, None)
    layer = as_on_a_gpu(state(layout, window=window, sinks=sinks, context=90), apart)
    assert (run(text, layer, FEEDS[feed]) - text.wanted()).abs().max() <= 1e-5
    assert set(planned) <= {8, 4}
    assert bool(planned) == (layout is GQA and feed in ("chunks", "turns"))


@pytest.mark.parametrize("apart", [False, True], ids=["window in the call", "window apart"])
@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("layout", [GQA, SLIDING], ids=["full", "sliding"])
def test_softcap_and_learned_sink(feed: str, layout: LayerLayout, apart: bool, rng: torch.Generator) -> None:
    text = Text(rng, 90, layout, 3.0, torch.randn(6, generator=rng))
    layer = as_on_a_gpu(state(layout, window=16, context=90), apart)
    assert (run(text, layer, FEEDS[feed]) - text.wanted()).abs().max() <= 1e-5


@pytest.mark.parametrize("apart", [False, True], ids=["window in the call", "window apart"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_16_bit_store_rounds_and_no_more(kind: torch.dtype, apart: bool, rng: torch.Generator) -> None:
    text = Text(rng, 90, GQA, 0.0, None)
    got = run(text, as_on_a_gpu(state(GQA, kind, window=16, context=90), apart), FEEDS["turns"])
    error = (got - text.wanted()).pow(2).mean() / text.wanted().pow(2).mean()
    assert error <= 5e-4


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("layout", [GQA, WIDE], ids=["gqa", "wide keys"])
def test_an_int8_store_stays_within_the_bar(
    layout: LayerLayout, softcap: float, feed: str, rng: torch.Generator
) -> None:
    text = Text(rng, 90, layout, softcap, torch.randn(layout.heads, generator=rng))
    offset = torch.randn(layout.kv_heads, 1, layout.key_dim, generator=rng) * 2  # keys of a model share a direction
    text.key += offset
    got = run(text, state(layout, torch.int8, window=8, context=90), FEEDS[feed])
    error = (got - text.wanted()).pow(2).sum() / text.wanted().pow(2).sum()
    assert 0 < error <= 1e-3


def test_batch_rows_keep_apart(rng: torch.Generator) -> None:
    texts = [Text(rng, 50, GQA, 0.0, None) for _ in range(3)]
    layers = [state(GQA, window=8, context=50) for _ in texts]
    for length, (text, layer) in zip((40, 7, 23), zip(texts, layers, strict=True), strict=True):
        text.feed(layer, 0, length)
    at = [layer.length for layer in layers]
    query = torch.stack([t.query[:, n] for t, n in zip(texts, at, strict=True)])
    key = torch.stack([t.key[:, n : n + 1] for t, n in zip(texts, at, strict=True)])
    value = torch.stack([t.value[:, n : n + 1] for t, n in zip(texts, at, strict=True)])
    got = decode_attention(query, key, value, layers, scale=texts[0].scale)
    for out, text, n in zip(got, texts, at, strict=True):
        assert (out - text.wanted()[:, n]).abs().max() <= 1e-5


@pytest.mark.parametrize("back", [1, 5, 30, 59])
@pytest.mark.parametrize("window", [1, 16, 100])
def test_rewind_then_other_tokens(back: int, window: int, rng: torch.Generator) -> None:
    text = Text(rng, 90, GQA, 0.0, None)
    layer = state(GQA, window=window, sinks=4, context=90)
    run(text, layer, [40] + [1] * 20)
    length = 60 - back
    layer.rewind(length)
    assert layer.length == length
    for tensor in (text.query, text.key, text.value):
        tensor[:, length:] = torch.randn(tensor[:, length:].shape, generator=rng)
    got = torch.cat([text.feed(layer, length, 10), text.feed(layer, length + 10, 1)], dim=1)
    assert (got - text.wanted()[:, length : length + 11]).abs().max() <= 1e-5


def test_a_sliding_layer_rewinds_only_what_it_still_has(rng: torch.Generator) -> None:
    text = Text(rng, 90, SLIDING, 0.0, None)
    layer = state(SLIDING, window=4, context=90)
    run(text, layer, [40])
    assert layer.can_rewind(39) and not layer.can_rewind(30)
    layer.rewind(39)
    assert (text.feed(layer, 39, 5) - text.wanted()[:, 39:44]).abs().max() <= 1e-5


def test_every_row_is_in_one_place(rng: torch.Generator) -> None:
    text = Text(rng, 90, GQA, 0.0, None)
    layer = state(GQA, window=24, sinks=4, context=90)
    for first, size in ((0, 30), (30, 1), (31, 1), (32, 40), (72, 1)):
        text.feed(layer, first, size)
        assert layer.store is not None and layer.evictor is not None
        assert layer.window.rows + layer.store.rows + layer.evictor.pending == layer.length


def test_window_policy_reads_sinks_and_window_only(rng: torch.Generator) -> None:
    text = Text(rng, 90, GQA, 0.0, None)
    layer = state(GQA, window=16, sinks=4, context=90, select="window")
    run(text, layer, [89])
    got = text.feed(layer, 89, 1)
    assert layer.reads.share == 0.0 and layer.reads.steps == 1
    kept = [*range(4), *range(layer.window.start, 89), 89]
    score = text.query[:, 89:90].double() @ text.key[:, kept].double().repeat_interleave(3, 0).transpose(-1, -2)
    want = torch.softmax(score * text.scale, -1) @ text.value[:, kept].double().repeat_interleave(3, 0)
    assert len(kept) < 25 and (got - want).abs().max() <= 1e-5


def test_the_context_is_a_limit_that_loses_nothing(rng: torch.Generator) -> None:
    text = Text(rng, 60, GQA, 0.0, None)
    layer = state(GQA, window=8, context=50)
    run(text, layer, [50])
    with pytest.raises(ContextOverflowError, match="51 tokens"):
        text.feed(layer, 50, 1)
    with pytest.raises(ContextOverflowError, match="60 tokens"):
        text.feed(layer, 50, 10)
    assert layer.length == 50


def test_an_evicted_row_arrives_whenever_the_copy_ends(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is read only after what was on its way has arrived."""
    text = Text(rng, 90, GQA, 0.0, None)
    layer = state(GQA, window=8, context=90)
    run(text, layer, [20])
    assert layer.evictor is not None and layer.store is not None
    stored = layer.store.rows
    assert layer.evictor.pending > 0 and stored + layer.evictor.pending + layer.window.rows == 20
    got = text.feed(layer, 20, 1)
    assert layer.store.rows > stored
    assert (got - text.wanted()[:, 20:21]).abs().max() <= 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.int8])
def test_a_long_prompt_on_a_gpu_is_full_attention(
    kind: torch.dtype, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that evict more than they leave room for, pieces of the store that pass each other, and blocks where cuDNN attends."""
    monkeypatch.setattr(cudnn, "LONG", 4096)
    layout, device, chunk, rows = LayerLayout(8, 2, 128, 128), torch.device("cuda"), 4096, 36_864
    monkeypatch.setattr(sizes, "GPU_PIECE_NUMBERS", 2 * 256 * 5000)
    settings = CacheSettings(window=9000, sinks=4, context=rows, select="scan")
    selector = make_selector(settings, layout, 0)
    layer = LayerState(layout, settings, selector, device, torch.bfloat16, kind)
    query = torch.randn(8, rows, 128, generator=rng).to(device, torch.bfloat16)
    key, value = (torch.randn(2, rows, 128, generator=rng).to(device, torch.bfloat16) for _ in "kv")
    layer.expect(rows)
    outs = [
        prompt_attention(*(one[:, first : first + chunk] for one in (query, key, value)), layer, scale=128**-0.5)
        for first in range(0, rows, chunk)
    ]
    for first in (0, rows - chunk):
        at = slice(first, first + chunk)
        wide = [one[:, : at.stop].repeat_interleave(4, 0) for one in (key, value)]
        wanted = dense._plain(query[:, at], *(one[:, at] for one in wide), 128**-0.5, 0.0, None, True)
        if first:
            take_in(wanted, dense._plain(query[:, at], *(one[:, :first] for one in wide), 128**-0.5, 0.0, None, False))
        error = outs[first // chunk].float() - wanted.out
        assert error.abs().max() <= 0.02 and error.pow(2).sum() <= 1e-3 * wanted.out.pow(2).sum()
    kept = layer.every_row()
    assert kind == torch.int8 or all(torch.equal(a, b.cpu()) for a, b in zip(kept, (key, value), strict=True))
