"""`hgca bench attention`: figures for people and programs, files, and one line for every mistake."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hgca_cli import native
from hgca_cli.hardware import timing
from hgca_cli.measure import llama_cpp
from tests.cli_process import Done, here, records

TINY = ("--shape", "4/2/16", "--layers", "1", "--times", "2", "--threads", "1", "--no-llama-cpp")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(timing, "PROBE_BYTES", 1 << 16)
    monkeypatch.setattr(timing, "REST_SECONDS", 0.0)
    before = native.threads(), torch.get_num_threads(), native.isa()
    yield
    native.set_threads(before[0])
    torch.set_num_threads(before[1])
    native.use_isa(before[2])
    native.share_openmp(False)


def bench(*words: str) -> Done:
    return here("bench", "attention", *words)


def refused(*words: str, code: int = 2) -> str:
    done = bench(*words)
    told = done.stderr.decode()
    assert done.returncode == code and told.startswith("hgca: error: ") and told.count("\n") == 1 and not done.stdout
    return told


def test_json_fields() -> None:
    done = bench(*TINY, "--rows", "64", "1k", "--tokens", "1", "2", "--dtype", "bf16", "int8", "--json")
    assert done.returncode == 0, done.stderr
    first, *cases, last = records(done)
    assert first["type"] == "machine" and first["threads"] == 1 and first["llama_cpp"] is None
    assert first["isa"] == native.isa() and first["torch"] == torch.__version__
    assert [(c["rows"], c["tokens"], c["dtype"]) for c in cases] == [
        (rows, tokens, dtype) for dtype in ("bf16", "int8") for rows in (64, 1024) for tokens in (1, 2)
    ]
    for case in cases:
        assert case["type"] == "attention" and case["shape"] == "4/2/16" and case["layers"] == 1
        ms = case["median_ms"]
        assert case["ms"] == ms["hgca"] and case["ms"] >= case["fastest_ms"]["hgca"] > 0
        assert case["gb_s"] == pytest.approx(case["bytes"] / case["ms"] / 1e6)
        assert case["share"] > 0
        assert case["share_of_best"] == pytest.approx(case["gb_s"] / case["best_read_gb_s"])
        assert all(ratio == pytest.approx(ms[name] / ms["hgca"]) for name, ratio in case["over"].items())
        assert ("hgca bf16" in case["over"]) == (case["dtype"] == "int8")
        if case["tokens"] > 1:
            assert case["cost_over_one_token"] == pytest.approx(ms["hgca"] / ms["hgca one token"])
    assert last["type"] == "bandwidth" and [one["threads"] for one in last["read"]] == [1]
    assert all(one["best_gb_s"] >= one["median_gb_s"] > 0 for one in last["read"])


def test_a_table_for_people() -> None:
    done = bench(*TINY, "--rows", "64", "--pattern", "dense", "runs16", "--threads", "2", "--verbose")
    out = done.stdout.decode()
    assert done.returncode == 0 and out.count("4/2/16") == 2 and " dense " in out and " runs16 " in out
    assert "read bandwidth, median of all turns: 1 thread " in out and ", 2 threads " in out
    assert done.stderr.decode().count("64 rows, 1 layers, 2 turns") == 2


def test_missing_llama_cpp_is_one_line_that_quiet_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    tiny = (*TINY[:-1], "--rows", "16")
    assert bench(*tiny).stderr.decode() == llama_cpp.MISSING + "\n"
    assert "pip install llama-cpp-python" in llama_cpp.MISSING
    assert bench(*tiny, "--quiet").stderr == b""


def test_record_appends_a_line(tmp_path: Path) -> None:
    file = tmp_path / "rates.jsonl"
    for _ in range(2):
        assert bench(*TINY, "--rows", "16", "--record", str(file)).returncode == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 2 and lines[0].keys() >= {"type", "date", "commit", "processor", "isa", "times", "read"}
    assert lines[0]["type"] == "bench attention" and lines[0]["results"][0]["rows"] == 16


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_plot(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / f"rates.{suffix}"
    assert bench(*TINY, "--rows", "16", "64", "--plot", str(file)).returncode == 0
    assert file.read_bytes().startswith(b"<?xml" if suffix == "svg" else b"\x89PNG")


def test_plot_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hgca_cli.ui.plot.find_spec", lambda name: None)
    assert "pip install 'hgca[plot]'" in refused(*TINY, "--plot", str(tmp_path / "rates.svg"), code=5)


@pytest.mark.parametrize("isa", native.isas())
def test_isa(isa: str) -> None:
    assert records(bench(*TINY, "--rows", "16", "--isa", isa, "--own-threads", "--json"))[0]["isa"] == isa


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--shape", "32x8"), "HEADS/KV_HEADS/DIM"),
        (("--shape", "9/2/64"), "multiple of KV_HEADS"),
        (("--shape", "0/0/64"), "multiple of KV_HEADS"),
        (("--shape", "8/2/0"), "DIM 1 to 1024"),
        (("--shape", "32/8/128", "9/3"), "'9/3'"),
        (("--rows", "0"), "--rows: 0 is out of range"),
        (("--rows", "auto"), "--rows: 'auto' is not a whole number"),
        (("--rows", "many"), "--rows: 'many' is not a whole number. Give 1 to 1,073,741,824, like 8192 or 32k.\n"),
        (("--rows", "4k", "many"), "--rows: 'many'"),
        (("--dtype", "fp8"), "Choose from bf16, fp16, fp32, int8"),
        (("--pattern", "runs8"), "Choose from dense, runs64, runs16, rows"),
        (("--tokens", "1", "0"), "--tokens: 0 is out of range"),
        (("--times", "0"), "--times: 0 is out of range"),
        (("--layers", "0"), "--layers: 0 is out of range"),
        (("--threads", "0"), "--threads: 0 is out of range"),
        (("--isa", "mmx"), "scalar"),
        (("--plot", "rates.pdf"), ".svg nor .png"),
        (("--plot", "no/such/folder/rates.svg"), "no folder"),
        (("--record", "/no/such/folder/rates.jsonl"), "--record: cannot write"),
        (("--quiet", "--verbose"), "exclude each other"),
        (("word",), "unexpected extra argument"),
        (("--no-llama-cpp", "word"), "unexpected extra argument"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], told: str) -> None:
    assert told in refused(*words)


def test_what_does_not_fit_is_told_before_measuring() -> None:
    assert "are free" in refused(*TINY, "--rows", "1000M", "--layers", "1000", code=4)


def test_the_group_names_its_commands() -> None:
    assert b"attention" in here("bench", "--help").stdout
    assert b"attention" in here("bench", "atention").stderr
    assert here("--quiet", "bench", "attention", *TINY, "--rows", "16").returncode == 0
