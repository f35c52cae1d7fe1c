"""Config files: what they set, what wins over them, and mistakes in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hgca_cli.app import run
from hgca_cli.commands.aliases import config_first
from hgca_cli.commands.config_file import read_config
from hgca_cli.errors import UsageError
from tests.cli_process import Done, environment, here, records, save_tiny, shell


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("config") / "model")


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's file, in a directory of its own, with the working directory elsewhere."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "user.toml"


def hg(user: Path, *words: str, **env: str) -> Done:
    return here(*words, **{"HGCA_CONFIG": str(user)} | env)


def settings(user: Path, *words: str, **env: str) -> dict[str, tuple[Any, str, str]]:
    places = {"HGCA_CACHE_DIR": str(user.parent / "cache"), "HGCA_PROFILE_DIR": str(user.parent / "profiles")}
    found = json.loads(hg(user, "doctor", "--json", *words, **places | env).stdout)
    return {one["name"]: (one["value"], one["origin"], one["by"]) for one in found["settings"]}


def test_a_flag_a_variable_a_directorys_file_and_the_users_win_in_this_order(user: Path, model: str) -> None:
    user.write_text(
        f'model = "own"\n[aliases]\nown = {json.dumps(model)}\n[defaults]\nctx = "256"\nwindow = 64\nsinks = 1\nthreads = 1\n'
        "[sampling]\ntemp = 0.25\ntop_k = 7\n"
    )
    Path("hgca.toml").write_text("[defaults]\nwindow = 32\nsinks = 2\nctx = 192\n")
    told = settings(user, "--ctx", "128", HGCA_SINKS="3")
    assert told["ctx"] == (128, "flag", "--ctx") and told["sinks"] == (3, "environment", "HGCA_SINKS")
    assert told["window"] == (32, "config", "hgca.toml: [defaults] window")
    assert told["model"] == ("own", "config", f"{user}: model")
    assert told["temp"] == (0.25, "config", f"{user}: [sampling] temp") and told["top_k"][0] == 7
    other = user.parent / "other.toml"
    other.write_text("[defaults]\nwindow = 16\n")
    for words in (["--config", str(other), "--ctx", "128"], ["--ctx", "128", f"--config={other}"]):
        assert settings(user, *words)["window"] == (16, "config", f"{other}: [defaults] window")
        assert settings(user, *words)["sinks"][2] == f"{user}: [defaults] sinks", (
            "it replaces the directory's file alone"
        )


def test_settings_of_a_model(user: Path, model: str) -> None:
    user.write_text(
        f"[aliases]\nown = {json.dumps(model)}\n[defaults]\nwindow = 64\n[models.own]\nwindow = 32\ntemp = 0.5\n"
        f"[models.{json.dumps(model)}]\nsinks = 2\n"
    )
    named = settings(user, "-m", "own")
    assert named["window"] == (32, "config", f'{user}: [models."own"] window') and named["temp"][0] == 0.5
    assert named["sinks"][0] == 2, "also by what the alias stands for"
    assert settings(user, "-m", "own", "--window", "16")["window"][:2] == (16, "flag")
    assert settings(user, "-m", model)["window"][0] == 64
    assert settings(user, "-m", model)["sinks"][0] == 2


def test_a_chat_takes_them(user: Path, model: str) -> None:
    user.write_text(
        f'model = "own"\n[aliases]\nown = {json.dumps(model)}\n[defaults]\nctx = 256\n[sampling]\nmax_tokens = 3\nstop = "zz"\n'
        "[ui]\nstats = true\nstream = false\n[sessions]\nsave = false\n"
    )
    done = hg(user, "chat", "-p", "the cat")
    assert done.returncode == 0 and b"3 tokens" in done.stderr
    told = records(hg(user, "chat", "-p", "the cat", "--json"))
    assert told[0]["context"] == 256 and told[-1]["usage"]["completion_tokens"] == 3
    assert "token" not in {record["type"] for record in told}
    assert b"3 tokens" not in hg(user, "chat", "-p", "the cat", "--no-stats").stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[defaults]\nwindwo = 3", ["[defaults] windwo", "Did you mean window?"]),
        ("[default]\nwindow = 3", ["there is no default", "Did you mean defaults?"]),
        ("windo = 3", ["there is no windo"]),
        ("[sampling]\nwindow = 3", ["[sampling] window"]),
        ('[sampling]\ntemp = "hot"', ["[sampling] temp", "hot", "--temp"]),
        ("[sampling]\ntemp = -1", ["--temp", "out of range", "[sampling] temp"]),
        ("[defaults]\nwindow = [1]", ["[defaults] window", "no value"]),
        ('[sessions]\nsave = "maybe"', ["[sessions] save", "neither true nor false"]),
        ("[aliases]\na = 1", ["[aliases] a"]),
        ("aliases = 1", ["aliases", "not a table"]),
        ('[models."x"]\nmodel = "y"', ['[models."x"] model']),
        ("model = x y", ["not TOML", "line 1"]),
        ('model = "x"\n[model."y"]\nwindow = 1', ["not TOML"]),
        ("[ui]\nmarkdown = 3", ["--markdown", "[ui] markdown"]),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_key(text: str, told: list[str], user: Path) -> None:
    user.write_text(text)
    done = hg(user, "chat", "-p", "x", "-m", "./nowhere")
    err = done.stderr.decode()
    assert done.returncode == 2 and err.count("\n") == 1 and err.startswith("hgca: error: ")
    assert str(user) in err and all(word in err for word in told), err


def test_a_file_that_was_named_must_be_there(user: Path) -> None:
    done = hg(user, "chat", "-p", "x")
    assert done.returncode == 5 and str(user).encode() in done.stderr
    user.write_text("")
    done = hg(user, "--config", "none.toml", "chat", "-p", "x")
    assert done.returncode == 5 and b"none.toml" in done.stderr


def test_a_directory_may_not_let_code_run(user: Path) -> None:
    user.write_text("")
    Path("hgca.toml").write_text("[defaults]\ntrust_remote_code = true\n")
    done = hg(user, "chat", "-p", "x", "-m", "./nowhere")
    assert done.returncode == 2 and b"trust_remote_code" in done.stderr and b"hgca.toml" in done.stderr
    Path("hgca.toml").unlink()
    user.write_text("[defaults]\ntrust_remote_code = true\n")
    assert hg(user, "chat", "-p", "x", "-m", "./nowhere").returncode == 5, "the user's own may"


def test_set_get_show_and_path(user: Path) -> None:
    user.write_text("# mine\nmodel = 'a'  # for now\n")
    for key, value in (
        ("sampling.temp", "0.5"),
        ("window", "16k"),
        ("aliases.big", "org/name"),
        ('models."org/name".ctx', "128k"),
        ("ui.markdown", "off"),
        ("sessions.save", "false"),
        ("sampling.seed", "-1"),
        ("model", "big"),
    ):
        done = hg(user, "config", "set", key, value)
        assert done.returncode == 0, done.stderr
        assert hg(user, "config", "get", key).stdout.decode().strip() == value
    text = user.read_text()
    assert text.startswith('# mine\nmodel = "big" # for now\n') or "# mine" in text
    assert 'window = "16k"' in text and "temp = 0.5" in text
    shown = hg(user, "config", "show", HGCA_SEED="3", HGCA_WINDOW="1k").stdout.decode()
    rows = {line.split()[0]: line for line in shown.splitlines()}
    assert rows["temp"].endswith(f"{user}: [sampling] temp") and "0.5" in rows["temp"]
    assert (
        "1k" in rows["window"]
        and rows["window"].endswith("HGCA_WINDOW")
        and rows["ctx"].endswith('[models."org/name"] ctx')
    )
    assert rows["threads"].endswith("default") and "no_save" in rows and "true" in rows["no_save"]
    as_json = json.loads(hg(user, "config", "show", "--json").stdout)
    assert {"name": "temp", "value": 0.5, "origin": f"{user}: [sampling] temp"} in as_json
    paths = hg(user, "config", "path").stdout.decode().splitlines()
    assert paths[0].endswith("hgca.toml (not there)") and paths[1] == str(user)


def test_what_was_set_is_unset(user: Path) -> None:
    user.write_text(
        "# mine\nmodel = 'a'  # for now\n[defaults]\nwindow = '16k'\n[sampling]\ntop-p = 0.9  # here\ntemp = 0.5\n"
        "[models.\"org/name\"]\nctx = '128k'\n"
    )
    for key in ("top_p", "window", "model", 'models."org/name"'):
        done = hg(user, "config", "unset", key)
        assert done.returncode == 0 and b"no longer set" in done.stdout, done.stderr
    assert user.read_text() == "# mine\n[sampling]\ntemp = 0.5\n"
    for key in ("top_p", "aliases.big", "models.big.ctx"):
        done = hg(user, "config", "unset", key)
        assert done.returncode == 2 and f"{key} is not set there".encode() in done.stderr
    assert user.read_text() == "# mine\n[sampling]\ntemp = 0.5\n"


def test_an_option_is_found_with_dashes_and_a_name_as_it_is(user: Path) -> None:
    user.write_text("[aliases]\nmy-model = 'a'\nmy_model = 'b'\n[sampling]\ntop-p = 0.9\n")
    assert hg(user, "config", "set", "top_p", "0.5").returncode == 0
    assert user.read_text().endswith("top-p = 0.5\n"), "not a second time beside it"
    assert hg(user, "config", "unset", "aliases.my_model").returncode == 0
    assert "my-model = 'a'" in user.read_text() and "my_model" not in user.read_text()
    assert hg(user, "config", "unset", "aliases.my_model").returncode == 2


def test_what_is_no_config_is_not_written(user: Path) -> None:
    user.write_text("# mine\n")
    for key, value in (("sampling.tmp", "1"), ("nonsense.x", "1"), ("a b", "1"), ("aliases.x", "3")):
        done = hg(user, "config", "set", key, value)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1
    assert user.read_text() == "# mine\n"
    user.write_text("model = ")
    assert hg(user, "config", "path").returncode == 0, "a file with a mistake can be found"
    assert hg(user, "config", "set", "model", "x").returncode == 2 and user.read_text() == "model = "
    assert hg(user, "config", "get", "nonsense").returncode == 2


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("ctx", "banana", "--ctx: 'banana' is not a whole number"),
        ("temp", "hot", "[sampling] temp = 'hot': that is not a number."),
        ("top-p", "3.0", "--top-p: 3.0 is out of range"),
        ("select", "nothing", "--select: no such choice 'nothing'"),
        ("dashboard", "never", "--dashboard: no such choice 'never'"),
        ("balance", "sometimes", "--balance: no such choice 'sometimes'"),
        ("prompt_lookup", "99", "--prompt-lookup: '99' is no number of tokens"),
        ("sessions.kv_disk_limit", "much", "--kv-disk-limit: 'much' is not an amount"),
        ("verbose", "true", "--quiet and --verbose exclude each other"),
        ('models."org/name".window', "0", "--window: 0 is out of range"),
    ],
)
def test_what_every_chat_would_refuse_is_not_written(key: str, value: str, told: str, user: Path) -> None:
    user.write_text("[ui]\nquiet = true\n")
    done = hg(user, "config", "set", key, value, HGCA_CTX="4k", HGCA_TEMP="1")
    assert done.returncode == 2 and told in done.stderr.decode() and done.stderr.count(b"\n") == 1
    assert user.read_text() == "[ui]\nquiet = true\n"


def test_models_on_this_machine(user: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(user.parent / "hub"))
    user.write_text(f"[aliases]\nown = {json.dumps(model)}\n")
    cache = user.parent / "cache"
    none = hg(user, "models", "ls", HGCA_CACHE_DIR=str(cache))
    assert (
        none.returncode == 0
        and b"no models yet" in none.stdout
        and b"= the default model, of" in none.stdout
        and f"own = {model}".encode() in none.stdout
    )
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "tiny").symlink_to(model)
    shown = hg(user, "models", "ls", HGCA_CACHE_DIR=str(cache)).stdout.decode()
    assert "tiny" in shown and "128 B" in shown and "512" in shown
    told = json.loads(hg(user, "models", "ls", "--json", HGCA_CACHE_DIR=str(cache)).stdout)
    assert told["models"][0]["kv_bytes_per_token"] == 2 * 2 * 2 * (8 + 8) and told["aliases"]["own"] == model
    assert hg(user, "models", "ls", "-q", HGCA_CACHE_DIR=str(cache)).stdout == b"tiny\n"
    refused = hg(user, "models", "rm", "tiny", "other", HGCA_CACHE_DIR=str(cache))
    assert (
        refused.returncode == 5
        and b"no model 'other' on this machine" in refused.stderr
        and (cache / "models/tiny").exists()
    )
    removed = hg(user, "models", "rm", "tiny", HGCA_CACHE_DIR=str(cache))
    assert removed.returncode == 0 and re.fullmatch(rb"removed tiny \(.* KiB, converted\)\n", removed.stdout)
    assert not (cache / "models/tiny").exists() and (Path(model) / "config.json").exists()


def test_the_shell_completes_aliases_and_sessions(user: Path, tmp_path: Path) -> None:
    user.write_text('[aliases]\nsmall = "org/name"\nbig = "org/other"\n')
    (tmp_path / "hub" / "models--org--cached").mkdir(parents=True)
    folder = tmp_path / "data" / "sessions" / "notes"
    folder.mkdir(parents=True)
    (folder / "messages.jsonl").write_text('{"role": "user", "content": "x"}\n')
    env = {"HGCA_CONFIG": str(user), "HGCA_DATA_DIR": str(tmp_path / "data"), "HF_HUB_CACHE": str(tmp_path / "hub")}

    def completed(words: str) -> str:
        count = len(words.split()) - (not words.endswith(" "))
        line = f"_HGCA_COMPLETE=complete_bash COMP_WORDS='{words}' COMP_CWORD={count} hgca"
        return shell(line, **env).stdout.decode()

    assert {"smollm2-135m", "small"} <= set(completed("hgca chat -m sm").split())
    assert "org/cached" in completed("hgca chat -m org").split() and "big" not in completed("hgca chat -m sm")
    assert completed("hgca chat --session no").split() == ["notes"]
    assert "HGCA_CONFIG" in environment(**env)


def test_where_config_may_stand(capsys: pytest.CaptureFixture[str]) -> None:
    assert config_first(["chat", "--config", "a", "x"]) == ["--config", "a", "chat", "x"]
    assert config_first(["chat", "--config=a", "x"]) == ["--config=a", "chat", "x"]
    assert config_first(["chat", "--", "--config", "a"]) == ["chat", "--", "--config", "a"]
    assert run(["chat", "--config"]) == 2 and "--config" in capsys.readouterr().err


def test_an_edit_that_is_no_config_is_opened_again(user: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    opened: list[str] = []

    def writes(new: str) -> None:
        def edited(text: str, *_: str) -> str:
            opened.append(text)
            return new

        monkeypatch.setattr("hgca_cli.commands.config.edited_elsewhere", edited)

    monkeypatch.setenv("HGCA_CONFIG", str(user))
    user.write_text("[sampling]\ntemp = 0.25\n")
    broken = "[sampling]\ntemp = \n# long work\n"
    writes(broken)
    assert run(["config", "edit"]) == 2 and user.read_text() == "[sampling]\ntemp = 0.25\n"
    assert "What you wrote is not lost: hgca config edit opens it again." in capsys.readouterr().err
    writes("[sampling]\ntemp = 0.5\n# long work\n")
    assert run(["config", "edit"]) == 0 and opened == ["[sampling]\ntemp = 0.25\n", broken]
    assert user.read_text() == "[sampling]\ntemp = 0.5\n# long work\n" and [*user.parent.glob("*.rejected")] == []


def test_a_file_of_the_directory_is_not_said_to_be_opened_by_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HGCA_CONFIG", str(tmp_path / "mine.toml"))
    (tmp_path / "hgca.toml").write_text("x = [")
    (tmp_path / "mine.toml").write_text("")
    with pytest.raises(UsageError, match=r"hgca.toml is not TOML.* Mend it"):
        read_config(None, ["ctx"])
    (tmp_path / "hgca.toml").unlink()
    (tmp_path / "mine.toml").write_text("x = [")
    with pytest.raises(UsageError, match=r"mine.toml is not TOML.* hgca config edit opens it"):
        read_config(None, ["ctx"])
