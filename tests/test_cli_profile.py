"""`hgca profile`, and the profile a chat plans with."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hgca_cli.hardware import profile as files
from hgca_cli.hardware.probes import run as probes
from hgca_cli.hardware.profiles import THIS
from hgca_cli.native import usable_processors
from tests.cli_process import ROOT, Done, environment, here, save_tiny
from tests.rates import profile
from tests.test_hardware_probes import shrink


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("profile") / "model")


def planned(*words: str, **env: str) -> Done:
    return here("profile", "--profile", "rtx-4090-24gb", *words, **env)


def test_a_plan_for_a_machine_that_is_elsewhere() -> None:
    run = planned("-m", "Qwen/Qwen3-8B", "--ctx", "128k")
    out = run.stdout.decode()
    assert run.returncode == 0 and run.stderr == b""
    assert out.startswith("rtx-4090-24gb (estimated, 2026-11-25)\n")
    assert "GPU 0  NVIDIA GeForce RTX 4090: 24.0 GiB" in out and "note   estimated" in out
    bars = [line for line in out.splitlines() if "tok/s  " in line]
    assert [line.split()[0] for line in bars] == ["4k", "32k", "128k", "1M"]
    for line in bars:
        bar = line.split("tok/s  ")[1].split(" ")[0]
        assert len(bar) == 40 and set(bar) <= set("wlncsa")
    assert "does not fit: host memory needs" in bars[3] and "beyond the trained length" in bars[2]
    assert "flags: --device cuda:0" in out and "(estimated, profile rtx-4090-24gb)" in out


def test_json_holds_all_of_it() -> None:
    run = planned("-m", "qwen3-8b", "--ctx", "32k", "--json")
    told = json.loads(run.stdout)
    assert run.returncode == 0 and told["model"] == "qwen3-8b" and told["odd"] == []
    assert told["profile"]["gpus"][0]["memory_gb_s"] == 920.0
    assert list(told["lengths"]) == ["4096", "32768", "131072", "1048576"]
    assert told["plan"]["fits"] and not told["lengths"]["1048576"]["fits"]
    predicted = told["plan"]["predicted"]
    assert sum(predicted["token_ms"].values()) == pytest.approx(1e3 / predicted["tokens_per_second"])


def test_what_does_not_fit_is_refused_with_figures_and_the_nearest_plan() -> None:
    run = planned("-m", "Qwen/Qwen3-8B", "--ctx", "1M")
    told = run.stderr.decode()
    assert run.returncode == 4 and told.count("\n") == 1
    assert "host memory needs" in told and "and has 44.8 GiB" in told and "--kv-dtype int8 --ctx" in told


def test_weights_too_large_for_a_laptop() -> None:
    words = ("profile", "--profile", "laptop-cpu-only", "-m", "Qwen/Qwen3-8B", "--ctx", "32k", "--kv-dtype", "int8")
    run = here(*words)
    assert run.returncode == 4 and b"--quant q4 (fits" in run.stderr and run.stderr.count(b"\n") == 1
    run = here(*words, "--quant", "q4")
    out = run.stdout.decode()
    assert run.returncode == 0 and "cpu fp32, weights in q4" in out and "--quant q4" in out.splitlines()[-1]
    run = here(*words, "--json", "--load-in-4bit")
    told = json.loads(run.stdout)["plan"]
    assert told["quant"] == "q4" and told["fits"] and told["memory"][0]["weights"] < 6 << 30
    run = planned("-m", "Qwen/Qwen3-8B", "--quant", "int8")
    assert run.returncode == 0 and b"cuda:0 bf16, weights in q8" in run.stdout and b"--quant q8" in run.stdout


def test_experts_and_matrices_that_are_no_linear_layers_are_not_packed(tmp_path: Path) -> None:
    from transformers import GPT2Config, MixtralConfig

    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    MixtralConfig(vocab_size=320, **shape).save_pretrained(tmp_path / "experts")
    GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=320, n_positions=64).save_pretrained(tmp_path / "gpt2")
    for name in ("experts", "gpt2"):
        words = ("profile", "--profile", "laptop-cpu-only", "-m", str(tmp_path / name))
        assert here(*words).returncode == 0
        run = here(*words, "--quant", "q8")
        assert run.returncode == 5 and b"--quant q8: few of this model's weights are linear layers" in run.stderr


def test_a_plot(tmp_path: Path) -> None:
    run = planned("-m", "qwen3-8b", "--plot", str(tmp_path / "steps.svg"))
    assert run.returncode == 0
    picture = (tmp_path / "steps.svg").read_text()
    assert picture.startswith("<?xml") and len(picture) > 5000


def test_a_config_alone_is_enough(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "config-only"
    folder.mkdir()
    (folder / "config.json").write_bytes((Path(model) / "config.json").read_bytes())
    whole, bare = (planned("-m", str(one), "--json", "--dtype", "fp32") for one in (model, folder))
    assert whole.returncode == bare.returncode == 0
    memory = [json.loads(run.stdout)["plan"]["memory"][0]["weights"] for run in (whole, bare)]
    assert memory[0] == memory[1] > 0
    named = planned("-m", str(folder / "config.json"), "--json", "--dtype", "fp32")
    assert json.loads(named.stdout)["plan"]["memory"][0]["weights"] == memory[0]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--profile", "nothing"], 2, "no profile 'nothing'. There is: h200"),
        (["--profile", "h20"], 2, "Did you mean h200?"),
        (["--profile", "/none/here.toml"], 2, "/none/here.toml: No such file"),
        (["--profile", "h200", "--quick"], 2, "--profile and --quick"),
        (["--show", "--save", "x"], 2, "--show and --save"),
        (["--save", "../up"], 2, "--save: '../up' is not a plain name"),
        (["--profile", "h200", "-m", "/none/model"], 5, "/none/model"),
        (["--profile", "h200", "-m", "org/unknown", "--offline"], 5, "org/unknown"),
        (["--quick", "-m", "/none/model"], 5, "/none/model"),
        (["--profile", "h200", "-m", "Llama-3.1-8B"], 5, "Did you mean meta-llama/Llama-3.1-8B-Instruct? "),
        (["--profile", "h200", "-m", "elsewhere"], 5, "nor a hub id (org/name). See "),
        (["--profile", "h200", "--window", "0"], 2, "--window"),
        (["--profile", "h200", "--plot", "x.gif"], 2, "neither .svg nor .png"),
        (["--profile", "laptop-cpu-only", "--device", "cuda"], 5, "cuda: no such device"),
        (["--show"], 2, "not measured yet"),
    ],
)
def test_bad_words_are_one_line(words: list[str], code: int, told: str, tmp_path: Path) -> None:
    run = here("profile", "-m", "qwen3-8b", *words, HGCA_PROFILE_DIR=str(tmp_path))
    lines = run.stderr.decode().splitlines()
    assert run.returncode == code and len(lines) == 1 and told in lines[0], lines
    assert list(tmp_path.iterdir()) == []


def test_the_list(tmp_path: Path) -> None:
    files.write(replace(profile(), name="mine"), tmp_path / "mine.toml")
    (tmp_path / "broken.toml").write_text("schema = 2\n")
    run = here("profile", "--list", HGCA_PROFILE_DIR=str(tmp_path))
    names = [line.split()[0] for line in run.stdout.decode().splitlines()]
    assert run.returncode == 0 and {"mine", "h200", "rtx-4060-8gb", "laptop-cpu-only"} <= set(names)
    assert "broken" not in names and b"broken.toml: name is missing" in run.stderr
    told = json.loads(here("profile", "--list", "--json", HGCA_PROFILE_DIR=str(tmp_path)).stdout)
    assert {"name": "mine", "origin": "measured", "date": "2026-11-25", "note": ""} in told


def test_measuring_keeps_and_shows_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shrink(monkeypatch)
    run = here("profile", "--quick", "-m", "qwen3-0.6b", "--ctx", "4k", HGCA_PROFILE_DIR=str(tmp_path))
    assert run.returncode == 0 and b"measuring memory (1 of 8)" in run.stderr
    file = tmp_path / f"{THIS}.toml"
    assert f"kept in {file}".encode() in run.stderr and files.read(file).quick
    shown = here("profile", "--show", "-m", "qwen3-0.6b", "--ctx", "4k", HGCA_PROFILE_DIR=str(tmp_path))
    assert shown.returncode == 0 and b"measuring" not in shown.stderr
    assert shown.stdout.splitlines()[:4] == run.stdout.splitlines()[:4]
    named = here(
        "profile", "--quick", "--save", "box", "-m", "qwen3-0.6b", "--ctx", "4k", "-q", HGCA_PROFILE_DIR=str(tmp_path)
    )
    assert named.returncode == 0 and named.stderr == b"" and files.read(tmp_path / "box.toml").name == "box"


def chatted(model: str, folder: Path, *words: str, **env: str) -> Done:
    return here(
        "chat", "-m", model, "-p", "hi", "-n", "2", "--json", *words,
        HGCA_PROFILE_DIR=str(folder), **{"HGCA_PROFILE": "auto"} | env,
    )  # fmt: skip


def test_the_first_chat_measures_and_the_second_does_not(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shrink(monkeypatch)
    first = [json.loads(line) for line in chatted(model, tmp_path).stdout.splitlines()]
    notices = [one["text"] for one in first if one["type"] == "notice"]
    assert any("this machine was not measured yet" in text for text in notices), notices
    plan = next(one for one in first if one["type"] == "plan")
    assert plan["predicted"]["origin"] == "measured" and (tmp_path / f"{THIS}.toml").exists()
    second = [json.loads(line) for line in chatted(model, tmp_path).stdout.splitlines()]
    assert not any(one["type"] == "notice" for one in second)
    assert next(one for one in second if one["type"] == "plan")["predicted"]["origin"] == "measured"


def test_nothing_is_measured_for_an_answer_of_no_tokens(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shrink(monkeypatch)
    lines = [json.loads(line) for line in chatted(model, tmp_path, "-n", "0").stdout.splitlines()]
    assert lines[-1]["type"] == "done" and not any(one["type"] == "notice" for one in lines)
    assert next(one for one in lines if one["type"] == "plan")["predicted"]["origin"] == "estimated"
    assert not list(tmp_path.iterdir())
    chatted(model, tmp_path, "-n", "0", "--plan")
    assert (tmp_path / f"{THIS}.toml").exists(), "a plan is made of rates, whatever is answered then"


def test_a_stale_or_damaged_profile_is_noticed_and_measured_anew(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shrink(monkeypatch)
    file = tmp_path / f"{THIS}.toml"
    for before, told in ((profile(), "out of date (4 proc"), (None, "schema None")):
        if before is None:
            file.write_text("")
        else:
            files.write(replace(before, host=replace(before.host, usable=usable_processors(), isa="odd")), file)
            told = "out of date"
        lines = [json.loads(line) for line in chatted(model, tmp_path).stdout.splitlines()]
        assert any(told in one.get("text", "") for one in lines if one["type"] == "notice")
        assert files.read(file).host.isa != "odd"


def test_another_number_of_processors_has_a_profile_of_its_own(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shrink(monkeypatch)
    file, count = tmp_path / f"{THIS}.toml", usable_processors()
    files.write(replace(profile(), host=replace(profile().host, usable=count + 1)), file)
    before = file.read_bytes()
    lines = [json.loads(line) for line in chatted(model, tmp_path).stdout.splitlines()]
    assert any(
        f"not measured with {count} processor" in one.get("text", "") for one in lines if one["type"] == "notice"
    )
    assert file.read_bytes() == before and files.read(tmp_path / f"{THIS}-{count}.toml").host.usable == count
    assert "notice" not in [json.loads(line)["type"] for line in chatted(model, tmp_path).stdout.splitlines()]


def test_a_profile_that_cannot_be_kept_or_measured_stops_nobody(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shrink(monkeypatch)
    blocked = tmp_path / "file"
    blocked.write_text("")
    lines = [json.loads(line) for line in chatted(model, blocked).stdout.splitlines()]
    assert lines[-1]["type"] == "done" and any("is not kept" in one.get("text", "") for one in lines)

    def fail(**_: object) -> None:
        from hgca_cli.errors import DoesNotFitError

        raise DoesNotFitError("no memory for 1.0 GiB to measure on.", "")

    monkeypatch.setattr(probes, "measure_profile", fail)
    lines = [json.loads(line) for line in chatted(model, tmp_path / "new").stdout.splitlines()]
    assert any("measuring failed (no memory" in one.get("text", "") for one in lines)
    assert next(one for one in lines if one["type"] == "plan")["predicted"]["origin"] == "estimated"


def test_a_chats_profile_by_name(model: str, tmp_path: Path) -> None:
    run = chatted(model, tmp_path, "--profile", "h200")
    plan = json.loads(run.stdout.splitlines()[0])
    assert run.returncode == 0 and plan["predicted"]["profile"] == "h200" and plan["device"] == "cpu"
    elsewhere = chatted(model, tmp_path, "--profile", "h200", "--plan")
    assert json.loads(elsewhere.stdout)["device"] == "cuda:0", "with --plan its GPU counts"
    wrong = chatted(model, tmp_path, HGCA_PROFILE="h2000")
    assert wrong.returncode == 2 and b"no profile 'h2000'" in wrong.stdout


def test_help_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from hgca_cli.app import run; assert run(['profile', '--help']) == 0; "
        "sys.exit(bool({'torch', 'transformers', 'rich', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, cwd=ROOT, env=environment())
    assert done.returncode == 0 and b"--quick" in done.stdout, done.stderr
