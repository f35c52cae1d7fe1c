"""Values of arguments: sizes, limits, dtypes and amounts as people and other tools write them."""

from __future__ import annotations

import pytest
import typer

from hgca_cli.app import app
from hgca_cli.commands import flag_values, flags
from hgca_cli.config import DTYPES, KV_DTYPES, NO_LIMIT
from hgca_cli.errors import UsageError
from tests.cli_refused import no_pipe, refused

__all__ = ["no_pipe"]  # a fixture of every test here


def test_sizes_people_write() -> None:
    assert flag_values.count_of("128k", "--ctx") == 131_072 and flag_values.count_of("1M", "--ctx") == 1 << 20
    assert flag_values.count_of("auto", "--ctx") is None and flag_values.bytes_of("8GiB", "--ram-limit") == 8 << 30
    with pytest.raises(UsageError, match="--ctx"):
        flag_values.count_of("k", "--ctx")


def test_what_minus_one_and_zero_mean_elsewhere() -> None:
    """llama.cpp: no limit, a random seed, the model's own context; vLLM: no top-k."""
    names = {"max_tokens": "-1", "seed": -1, "top_k": -1, "reasoning_budget": "-1"}
    assert flags.sampling_flags(names) == {"max_tokens": NO_LIMIT, "top_k": 0}
    tokens = {"max_tokens": "4k", "reasoning_budget": "2k", "seed": 0}
    want = {"max_tokens": 4096, "reasoning_budget": 2048, "seed": 0}
    assert flags.sampling_flags(tokens) == want
    for ctx, context in (("0", None), ("auto", None), ("4k", 4096), ("1.5k", 1536)):
        param = typer.main.get_command(app).commands["chat"].make_context("chat", ["--ctx", ctx]).params  # type: ignore[attr-defined]
        assert flags.plan_request(param).context == context


@pytest.mark.parametrize("value", ["4q", "-2", "1.5", "lots"])
def test_tokens_that_are_none_say_what_to_write(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--max-tokens", "--reasoning-budget"):
        err = refused(capsys, "chat", "-p", "x", flag, value)
        assert f"error: {flag}: {value!r} is not a number of tokens. Give 0 or more, like 200 or 4k, or -1" in err


@pytest.mark.parametrize("words", [["batch", "rows.jsonl"], ["eval", "recall"]])
def test_a_limit_there_must_be(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "Give one, like 4k." in refused(capsys, *words, "-n", "-1")
    assert "like 200 or 4k." in refused(capsys, *words, "-n", "4q")


def test_sampling_comes_from_flags_then_the_model_then_us() -> None:
    theirs = {"temperature": 0.6, "top_k": 20, "top_p": "most", "do_sample": True}
    settings, origins, wrong = flags.sampling_of({"top_k": 5}, theirs)
    assert (settings.temperature, settings.top_k, settings.top_p) == (0.6, 5, 0.95)
    assert (origins["temperature"], origins["top_k"], origins["top_p"]) == ("the model's", "given", "default")
    assert len(wrong) == 1 and "top_p = 'most'" in wrong[0]


def test_a_margin_of_gpu_memory_is_in_mib_unless_it_says_otherwise() -> None:
    assert [flag_values.margin_of(text) for text in (None, "0", "512", "2GiB")] == [None, 0, 512 << 20, 2 << 30]


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("bfloat16", "bf16"),
        ("half", "fp16"),
        ("float16", "fp16"),
        ("F16", "fp16"),
        ("float32", "fp32"),
        ("q8_0", "int8"),
    ],
)
def test_dtypes_by_the_names_they_have_elsewhere(text: str, dtype: str) -> None:
    assert flag_values.dtype_of(text, "--kv-dtype", KV_DTYPES) == dtype


def test_a_dtype_that_is_not_for_this_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert flag_values.dtype_of("auto", "--dtype", DTYPES) is None
    assert "--dtype: no such choice 'int8'" in refused(capsys, "chat", "--dtype", "int8", "x")
    assert "exclude each other" in refused(capsys, "chat", "--dtype", "bfloat16", "--quant", "q8", "x")


@pytest.mark.parametrize("flag", ["--gpu-mem", "--ram-limit"])
def test_an_amount_of_memory_without_its_unit(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "chat", flag, "24", "x")
    assert f"{flag}: 24 alone is bytes." in told and "24GiB" in told


def test_a_length_that_is_none_names_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "32k" in refused(capsys, "chat", "--ctx", "12x", "x")
