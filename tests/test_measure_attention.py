"""The measuring of attention: all sides compute the same, and figures follow from the seconds. Nothing is timed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

from hgca_cli import native
from hgca_cli.errors import ModelError, NativeError
from hgca_cli.hardware import timing
from hgca_cli.hardware.timing import Bandwidth, ReadProbe, bandwidths, interleave
from hgca_cli.measure import llama_cpp, sides
from hgca_cli.measure.attention import measure, result_of
from hgca_cli.measure.case import DTYPES, PATTERNS, Case
from hgca_cli.measure.llama_cpp import FlashAttention, load_ggml
from hgca_cli.measure.rows import random_rows, row_lists, store_rows


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(timing, "PROBE_BYTES", 1 << 16)
    monkeypatch.setattr(timing, "REST_SECONDS", 0.0)
    threads = native.threads()
    yield
    native.set_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("tokens", [1, 3])
def test_every_side_computes_the_same(dtype: str, pattern: str, tokens: int) -> None:
    case = Case(6, 2, 32, 300, dtype, pattern, tokens)
    result = measure(case, times=2, layers=2, threads=1, ggml=None)  # raises if outputs differ
    expected = {"hgca", "sdpa gqa", "sdpa folded", "matmul folded"}
    expected |= {"hgca dense", "reading alone"} if pattern != "dense" else set()
    expected |= {"hgca bf16"} if dtype == "int8" else set()
    expected |= {"hgca one token"} if tokens > 1 else set()
    assert set(result.seconds) == set(result.fastest) == expected
    assert result.over.keys() == expected - {"hgca", "hgca one token"}
    assert (result.cost_over_one_token is None) == (tokens == 1)
    assert all(result.fastest[name] <= result.seconds[name] for name in expected)
    assert 0 < result.max_difference < 0.05 or dtype == "fp32"


def test_figures_follow_from_seconds() -> None:
    case = Case(4, 2, 8, 100, tokens=2)
    taken = {"hgca": [2.0, 4.0, 8.0], "sdpa gqa": [12.0, 6.0, 1.0], "hgca one token": [1.0, 2.0, 3.0]}
    rates = {1: [1.0, 1.0, 1.0], 2: [8.0, 4.0, 4.0]}
    result = result_of(case, 2, 4 * 10**9, taken, rates, 0.0)
    assert result.seconds == {"hgca": 2.0, "sdpa gqa": 3.0, "hgca one token": 1.0}
    assert result.fastest == {"hgca": 1.0, "sdpa gqa": 0.5, "hgca one token": 0.5}
    assert result.rates == rates and result.read == Bandwidth(2, 8.0, 4.0)
    assert (result.gb_s, result.share, result.share_of_best) == (2.0, 0.5, 0.25)  # turns: 4 of 8, 2 of 4, 1 of 4
    assert result.over == {"sdpa gqa": 1.5} and result.cost_over_one_token == 2.0


def test_bytes_are_keys_values_and_scales() -> None:
    assert Case(4, 2, 8, 100, "bf16").bytes_of(100) == 2 * 100 * 2 * 8 * 2
    assert Case(4, 2, 8, 100, "fp32").bytes_of(10) == 2 * 10 * 2 * 8 * 4
    assert Case(4, 2, 8, 100, "int8").bytes_of(100) == 2 * 100 * (2 * 8 + 8)
    read = measure(Case(4, 2, 8, 640, "bf16", "runs64"), times=1, layers=1, threads=1, ggml=None).bytes
    assert read == Case(4, 2, 8, 640).bytes_of(64)


def test_layers_do_not_fit_into_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgca_cli.measure.case.last_cache", lambda: 1 << 28)
    case = Case(32, 8, 128, 32768)  # 128 MiB a layer
    assert case.layers() == 8 and Case(4, 2, 8, 1).layers() == 64
    assert case.memory(8, llama_cpp=True) - case.memory(8, llama_cpp=False) == 8 * case.bytes_of(case.rows)


@pytest.mark.parametrize("pattern", ["runs64", "runs16", "rows"])
@pytest.mark.parametrize("rows", [1, 9, 64, 1000])
def test_lists_name_a_tenth_of_the_rows(pattern: str, rows: int, rng: torch.Generator) -> None:
    lists = row_lists(pattern, 3, rows, rng)
    assert lists is not None
    length = min(PATTERNS[pattern], rows)
    chosen = max(1, rows // length // 10)
    assert lists.row_start.tolist() == [0, chosen, 2 * chosen, 3 * chosen]
    assert lists.index.shape == (3, chosen * length)
    for head in range(3):
        part = slice(head * chosen, (head + 1) * chosen)
        runs = [1] * chosen if lists.run is None else lists.run[part].tolist()
        named = [row + i for row, run in zip(lists.row[part].tolist(), runs, strict=True) for i in range(run)]
        assert named == sorted(set(named)) == lists.index[head].tolist() and named[-1] < rows
    assert row_lists("dense", 3, rows, rng) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_rows_lie_as_in_the_store(dtype: torch.dtype, rng: torch.Generator) -> None:
    numbers = random_rows(2, 50, 16, rng)
    rows = store_rows(numbers, dtype)
    assert rows.value.data_ptr() - rows.key.data_ptr() == 16 * dtype.itemsize
    assert rows.key.stride() == rows.value.stride() == (50 * 32, 32, 1)
    for part, scale, wanted in zip(
        (rows.key, rows.value), (rows.key_scale, rows.value_scale), numbers.chunk(2, -1), strict=True
    ):
        assert (scale is None) == (dtype != torch.int8)
        back = part.float() if scale is None else part.float() * scale.unsqueeze(-1)
        assert (back - wanted).abs().max() < (2e-2 if dtype != torch.float32 else 1e-6)


def test_sides_take_turns_and_the_first_does_not_count() -> None:
    said: list[str] = []
    taken = interleave({"a": lambda: said.append("a"), "b": lambda: said.append("b")}, 3)
    assert said == ["a", "b"] * 4 and {name: len(values) for name, values in taken.items()} == {"a": 3, "b": 3}


def test_the_probe_keeps_best_and_median() -> None:
    probe = ReadProbe(2)
    assert list(probe.sides()) == ["read by 1", "read by 2"] and list(ReadProbe(1).sides()) == ["read by 1"]
    size = timing.PROBE_BYTES / 1e9
    one, both = bandwidths(probe.rates({"read by 1": [size, size / 4, size / 2], "read by 2": [size / 8]}))
    assert (one.threads, one.best_gb_s, one.median_gb_s) == (1, pytest.approx(4.0), pytest.approx(2.0))
    assert (both.threads, both.best_gb_s, both.median_gb_s) == (2, pytest.approx(8.0), pytest.approx(8.0))
    other = ReadProbe(1, [torch.zeros(1000), torch.zeros(250)])
    assert other.rates({"read by 1": [1e-6]}) == {1: [pytest.approx(5.0)]}
    before = torch.get_num_threads()
    for run in probe.sides().values():
        run()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_a_side_that_computes_something_else_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "_gqa", lambda *given: lambda: torch.full((1, 4, 8), math.nan))
    with pytest.raises(NativeError, match="sdpa gqa computes something else"):
        measure(Case(4, 2, 8, 100), times=1, layers=1, threads=1, ggml=None)


def test_llama_cpp_without_its_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    assert load_ggml() is None
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: spec)
    with pytest.raises(ModelError, match=r"cannot be called.*--no-llama-cpp"):
        load_ggml()


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize(("tokens", "rows", "layers"), [(1, 1000, 3), (5, 77, 1)])
def test_llama_cpp_computes_the_same(tokens: int, rows: int, layers: int) -> None:
    case = Case(6, 2, 64, rows, tokens=tokens)
    result = measure(case, times=1, layers=layers, threads=1, ggml=load_ggml())
    assert result.over["llama.cpp"] > 0


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
def test_llama_cpp_gives_its_memory_back_once(rng: torch.Generator) -> None:
    ggml = load_ggml()
    assert ggml is not None
    key, value = random_rows(2, 10, 64, rng).chunk(2, -1)
    flash = FlashAttention(ggml, [(key, value)], torch.randn(1, 2, 64), 1)
    flash.close()
    flash.close()
