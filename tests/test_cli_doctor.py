"""`hgca doctor` from outside: sections, origins, findings, exit codes; it brings nothing, and tells no secret."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hgca_cli import native
from hgca_cli.hardware import profile as profiles
from hgca_cli.hardware.assumed import assume
from hgca_cli.hardware.probe import probe_machine
from hgca_cli.hardware.profiles import versions_now
from tests.cli_process import Done, environment, here, hgca, save_tiny, shell
from tests.models import write_gguf

SECTIONS = ("environment", "kernels", "devices", "profile", "models", "settings of hgca chat -m ", "findings")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = save_tiny(tmp_path_factory.mktemp("doctor") / "model")
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 7.0}
    (Path(path) / "generation_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(autouse=True)
def _empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the person who runs the tests is looked at."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def doctor(tmp_path: Path, *words: str, **env: str) -> Done:
    places = {"HGCA_CACHE_DIR": str(tmp_path / "cache"), "HGCA_PROFILE_DIR": str(tmp_path / "profiles")}
    return here("doctor", *words, **places | env)


def report(tmp_path: Path, *words: str, code: int = 0, **env: str) -> dict[str, Any]:
    done = doctor(tmp_path, "--json", *words, **env)
    assert done.returncode == code and done.stderr == b"", done
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["exit_code"] == code
    return found


def origins(found: dict[str, Any]) -> dict[str, tuple[Any, str, str]]:
    return {one["name"]: (one["value"], one["origin"], one["by"]) for one in found["settings"]}


def said(found: dict[str, Any], level: str) -> str:
    return "\n".join(f"{one['text']} {one['remedy']}" for one in found["findings"] if one["level"] == level)


def test_plain(model: str, tmp_path: Path) -> None:
    done = doctor(tmp_path, "-m", model)
    text = done.stdout.decode()
    assert done.returncode == 0 and done.stderr == b"" and "\x1b" not in text
    titles = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert len(titles) == len(SECTIONS) and all(map(str.startswith, titles, SECTIONS))
    for words in (
        ("torch", "built for"),
        ("instructions", native.isa()),
        ("memory", "GiB", "free"),
        ("ctx", "512", "plan"),
        ("json-schema", " - ", "default"),
    ):
        assert any(all(word in line for word in words) for line in text.splitlines()), words
    assert "warning" in text.split("findings\n")[1] and "top_p = 7.0" in text.split("findings\n")[1]
    quiet = doctor(tmp_path, "-m", model, "-q").stdout.decode()
    assert quiet.startswith("findings\n") and quiet == "findings\n" + text.split("findings\n")[1]
    assert b"\x1b[33mwarning" in doctor(tmp_path, "-m", model, "--color", "always").stdout
    assert sorted(tmp_path.iterdir()) == []  # nothing was made


def test_it_works_as_a_process_without_anything(tmp_path: Path) -> None:
    places = {
        "HGCA_CACHE_DIR": str(tmp_path / "c"),
        "HGCA_PROFILE_DIR": str(tmp_path / "p"),
        "HF_HOME": str(tmp_path / "h"),
    }
    done = hgca("doctor", "-m", "org/nobody", HF_HUB_OFFLINE="1", HGCA_PROFILE="auto", HF_TOKEN="hf_1234", **places)
    text = done.stdout.decode()
    assert done.returncode == 5 and done.stderr == b"" and "hf_1234" not in text and "HF_TOKEN=set" in text
    assert "org/nobody is not on this machine" in text and "HF_HUB_OFFLINE is set." in text
    assert "not measured yet" in text and "not planned: see the findings" in text
    assert sorted(tmp_path.iterdir()) == []


def test_origins(model: str, tmp_path: Path) -> None:
    words = ["-m", model, "--window", "64", "--temp", "0.2", "--stop", "a", "--seed", "0", "--raw", "--sinks", "0"]
    found = report(tmp_path, *words, HGCA_CTX="256", HGCA_TOP_K="3", HGCA_EXACT="1", HGCA_MIN_P="")
    told = origins(found)
    assert told["model"] == (model, "flag", "--model")
    assert told["window"] == (64, "flag", "--window") and told["ctx"] == (256, "environment", "HGCA_CTX")
    assert told["select"] == ("exact", "environment", "HGCA_EXACT") and told["quality"] == (None, "default", "")
    assert told["temp"] == (0.2, "flag", "--temp") and told["top_k"] == (3, "environment", "HGCA_TOP_K")
    assert told["top_p"] == (0.95, "default", "") and told["min_p"] == (0.0, "default", "")
    assert told["stop"] == (["a"], "flag", "--stop") and told["seed"] == (0, "flag", "--seed")
    assert told["sinks"] == (0, "flag", "--sinks") and told["dtype"][:2] == ("fp32", "plan")
    assert told["raw"] == (True, "flag", "--raw") and told["profile"] == ("none", "environment", "HGCA_PROFILE")
    usual = origins(report(tmp_path, "-m", model, "--budget", "1", "--ctx", "auto"))
    assert (
        usual["temp"] == (0.6, "model", "")
        and usual["ctx"] == (512, "plan", "")
        and usual["sinks"] == (4, "default", "")
    )
    assert usual["select"] == ("exact", "flag", "--budget") and usual["budget"] == (None, "default", "")


def test_every_setting_of_chat_is_told(model: str, tmp_path: Path) -> None:
    from hgca_cli.commands.chat import chat

    shown = {one["name"] for one in report(tmp_path, "-m", model)["settings"]}
    look = {
        "context",
        "words",
        "prompt",
        "file",
        "plan",
        "json",
        "stats",
        "no_stream",
        "markdown",
        "hide_thinking",
        "plain",
        "dashboard",
        "quiet",
        "verbose",
        "color",
        "debug",
        "exact",
        "json_schema_file",
        "session",
        "continue_",
        "no_save",
        "no_save_kv",
        "no_cache",
        "kv_disk_limit",
        "reread",
    }  # fmt: skip  (what is asked, how it looks, what is kept, and what `select` and `json_schema` tell)
    assert set(chat.__annotations__) - {"return"} - look == shown


def test_what_is_told_to_the_model_stays_here(model: str, tmp_path: Path) -> None:
    found = report(tmp_path, "-m", model, HGCA_SYSTEM="be brief, Bob", HF_TOKEN="hf_1234", HGCA_TOKEN="hf_1234")
    assert "Bob" not in str(found) and "hf_1234" not in str(found)
    assert origins(found)["system"] == ("13 characters", "environment", "HGCA_SYSTEM")
    assert found["environment"]["variables"]["HF_TOKEN"] == "set"
    assert "HGCA_TOKEN" in said(found, "warning")


def kept(tmp_path: Path, **changes: Any) -> Path:
    """A profile of this machine that is up to date, but for the changes."""
    machine = probe_machine()
    made = assume(machine)
    made = replace(made, name="this-machine", origin="measured", versions=versions_now(), quick=True)
    made = replace(made, host=replace(made.host, isa=native.isa()))
    profiles.write(replace(made, **changes), tmp_path / "profiles" / "this-machine.toml")
    return tmp_path / "profiles" / "this-machine.toml"


def test_the_profile_decides_and_is_named(model: str, tmp_path: Path) -> None:
    kept(tmp_path)
    found = report(tmp_path, "-m", model, HGCA_PROFILE="auto")
    told = origins(found)
    assert told["threads"][1:] == told["window"][1:] == ("profile", "this-machine") and told["device"][1] == "plan"
    assert found["profile"]["state"] == "good" and "ten seconds" in said(found, "note")
    assert origins(report(tmp_path, "-m", model))["threads"][1] == "plan"  # --profile none
    figures = doctor(tmp_path, "-m", model, "-v", HGCA_PROFILE="auto").stdout
    assert b"GB/s by number of threads" in figures and b"GB/s" not in doctor(tmp_path, "-m", model).stdout
    kept(tmp_path, versions={"hgca": "0", "torch": "0"})
    stale = report(tmp_path, "-m", model, HGCA_PROFILE="auto")
    assert "hgca is" in said(stale, "warning") and origins(stale)["threads"][1] == "plan"


def test_a_damaged_profile(model: str, tmp_path: Path) -> None:
    file = kept(tmp_path)
    file.write_text("schema = [")
    found = report(tmp_path, "-m", model, HGCA_PROFILE="auto")
    assert "damaged" in said(found, "warning") and "hgca profile" in said(found, "warning")
    assert "is not TOML" in said(report(tmp_path, "-m", model, "--profile", str(file), code=2), "error")
    assert file.read_text() == "schema = ["


def test_a_profile_nobody_has(model: str, tmp_path: Path) -> None:
    found = report(tmp_path, "-m", model, HGCA_PROFILE="h2000", code=2)
    assert "no profile 'h2000' (set by HGCA_PROFILE in the environment)." in said(found, "error")
    assert "Did you mean h200?" in said(found, "error") and len(found["settings"]) > 25
    assert "~nobody" in said(
        report(tmp_path, "-m", model, HGCA_PROFILE_DIR="~nobody-there/x", code=2, HGCA_PROFILE="auto"), "error"
    )


def test_a_default_model_that_is_not_here(tmp_path: Path) -> None:
    found = report(tmp_path)
    assert "smollm2-135m is not ready yet: chat fetches it first" in said(
        found, "note"
    ) and "hgca pull smollm2-135m" in said(found, "note")
    assert origins(found)["ctx"] == (8192, "plan", "")  # its shape is known
    offline = report(tmp_path, HGCA_OFFLINE="1", code=5)
    assert "HGCA_OFFLINE is set." in said(offline, "error")
    (tmp_path / "file").write_text("")
    shut = report(tmp_path, HGCA_CACHE_DIR=str(tmp_path / "file/x"), code=5)
    assert "HGCA_CACHE_DIR: cannot write to" in said(shut, "error") and "Not a directory" in said(shut, "error")


def test_a_hubs_model_that_is_not_here(tmp_path: Path) -> None:
    found = report(tmp_path, "-m", "org/nobody", HF_HUB_OFFLINE="0")
    assert "org/nobody is not ready yet" in said(found, "note") and "hgca pull org/nobody" in said(found, "note")
    assert origins(found)["ctx"] == ("auto", "default", "") and origins(found)["sinks"][0] == "auto"
    given = origins(report(tmp_path, "-m", "org/nobody", "--ctx", "1k", HF_HUB_OFFLINE="0"))
    assert given["ctx"] == (1024, "flag", "--ctx")
    assert found["run"]["needs"] == 0
    known = report(tmp_path, "-m", "Qwen/Qwen3-8B", "--ram-limit", "1GiB", HF_HUB_OFFLINE="0", code=4)
    assert known["run"]["needs"] > 16e9 and "host memory needs" in said(known, "error")


def test_a_gguf_file_is_not_converted(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    found = report(tmp_path, "-m", str(tmp_path / "x.gguf"), code=5)
    assert "cut short" in said(found, "error")
    write_gguf(tmp_path / "y.gguf")
    found = report(tmp_path, "-m", str(tmp_path / "y.gguf"), "--offline")  # no network is needed for it
    assert "y.gguf is not ready yet: chat converts it first." in said(found, "note")
    assert not (tmp_path / "cache").exists()
    assert here("pull", str(tmp_path / "y.gguf"), HGCA_CACHE_DIR=str(tmp_path / "cache")).returncode == 0
    found = report(tmp_path, "-m", str(tmp_path / "y.gguf"))
    assert found["run"]["missing"] is None and found["run"]["path"] == found["models"][0]["models"][0]["path"]


@pytest.mark.parametrize("name", ["HGCA_CACHE_DIR", "HGCA_PROFILE_DIR", "HF_HOME"])
def test_a_directory_that_cannot_be_looked_into(tmp_path: Path, name: str) -> None:
    places = {"HGCA_CACHE_DIR": str(tmp_path), "HGCA_PROFILE_DIR": str(tmp_path), "HF_HOME": str(tmp_path)}
    done = hgca("doctor", "--json", HGCA_PROFILE="auto", **places | {name: "/" + "x" * 300})
    found = json.loads(done.stdout)
    assert done.stderr == b"" and done.returncode == (0 if name == "HF_HOME" else 1)
    assert "File name too long" in said(found, "warning" if name == "HF_HOME" else "error")
    assert len(found["findings"]) == len({one["text"] for one in found["findings"]})


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--ram-limit", "1MiB"], 4, "host memory needs"),
        (["--device", "cuda:7"], 5, "no such device"),
        (["--chat-template", "/not/there"], 5, "/not/there: no such file"),
    ],
)
def test_what_chat_would_end_with(model: str, tmp_path: Path, words: list[str], code: int, told: str) -> None:
    found = report(tmp_path, "-m", model, *words, code=code)
    chat = here("chat", "-m", model, *words, "-p", "x")
    assert chat.returncode == code and told in said(found, "error")
    assert all(
        f"{one['text']} {one['remedy']}" in chat.stderr.decode() for one in found["findings"] if one["level"] == "error"
    )


@pytest.mark.parametrize("name", ["/not/there", "nonsense", "a b/c"])
def test_a_model_nobody_can_find(tmp_path: Path, name: str) -> None:
    found = report(tmp_path, "-m", name, code=5)
    assert len(found["findings"]) >= 1 and name in said(found, "error")


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"HGCA_WINDOW": "much"}, "HGCA_WINDOW"),
        ({"HGCA_QUALITY": "7"}, "HGCA_QUALITY"),
        ({"HGCA_SINKS": "few"}, "HGCA_SINKS"),
        ({"HGCA_TEMP": "-1"}, "HGCA_TEMP"),
        ({"HGCA_COLOR": "mauve"}, "HGCA_COLOR"),
        ({"HGCA_EXACT": "1", "HGCA_BUDGET": "0.5"}, "HGCA_BUDGET"),
    ],
)
def test_garbage_in_a_variable_is_refused(env: dict[str, str], told: str) -> None:
    done = here("doctor", **env)
    assert (
        done.returncode == 2 and done.stdout == b"" and done.stderr.count(b"\n") == 1 and told.encode() in done.stderr
    )


def test_an_instruction_set_nobody_has(tmp_path: Path) -> None:
    done = hgca("doctor", "--json", HGCA_ISA="mmx", HGCA_CACHE_DIR=str(tmp_path))
    found = json.loads(done.stdout)
    assert done.returncode == 2 and done.stderr == b""
    assert "HGCA_ISA" in said(found, "error") and "mmx" in said(found, "error")
    assert found["devices"]["host"]["usable"] >= 1


def test_without_torch(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from hgca_cli.app import run; sys.exit(run(['doctor']))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment(HGCA_CACHE_DIR=str(tmp_path))
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr == "" and "error    torch cannot be imported" in done.stdout
    assert sum(line.startswith("  error ") for line in done.stdout.splitlines()) == 1


def test_help_and_a_mistake_load_nothing() -> None:
    code = "import sys; from hgca_cli.app import run; run(sys.argv[1:]); print(sorted(sys.modules))"
    for words in (["doctor", "--help"], ["doctor", "--window", "x"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, env=environment()
        )
        for heavy in ("'torch'", "'transformers'", "'huggingface_hub'", "'psutil'"):
            assert heavy not in done.stdout, heavy


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    where = {"HGCA_CACHE_DIR": str(tmp_path), "HF_HOME": str(tmp_path)}
    for command in ("hgca doctor >&-", "hgca doctor --json | true"):
        done = shell(f"set -o pipefail; {command}", **where)
        assert done.stderr == b"" and done.returncode == 0, done
    assert list(tmp_path.iterdir()) == []
