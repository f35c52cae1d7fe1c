"""Arguments: what is wrong is one line with a remedy and exit code 2, before anything is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hgca_cli.app import run
from hgca_cli.commands import options
from hgca_cli.errors import UsageError
from tests.models import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("cli") / "model")


def hgca(*words: str, stdin: str | bytes = "", timeout: float = 100, **env: str) -> subprocess.CompletedProcess[bytes]:
    """The program as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "hgca_cli", *words],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        check=False,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
    )


def refused(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    assert run(list(words)) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("hgca: error: ") and "Traceback" not in err
    return err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["chat", "--help"], ["pull", "--help"], ["--version"]])
def test_help_is_shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) in (0, 2)
    out = capsys.readouterr().out
    assert "hgca" in out.lower()


def test_help_is_light() -> None:
    """Neither torch nor transformers, and little CPU over a bare Python start."""

    def seconds(*words: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    code = "import sys; from hgca_cli.app import run; run(['--help']); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("'torch'", "'transformers'", "'rich'", "'prompt_toolkit'", "'huggingface_hub'"):
        assert heavy not in loaded
    bare = min(seconds("-c", "pass") for _ in range(3))
    ours = min(seconds("-m", "hgca_cli", "--help") for _ in range(3))
    assert ours - bare < 0.3


@pytest.mark.parametrize("words", ["--help", "chat --help", "--version"])
def test_a_reader_that_leaves_is_no_error(words: str) -> None:
    for shell in (f"{sys.executable} -m hgca_cli {words} | head -c 1", f"{sys.executable} -m hgca_cli {words} >&-"):
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


@pytest.mark.parametrize(("flag", "near"), [("--windw", "--window"), ("--temprature", "--temp"), ("--ful", "--file")])
def test_an_unknown_flag_names_a_near_one(flag: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(capsys, "chat", flag, "3")
    assert flag in err and near in err


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "chta" in refused(capsys, "chta")


@pytest.mark.parametrize("flag", ["--window", "--ctx"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "abc", str(10**12), "", "4q", "nan"])
def test_counts_out_of_range(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert flag in refused(capsys, "chat", "-p", "x", f"{flag}={value}")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--budget", "-0.1"),
        ("--budget", "1.0001"),
        ("--budget", "nan"),
        ("--budget", "inf"),
        ("--budget", "0.1"),  # exact reads everything: needs a policy that chooses
        ("--temp", "-1"),
        ("--temp", "nan"),
        ("--temp", "hot"),
        ("--top-p", "0"),
        ("--top-p", "2"),
        ("--top-k", "-1"),
        ("--min-p", "1.5"),
        ("--repeat-penalty", "0"),
        ("--seed", str(2**64)),
        ("--seed", "-1"),
        ("--max-tokens", "-1"),
        ("--threads", "0"),
        ("--threads", "-1"),
        ("--threads", "10000"),
        ("--sinks", "-1"),
        ("--prefill-chunk", "0"),
        ("--dtype", "int3"),
        ("--kv-dtype", "int3"),
        ("--select", "best"),
        ("--ram-limit", "lots"),
        ("--gpu-mem", "-1"),
    ],
)
def test_values_out_of_range(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert flag in refused(capsys, "chat", "-p", "x", f"{flag}={value}")


@pytest.mark.parametrize(
    "words",
    [
        ["--exact", "--select", "window"],
        ["--exact", "--budget", "0.5"],
        ["--select", "window", "--budget", "0.5"],
        ["--system", "a", "--system-file", "b"],
        ["--yarn"],
    ],
)
def test_what_excludes_each_other_is_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(capsys, "chat", "-p", "x", *words)
    assert any(word.lstrip("-") in err for word in words)


def test_two_prompts_are_one_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--prompt" in refused(capsys, "chat", "-p", "x", "hello", "there")


@pytest.mark.parametrize(
    ("select", "exact", "budget", "want"),
    [
        ("auto", False, "auto", ("exact", None)),
        ("auto", True, "auto", ("exact", None)),
        ("auto", False, "0", ("window", None)),
        ("auto", False, "1", ("exact", None)),
        ("auto", False, "100%", ("exact", None)),
        ("moving-average", False, "5%", ("moving-average", 0.05)),
        ("moving-average", False, "0.05", ("moving-average", 0.05)),
    ],
)
def test_policy_and_budget(select: str, exact: bool, budget: str, want: tuple[str, float | None]) -> None:
    assert options.policy_of(select, exact, budget) == want


def test_a_device_that_is_not_there(model: Path) -> None:
    for device in ("cuda:99", "tpu"):
        done = hgca("chat", "-p", "x", "-m", str(model), "--device", device)
        assert done.returncode == 5 and done.stderr.count(b"\n") == 1
        err = done.stderr.decode()
        assert device in err and "no such device" in err and "cpu" in err


@pytest.mark.parametrize(
    ("name", "value"), [("HGCA_WINDOW", "wide"), ("HGCA_TEMP", "hot"), ("HGCA_CTX", "-3"), ("HGCA_THREADS", "many")]
)
def test_garbage_in_the_environment_is_named(name: str, value: str) -> None:
    done = hgca("chat", "-p", "x", **{name: value})
    assert done.returncode == 2
    flag = "--" + name.removeprefix("HGCA_").lower()
    assert name.encode() in done.stderr or flag.encode() in done.stderr


def test_spellings_of_other_tools() -> None:
    assert options.rename_aliases(["--num-ctx=4k", "--temperature", "1", "--", "--num-ctx"]) == [
        "--ctx=4k", "--temp", "1", "--", "--num-ctx",
    ]  # fmt: skip
    main = {"--ctx", "--max-tokens", "--temp", "--repeat-penalty", "--system", "--system-file", "--kv-dtype"}
    assert main <= set(options.ALIASES.values())


def test_files_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "binary").write_bytes(b"text\0text")
    for name, word, code in (
        ("missing.txt", "no such file", 5),
        (".", "directory", 2),
        ("latin.txt", "not UTF-8", 2),
        ("binary", "NUL", 2),
    ):
        err = refused(capsys, "chat", "-p", "x", "-f", str(tmp_path / name), code=code)
        assert word in err and (name == "." or name in err)


def test_prompts_in_any_encoding(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfhello")
    base = ["chat", "-m", str(model), "-n", "3", "--temp", "0", "--seed", "1"]
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"hgca_cli", b"chat", b"-p", b"caf\xe9"], capture_output=True, check=False
    )
    assert done.returncode == 2 and b"not valid UTF-8" in done.stderr
    done = hgca(*base, "-f", str(tmp_path / "bom.txt"), "-p", "żółć 🙂", LANG="C", LC_ALL="C", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and b"Traceback" not in done.stderr


def test_an_empty_or_closed_standard_input(model: Path) -> None:
    done = hgca("chat", "-m", str(model))
    assert done.returncode == 2 and b"prompt is empty" in done.stderr
    shell = f"{sys.executable} -m hgca_cli chat -m {model} <&-"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, check=False, timeout=60)
    assert done.returncode == 2 and b"closed" in done.stderr and b"Traceback" not in done.stderr


def test_mistakes_are_told_before_the_model_is_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    refused(capsys, "chat", "-m", "no-such-org/no-such-model", "-p", "x", "--temp", "-3")
    assert time.monotonic() - began < 1


def test_sizes_people_write() -> None:
    assert options.count_of("128k", "--ctx") == 131_072 and options.count_of("1M", "--ctx") == 1 << 20
    assert options.count_of("auto", "--ctx") is None
    with pytest.raises(UsageError, match="--ctx"):
        options.count_of("k", "--ctx")
