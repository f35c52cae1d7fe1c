"""Arguments: what is wrong is one line with a remedy and the right exit code, before anything is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from hgca_cli import __version__
from hgca_cli.app import app, run
from hgca_cli.commands import aliases, elsewhere, flag_values
from tests.cli_process import environment, hgca, shell
from tests.cli_refused import no_pipe, refused

__all__ = ["no_pipe"]  # a fixture of every test here


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["-h"],
        ["chat", "--help"],
        ["pull", "-h"],
        ["sessions"],
        ["eval"],
        ["--color", "never", "bench"],
        ["-q", "models"],
        ["config"],
    ],
)
def test_help_is_shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Usage: hgca") and "--help" in out and err == ""


def test_a_value_of_another_kind(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "error: --temp: that is not a number. See hgca chat --help." in refused(capsys, "chat", "--temp", "hot", "x")
    assert "error: --top-k: that is not a whole number." in refused(capsys, "chat", "--top-k", "1.5", "x")
    assert "requires an argument. See hgca chat --help." in refused(capsys, "chat", "--ctx")
    monkeypatch.setenv("HGCA_TEMP", "hot")
    told = "--temp: that is not a number (set by HGCA_TEMP in the environment)."
    assert told in refused(capsys, "chat", "x") and "HGCA_TEMP" not in refused(capsys, "chat", "--temp", "no", "x")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"hgca {__version__}\n"


def test_help_is_light() -> None:
    """Neither torch nor any other large library, and no more of the standard library than a few hundred modules."""
    code = "import sys; bare = set(sys.modules); from hgca_cli.app import run; run(['--help']); print(*sorted({*sys.modules} - bare))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    loaded = done.stdout.splitlines()[-1].split()
    packages = {name.partition(".")[0] for name in loaded}
    assert "hgca_cli" in packages
    heavy = {
        "torch",
        "transformers",
        "numpy",
        "rich",
        "prompt_toolkit",
        "huggingface_hub",
        "tokenizers",
        "jinja2",
        "asyncio",
    }
    assert not packages & heavy
    assert len(loaded) < 350


@pytest.mark.parametrize("words", ["", "--help", "chat --help", "--version"])
def test_a_reader_that_leaves_is_no_error(words: str) -> None:
    for command in (f"hgca {words} | true", f"hgca {words} | head -c 1", f"hgca {words} >&-"):
        assert shell(f"set -o pipefail; {command} || test $? = 141").stderr == b""


@pytest.mark.parametrize(("flag", "near"), [("--windw", "--window"), ("--temprature", "--temp"), ("--fil", "--file")])
def test_an_unknown_flag_names_a_near_one(flag: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(capsys, "chat", flag, "3")
    assert f"{flag}. Did you mean " in err and near in err.split("mean")[1]


def test_an_unknown_command_names_a_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(capsys, "chta")
    assert "'chta'" in err and "'chat'" in err


@pytest.mark.parametrize("flag", ["--window", "--ctx", "--prefill-chunk", "--threads"])
@pytest.mark.parametrize("value", ["-0", "-1", "1.5", "abc", str(10**12), "", "4q", "nan"])
def test_counts_out_of_range_name_the_range(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(capsys, "chat", "-p", "x", f"{flag}={value}")
    assert flag in err and "Give 1 to" in err


BAD = [
    ("--budget", "-0.1"), ("--budget", "1.0001"), ("--budget", "nan"), ("--budget", "inf"), ("--budget", "some"),
    ("--quality", "-0.1"), ("--quality", "1.5"), ("--quality", "0"), ("--quality", "good"),
    ("--temp", "-1"), ("--temp", "nan"), ("--temp", "inf"), ("--temp", "hot"),
    ("--top-p", "0"), ("--top-p", "2"), ("--top-k", "-2"), ("--min-p", "1.5"), ("--repeat-penalty", "0"),
    ("--seed", str(2**64)), ("--seed", "-2"), ("--max-tokens", "-2"), ("--max-tokens", "1.5"), ("--stop", ""),
    ("--sinks", "-1"), ("--sinks", str(10**12)),
    ("--dtype", "int3"), ("--kv-dtype", "int3"), ("--dtype", "int8"), ("--select", "best"), ("--color", "mauve"),
    ("--ram-limit", "lots"), ("--gpu-mem", "-1"), ("--quant", "nf4"), ("--quant", "q5"), ("--balance", "maybe"),
    ("--prompt-lookup", "64"), ("--prompt-lookup", "-1"), ("--prompt-lookup", "some"), ("--prompt-lookup", "1.5"),
]  # fmt: skip


@pytest.mark.parametrize(("flag", "value"), BAD)
def test_values_out_of_range_name_the_flag(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert flag in refused(capsys, "chat", "-p", "x", f"{flag}={value}")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--exact", "--select", "window"], ["--exact", "--select window"]),
        (["--exact", "--budget", "0.5"], ["--exact", "--budget 0.5"]),
        (["--dense", "--budget", "0.5"], ["--exact", "--budget 0.5"]),
        (["--select", "window", "--budget", "0.5"], ["--select window", "--budget 0.5"]),
        (["--select", "window", "--quality", "0.5"], ["--select window", "--quality 0.5"]),
        (["--exact", "--quality", "0.5"], ["--exact", "--quality 0.5"]),
        (["--budget", "0.1", "--quality", "0.5"], ["--budget", "--quality"]),
        (["--select", "moving-average", "--quality", "0.5"], ["--quality", "follows the query"]),
        (["--system", "a", "--system-file", "b"], ["--system", "--system-file"]),
        (["--raw", "--chat-template", "t"], ["--raw", "--chat-template"]),
        (["--raw", "--system", "s"], ["--raw", "--system"]),
        (["--raw", "--think"], ["--raw", "--think"]),
        (["--raw", "--no-think"], ["--raw", "--no-think"]),
        (["--markdown", "on", "--plain"], ["--markdown on", "--plain"]),
        (["-q", "-v"], ["--quiet", "--verbose"]),
        (["hello", "there"], ["--prompt", "without a flag"]),
        (["--yarn"], ["--yarn", "--ctx"]),
        (["--quant", "int8", "--dtype", "bf16"], ["--quant q8", "--dtype bf16"]),
        (["--load-in-4bit", "--dtype", "fp16"], ["--quant q4", "--dtype fp16"]),
        (["-f", "-", "-f", "-"], ["--file", "once"]),
    ],
)
def test_what_excludes_each_other_is_named(
    words: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    err = refused(capsys, "chat", "-p", "x", *words)
    assert all(word in err for word in named)


def test_options_before_the_command_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--color" in refused(capsys, "--color", "mauve", "chat", "-p", "x")
    assert "--verbose" in refused(capsys, "-q", "chat", "-v", "-p", "x")


@pytest.mark.parametrize(
    ("select", "exact", "budget", "quality", "want"),
    [
        ("auto", False, "auto", "auto", (None, None, None)),
        ("auto", True, "auto", "auto", ("exact", None, None)),
        ("auto", False, "0", "auto", ("window", None, None)),
        ("auto", False, "1", "auto", ("exact", None, None)),
        ("auto", False, "100%", "auto", ("exact", None, None)),
        ("auto", False, "5%", "auto", (None, 0.05, None)),
        ("auto", False, "auto", "98%", (None, None, 0.98)),
        ("auto", False, "auto", "1", ("exact", None, None)),
        ("scan", False, "auto", "0.9", ("scan", None, 0.9)),
        ("two-level", False, "0.1", "auto", ("two-level", 0.1, None)),
        ("window", False, "0", "auto", ("window", None, None)),
        ("moving-average", False, "5%", "auto", ("moving-average", 0.05, None)),
        ("moving-average", False, "1", "auto", ("moving-average", 1.0, None)),
    ],
)
def test_policy_budget_and_quality(
    select: str, exact: bool, budget: str, quality: str, want: tuple[str | None, float | None, float | None]
) -> None:
    assert flag_values.policy_of(select, exact, budget, quality) == want


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HGCA_WINDOW", "wide"),
        ("HGCA_CTX", "-3"),
        ("HGCA_THREADS", "many"),
        ("HGCA_TEMP", "hot"),
        ("HGCA_TOP_P", "7"),
        ("HGCA_BUDGET", "nan"),
        ("HGCA_SELECT", "best"),
        ("HGCA_RAM_LIMIT", "lots"),
        ("HGCA_EXACT", "perhaps"),
        ("HGCA_COLOR", "mauve"),
    ],
)
def test_garbage_in_the_environment_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert name in refused(capsys, "chat", "-p", "x")


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HGCA_WINDOW", "wide")
    err = refused(capsys, "chat", "-p", "x", "--window", "16", "--temp", "-1")
    assert "--temp" in err and "HGCA" not in err


@pytest.mark.parametrize(
    ("word", "want"),
    [("q8", "q8"), ("Q8_0", "q8"), ("int8", "q8"), ("8bit", "q8"), ("8-bit", "q8"), ("q4_0", "q4"), ("INT4", "q4"), ("4bit", "q4"),
     ("none", "none"), ("off", "none")],
)  # fmt: skip
def test_packings_by_any_of_their_names(word: str, want: str) -> None:
    assert flag_values.quant_of(word) == want


@pytest.mark.parametrize("group", ["sessions", "models"])
def test_names_that_may_be_several_are_written_once(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([group, "rm", "--help"]) == 0
    assert f"hgca {group} rm [OPTIONS] {{NAME}}...\n" in capsys.readouterr().out


def test_spellings_of_other_tools() -> None:
    words = ["--num-ctx=4k", "--temperature", "1", "--", "--num-ctx"]
    assert aliases.rename_aliases(words) == ["--ctx=4k", "--temp", "1", "--", "--num-ctx"]


def test_underscores_of_other_tools_are_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["chat", "--max_new_tokens", "5", "--top_p=a_b", "-p", "--a_b", "c_d", "--", "--e_f"]
    assert aliases.dashed(words) == [
        "chat",
        "--max-new-tokens",
        "5",
        "--top-p=a_b",
        "-p",
        "--a_b",
        "c_d",
        "--",
        "--e_f",
    ]
    handed_on = ["eval", "harness", "--model_args", "window=8"]
    assert aliases.dashed(handed_on) == handed_on
    assert run(["chat", "--attn_implementation", "sdpa", "hi"]) == 2
    assert "there is one attention here" in capsys.readouterr().err
    assert run(["chat", "--max_new_tokens", "x", "hi"]) == 2
    assert "--max-tokens" in capsys.readouterr().err


@pytest.mark.parametrize(("other", "ours"), aliases.ALIASES.items())
def test_every_alias_is_an_option(other: str, ours: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["batch" if ours == "--concurrency" else "chat", "--help"]) == 0
    out = capsys.readouterr().out
    assert f"{ours.partition('=')[0]} " in out and f"{other} " not in out


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["chat", "-m", "x", "-ngl", "99"], "--gpu-mem"),
        (["chat", "--format", "json", "-p", "x"], "--json"),
        (["chat", "-cnv"], "conversation"),
        (["run", "llama3"], "hgca chat -m"),
        (["list"], "hgca models ls"),
        (["serve"], "no server"),
        (["chat", "-fa", "-p", "x"], "--exact"),
        (["chat", "-ctk", "q8_0", "-p", "x"], "--kv-dtype"),
        (["chat", "-no-cnv", "-p", "x"], "--raw"),
        (["chat", "-r", "User:"], "--stop"),
        (["batch", "in", "--batch-size", "8"], "--concurrency"),
        (["chat", "--tensor-parallel-size=2", "-p", "x"], "--device"),
        (["rm", "llama3"], "hgca models rm"),
        (["sessions", "list"], "hgca sessions ls lists"),
        (["sessions", "delete", "x"], "hgca sessions rm"),
        (["models", "remove", "x"], "hgca models rm"),
        (["config", "list"], "hgca config show lists"),
        (["config", "rm", "ctx"], "hgca config unset"),
        (["config", "run"], "See hgca config --help."),
        (["help"], "hgca --help"),
        (["version"], "hgca --version"),
        (["-V"], "hgca --version"),
        (["why is the sky blue?"], "hgca chat 'your question'"),
        (["-m", "x", "chat"], "The command comes first"),
        (["--temperature", "0", "chat"], "The command comes first"),
        (["chat", "-V"], "hgca chat --help"),
        (["chat", "--cpu", "hi"], "--device cpu"),
        (["chat", "--stream", "hi"], "--no-stream gives them whole"),
        (["chat", "--image", "cat.png", "hi"], "text only"),
        (["chat", "--lora", "x", "hi"], "no adapters"),
        (["chat", "--do_sample", "hi"], "--temp above 0"),
        (["chat", "--numa", "distribute", "hi"], "--threads"),
        (["chat", "--port", "8080"], "no server"),
        (["chat", "--mirostat=2", "hi"], "--min-p"),
        (["batch", "in.jsonl", "--ignore-eos"], "-n N tokens"),
        (["chat", "--no-context-shift"], "--overflow"),
        (["chat", "-mg", "1", "hi"], "--device"),
    ],
)
def test_what_other_tools_have_is_answered_with_what_is_here(
    words: list[str], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    err = refused(capsys, *words)
    assert remedy in err and ("no such option" in err.lower() or "No such command" in err)


@pytest.mark.parametrize("name", sorted({*elsewhere.FLAGS, *elsewhere.CHAT}))
def test_no_option_of_a_chat_is_refused_as_another_tools(name: str) -> None:
    options = {word for param in typer.main.get_command(app).commands["chat"].params for word in param.opts}  # type: ignore[attr-defined]
    assert name not in options and name not in aliases.ALIASES


@pytest.mark.parametrize("device", ["cuda:9", "cuda:x", "tpu"])
def test_a_device_that_is_not_there(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(capsys, "chat", "-m", "nobody/nothing", "-p", "x", "--device", device, code=5)
    assert "no such device" in err and "cpu" in err and device in err


def test_a_gpu_is_never_replaced(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("hgca_cli.hardware.probe.probe_gpus", list)
    for device in ("cuda", "cuda:0"):
        err = refused(capsys, "chat", "-m", "nobody/nothing", "-p", "x", "--device", device, code=5)
        assert "no such device" in err and device in err and "cpu" in err


def test_mistakes_are_told_before_the_model_is_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(capsys, "chat", "-m", "no-such-org/no-such-model", "-p", "x", "--temp", "-3")
    assert "--temp" in err and "no-such-org" not in err


def test_debug_shows_where_and_nothing_else_does() -> None:
    for words in (["--debug", "chat"], ["chat", "--debug"]):
        assert b"Traceback" in hgca(*words, "-p", "x", "--window", "0").stderr
    assert b"Traceback" not in hgca("chat", "-p", "x", "--window", "0").stderr


def test_an_error_nobody_expected_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("hgca_cli.commands.chat.plan_model", broken)
    err = refused(capsys, "chat", "-p", "x", code=1)
    assert "unexpected error: ZeroDivisionError: by zero" in err and "--debug" in err
