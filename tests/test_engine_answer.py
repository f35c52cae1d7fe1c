"""Reading and writing with a tiny random model: limits, stopping, failing, and what is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hgca_cli.config import CacheSettings, SamplingSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.engine.sequence import DeviceFullError, Sequence
from hgca_cli.errors import ContextOverflowError, ModelError, UsageError
from hgca_cli.events import Done, Notice, PrefillProgress, Text
from hgca_cli.kv.pinning import Cuda, Pinning
from tests.tiny_engine import tiny_engine, tiny_loaded, tiny_model

GREEDY = SamplingSettings(temperature=0, max_tokens=12)
PROMPT = [40 + (7 * n) % 200 for n in range(60)]


class OtherEnds:
    """A tokenizer with other tokens that end an answer."""

    def __init__(self, tokenizer: Any, ends: set[int]) -> None:
        self.tokenizer, self.end_ids = tokenizer, frozenset(ends)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def ending(engine: Engine, *ends: int) -> Engine:
    """The same engine, whose answers end with other tokens."""
    engine.loaded = replace(engine.loaded, tokenizer=OtherEnds(engine.loaded.tokenizer, set(ends)))  # type: ignore[arg-type]
    return engine


def no_end(engine: Engine) -> Engine:
    """The same engine, whose answers never end by themselves."""
    return ending(engine)


def run(
    engine: Engine, new: list[int], sampling: SamplingSettings = GREEDY, stop: threading.Event | None = None
) -> Any:
    sequence = engine.new_sequence()
    events = list(engine.answer(sequence, new, sampling, stop or threading.Event()))
    return sequence, events, events[-1]


def greedy_reference(prompt: list[int], tokens: int) -> list[int]:
    """transformers' own attention, everything computed anew for every token."""
    model, ids = tiny_model(), list(prompt)
    with torch.inference_mode():
        for _ in range(tokens):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def fail_at(engine: Engine, call: int, error: Callable[[], BaseException], times: int = 1) -> list[int]:
    """Let the first layer's MLP raise at its `call`-th use: by then just that layer has taken its rows."""
    calls = [0]

    def hook(*_: Any) -> None:
        calls[0] += 1
        if call <= calls[0] < call + times:
            raise error()

    engine.loaded.model.model.layers[0].mlp.register_forward_pre_hook(hook)
    return calls


@pytest.mark.parametrize("chunk", [1, 7, 60, 1000])
def test_same_tokens_as_the_model_itself(chunk: int) -> None:
    sequence, events, done = run(no_end(tiny_engine(chunk=chunk)), PROMPT)
    assert sequence.tokens[60:] == greedy_reference(PROMPT, 12)
    assert sequence.cached == 71, "the last token was not computed: nobody asked for what follows"
    progress = [event for event in events if isinstance(event, PrefillProgress)]
    assert [p.processed for p in progress] == [*range(0, 60, chunk), 60]
    assert all(p.total == 60 and p.cached == 0 for p in progress)
    assert (done.finish_reason, done.completion_tokens, done.prompt_tokens, done.cached_tokens) == ("length", 12, 60, 0)
    assert done.text == "".join(event.text for event in events if isinstance(event, Text))
    assert done.text == tiny_loaded().tokenizer.decode(sequence.tokens[60:])
    assert done.rows.store > 0 and done.rows.read_share == 1.0


def test_only_the_last_tokens_logits_are_computed() -> None:
    engine = tiny_engine(chunk=32)
    seen: list[int] = []
    engine.loaded.model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    run(engine, PROMPT)
    assert set(seen) == {1}


@pytest.mark.parametrize(("length", "fits"), [(99, True), (100, False), (101, False), (250, False)])
def test_a_prompt_at_the_limit(length: int, fits: bool) -> None:
    engine = no_end(tiny_engine(context=100, chunk=64))
    prompt = (PROMPT * 5)[:length]
    if fits:
        sequence, _, done = run(engine, prompt)
        assert (done.finish_reason, done.completion_tokens, len(sequence.tokens)) == ("length", 1, 100)
        return
    sequence = engine.new_sequence()
    with pytest.raises(ContextOverflowError, match=rf"prompt is {length} tokens, context is 100 \({length - 99} over"):
        list(engine.answer(sequence, prompt, GREEDY, threading.Event()))
    assert sequence.tokens == [] and sequence.cached == 0


@pytest.mark.parametrize("left", [1, 2, 12, 13])
def test_the_context_ends_the_answer(left: int) -> None:
    sequence, _, done = run(no_end(tiny_engine(context=60 + left)), PROMPT)
    assert done.completion_tokens == min(left, 12) and done.finish_reason == "length"
    assert sequence.tokens[60:] == greedy_reference(PROMPT, min(left, 12))


def test_no_tokens_asked_for() -> None:
    _, _, done = run(tiny_engine(), PROMPT, SamplingSettings(max_tokens=0))
    assert (done.finish_reason, done.completion_tokens, done.text) == ("length", 0, "")


def test_an_end_token_ends_and_is_not_kept() -> None:
    engine = tiny_engine()
    words = greedy_reference(PROMPT, 12)
    end = next(word for n, word in enumerate(words) if n > 2 and word not in words[:n])
    sequence, _, done = run(ending(engine, end), PROMPT)
    assert done.finish_reason == "stop"
    assert sequence.tokens[60:] == words[: words.index(end)]


def test_stop_before_and_between_chunks_keeps_what_was_read() -> None:
    engine = no_end(tiny_engine(chunk=16))
    sequence, stop = engine.new_sequence(), threading.Event()
    for event in engine.answer(sequence, PROMPT, GREEDY, stop):
        if isinstance(event, PrefillProgress) and event.processed == 32:
            stop.set()
    assert isinstance(event, Done) and event.finish_reason == "interrupted" and event.completion_tokens == 0
    assert sequence.tokens == PROMPT[:32] and sequence.cached == 32
    *_, done = engine.answer(sequence, PROMPT[32:], GREEDY, threading.Event())
    assert isinstance(done, Done) and done.cached_tokens == 32
    assert sequence.tokens[60:] == greedy_reference(PROMPT, 12)
    stop.set()
    fresh, _, done = run(engine, PROMPT, stop=stop)
    assert fresh.cached == 0 and done.finish_reason == "interrupted"


def test_a_model_that_cannot_be_captured_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    monkeypatch.setattr(Sequence, "no_graph", "it looks at its numbers")
    told = [event for _ in range(2) for event in run(engine, PROMPT)[1] if isinstance(event, Notice)]
    assert len(told) == 1 and "it looks at its numbers" in told[0].text


def test_memory_that_cannot_be_page_locked_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pinning = Pinning(Cuda(torch.device("cuda:0")))
    monkeypatch.setattr(Pinning, "of", staticmethod(lambda device: pinning))
    engine = tiny_engine()
    assert not [event for event in run(engine, PROMPT)[1] if isinstance(event, Notice)]
    pinning.refuse("error 2")
    told = [event for _ in range(2) for event in run(engine, PROMPT)[1] if isinstance(event, Notice)]
    assert len(told) == 1 and "error 2" in told[0].text


def test_stop_within_a_token_of_the_answer() -> None:
    engine, stop = no_end(tiny_engine()), threading.Event()
    sequence, heard = engine.new_sequence(), 0
    for event in engine.answer(sequence, PROMPT, GREEDY, stop):
        if isinstance(event, Text):
            heard += 1
            if heard == 2:
                stop.set()
                written = len(sequence.tokens)
    assert isinstance(event, Done) and event.finish_reason == "interrupted"
    assert len(sequence.tokens) == written


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 3, 10, 13])
def test_a_failed_pass_leaves_every_layer_as_it_was(error: type[BaseException], call: int) -> None:
    engine = no_end(tiny_engine(chunk=8))  # 8 chunks, then tokens
    sequence = engine.new_sequence()
    fail_at(engine, call, error)
    with pytest.raises(error):
        list(engine.answer(sequence, PROMPT, GREEDY, threading.Event()))
    lengths = {layer.get_seq_length() for layer in sequence.cache.layers}
    assert len(lengths) == 1
    done = sequence.tokens[:]
    assert done[:60] == (PROMPT + greedy_reference(PROMPT, 12))[: len(done)][:60]
    new = PROMPT[len(done) :]
    list(engine.answer(sequence, new, GREEDY, threading.Event()))
    assert sequence.tokens[60:] == greedy_reference(PROMPT, len(sequence.tokens) - 60)


def test_a_device_without_memory_reads_on_in_smaller_chunks() -> None:
    engine = no_end(tiny_engine(chunk=16))
    fail_at(engine, 2, lambda: torch.OutOfMemoryError("out of memory"))
    sequence, events, _ = run(engine, PROMPT)
    assert [e.text for e in events if isinstance(e, Notice)] == [
        "cpu ran out of memory: reading on in chunks of 8 tokens."
    ]
    assert [e.processed for e in events if isinstance(e, PrefillProgress)] == [0, 16, 24, 32, 40, 48, 56, 60]
    assert sequence.tokens[60:] == greedy_reference(PROMPT, 12)


def test_a_device_without_memory_twice() -> None:
    engine = tiny_engine(chunk=16)
    fail_at(engine, 2, lambda: torch.OutOfMemoryError("out of memory"), times=2)
    sequence = engine.new_sequence()
    with pytest.raises(DeviceFullError, match="cpu ran out of memory at token 24") as caught:
        list(engine.answer(sequence, PROMPT, GREEDY, threading.Event()))
    assert caught.value.exit_code == 4
    assert sequence.tokens == PROMPT[:16]


def test_weights_that_overflow_are_an_error() -> None:
    engine = tiny_engine()
    engine.loaded.model.model.norm.weight.data[3] = float("nan")
    with pytest.raises(ModelError, match="not finite") as caught:
        run(engine, PROMPT)
    assert caught.value.exit_code == 5


def test_complete_continues_the_text() -> None:
    engine = no_end(tiny_engine())
    events = list(engine.complete("the cat", GREEDY, threading.Event()))
    ids = engine.loaded.tokenizer.encode_prompt("the cat")
    whole = engine.loaded.tokenizer.decode(ids + greedy_reference(ids, 12))
    assert isinstance(events[-1], Done) and "the cat" + events[-1].text == whole
    with pytest.raises(UsageError, match="empty"):
        list(engine.complete("", GREEDY, threading.Event()))


def test_the_same_seed_writes_the_same() -> None:
    warm = SamplingSettings(temperature=1.0, seed=3, max_tokens=20)
    engine = no_end(tiny_engine())
    first, again = run(engine, PROMPT, warm)[0].tokens, run(engine, PROMPT, warm)[0].tokens
    assert first == again
    assert first != run(engine, PROMPT, SamplingSettings(temperature=1.0, seed=4, max_tokens=20))[0].tokens


def test_times_are_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only forward passes move: two seconds for a chunk, one for a token."""
    import hgca_cli.engine.engine as module

    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    engine = no_end(tiny_engine(chunk=30))

    def tick(_: Any, args: Any, kwargs: Any) -> None:
        now[0] += 2.0 if kwargs["input_ids"].shape[1] > 1 else 1.0

    engine.loaded.model.register_forward_pre_hook(tick, with_kwargs=True)
    sequence = engine.new_sequence()
    events = engine.answer(sequence, PROMPT, GREEDY, threading.Event(), began=99.0)
    *_, done = events
    assert isinstance(done, Done)
    assert done.prefill_seconds == 4.0
    assert done.ttft_seconds == 5.0, "from the request, a second before the reading"
    assert done.decode_seconds == 11.0 and done.tokens_per_second == 1.0


def test_progress_tells_what_a_row_more_adds() -> None:
    """2 layers; a query meets a row with 4 heads of 8 + 8 numbers, a token 2 * (32 * (64 + 32) + 3 * 32 * 48) weights and norms."""
    _, events, _ = run(tiny_engine(), PROMPT)
    told = {event.growth for event in events if isinstance(event, PrefillProgress)}
    weights = 2 * (32 * (2 * 32 + 2 * 16) + 3 * 32 * 48 + 2 * 32) + 32
    assert told == {2 * 2 * 4 * 16 / (2 * weights)}


@pytest.mark.parametrize("select", ["exact", "scan", "cluster"])
def test_a_store_in_a_file_is_the_same_store(select: str, tmp_path: Path) -> None:
    """The same answer; what is mapped says where its rows are."""
    settings = CacheSettings(window=8, context=128, select=select, kv_dtype="bf16")
    said = []
    for folder in (None, str(tmp_path)):
        engine = tiny_engine()
        engine.settings = replace(settings, store_dir=folder)
        sequence, _, done = run(engine, PROMPT)
        said.append(done.text)
        mapped = Path("/proc/self/maps").read_text()
        assert (f"{tmp_path}/" in mapped) == (folder is not None), "layers' rows are in files"
        assert done.rows.store > 40
        sequence.close()
    assert said[0] == said[1] and list(tmp_path.iterdir()) == []
