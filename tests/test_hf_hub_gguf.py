"""GGUF files of a hub's repository: chosen as llama.cpp's users write it, fetched from a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import gguf
import pytest

from hgca_cli.hf.gguf_check import parts_of
from hgca_cli.hf.hub_gguf import _choose, _not_there, of_hub
from tests.models import write_gguf

COMMIT = "c" * 40
FILES = [
    "README.md", "a-Q4_K_M.gguf", "a-Q4_K_S.gguf", "a-Q8_0.gguf", "a-IQ4_XS.gguf", "mmproj-a-F16.gguf", "a.imatrix.gguf",
    "big/a-BF16-00001-of-00002.gguf", "big/a-BF16-00002-of-00002.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("org/name:Q4_K_M", ("org/name", "Q4_K_M")), ("org/na.me-GGUF:x.gguf", ("org/na.me-GGUF", "x.gguf")),
        ("org/name", None), ("name:Q4", None), ("./org/name:Q4", None), ("org/name:", None), ("a/b/c:Q4", None), ("../x:Q4", None),
    ],
)  # fmt: skip
def test_how_it_is_written(spec: str, found: tuple[str, str] | None) -> None:
    assert of_hub(spec) == found


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        (None, "a-Q4_K_M.gguf"), ("Q4_K_M", "a-Q4_K_M.gguf"), ("q8_0", "a-Q8_0.gguf"), ("iq4_xs", "a-IQ4_XS.gguf"),
        ("bf16", "big/a-BF16-00001-of-00002.gguf"), ("a-Q4_K_S.gguf", "a-Q4_K_S.gguf"), ("Q4_K", None), ("Q5_0", None),
        ("F16", None), ("K_M", None), ("Q4_XS", None), ("00002-of-00002", None),
    ],
)  # fmt: skip
def test_which_file_it_is(kind: str | None, file: str | None) -> None:
    assert _choose(FILES, kind) == file


def test_what_there_is_is_told() -> None:
    error = _not_there("org/a", "Q5_0", FILES)
    assert error.message == "model org/a has no Q5_0."
    assert error.hint == "Name one of them: org/a:{BF16, IQ4_XS, Q4_K_M, Q4_K_S, Q8_0}"
    assert "no Q4_K_M and several others" in _not_there("org/a", None, FILES[3:]).message
    assert "no .gguf file" in _not_there("org/a", "Q8_0", ["README.md"]).message
    assert _choose(["only.gguf", "mmproj.gguf"], None) == "only.gguf" and _choose(["only.gguf"], "Q8_0") is None


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    """A hub with two repositories, and what it was asked for."""
    folder, asked = tmp_path_factory.mktemp("repository"), list[str]()
    write_gguf(folder / "tiny-Q8_0.gguf", quant=gguf.GGMLQuantizationType.Q8_0)
    write_gguf(folder / "tiny-F32.gguf", each=8)
    (folder / "README.md").write_text("tiny")
    names = sorted(file.name for file in folder.iterdir())
    holds = {"org/tiny-GGUF": names, "org/only": ["README.md", "tiny-Q8_0.gguf"]}

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def _json(self, value: object) -> None:
            text = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(f"{self.command} {path}")
            repository = "/".join(path.removeprefix("/api/models").split("/")[1:3])
            here = holds.get(repository, [])
            if here and path.startswith(f"/api/models/{repository}/tree/"):
                sizes = {name: (folder / name).stat().st_size for name in here}
                self._json([{"type": "file", "path": name, "size": size, "oid": "0"} for name, size in sizes.items()])
            elif here and path.startswith("/api/models/"):
                self._json({"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in here]})
            elif path.startswith(f"/{repository}/resolve/") and path.rsplit("/", 1)[1] in here:
                data = (folder / path.rsplit("/", 1)[1]).read_bytes()
                self.send_response(200)
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in path else "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


LOOK = """
import sys
from hgca_cli.errors import HgcaError
from hgca_cli.hf.registry import resolve
for spec in sys.argv[1:]:
    try:
        files = resolve(spec.removeprefix("offline "), offline=spec.startswith("offline "))
        print(files.name, files.path.name)
    except HgcaError as error:
        print(type(error).__name__, error)
"""


def look(hub: str, home: Path, *specs: str) -> list[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "HGCA_"))}
    there = {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(home / "hf"),
        "HGCA_CACHE_DIR": str(home / "cache"),
        "NO_PROXY": "127.0.0.1",
    }
    words = ["-m", "hgca_cli", *specs[1:]] if specs[0] == "hgca" else ["-c", LOOK, *specs]
    done = subprocess.run([sys.executable, *words], env=plain | there, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines()


def test_they_are_fetched_once_and_found_again(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = hub
    name = "org/tiny-GGUF"
    first, parts, several, wrong, nobody = look(
        endpoint, tmp_path, f"{name}:q8_0", f"{name}:F32", name, f"{name}:Q4_K_M", "org/other:Q8_0"
    )
    assert first.startswith(f"{name}:q8_0 tiny-Q8_0-") and parts.startswith(f"{name}:F32 tiny-F32-00001-of-00003-")
    assert "has no Q4_K_M and several others. Name one of them: org/tiny-GGUF:{F32, Q8_0}" in several
    assert "has no Q4_K_M. Name one" in wrong and "no model org/other on the hub" in nobody
    assert f"GET /{name}/resolve/{COMMIT}/README.md" not in asked
    assert len({one for one in asked if one.startswith("GET /org") and one.endswith(".gguf")}) == 4
    asked.clear()
    again = look(
        endpoint, tmp_path, f"offline {name}:Q8_0", f"{name}:tiny-Q8_0.gguf", f"{name}:F32", f"offline {name}:Q5_0"
    )
    assert [line.split()[1] for line in again[:3]] == [first.split()[1], first.split()[1], parts.split()[1]]
    assert again[3].startswith("NotHereError model org/tiny-GGUF:Q5_0 is not on this machine") and not asked
    file = next((tmp_path / "hf").rglob("tiny-F32-00001-of-00003.gguf"))
    parts_of(file)[1].unlink()  # a fetch that was stopped
    assert look(endpoint, tmp_path, f"{name}:F32") == [parts] and len(asked) > 0


def test_a_repository_of_one_file_needs_no_more_than_its_name(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = hub
    (first,) = look(endpoint, tmp_path, "org/only")
    assert first.startswith("org/only tiny-Q8_0-")
    asked.clear()
    assert look(endpoint, tmp_path, "offline org/only", "org/only") == [first, first] and not asked


def test_commands_take_it(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    name = "org/tiny-GGUF:Q8_0"
    assert any(name in line for line in look(hub[0], tmp_path, "hgca", "doctor", "-m", name))  # which fetches nothing
    assert not list((tmp_path / "hf").rglob("*.gguf"))
    (told,) = look(hub[0], tmp_path, "hgca", "pull", name)
    assert told.startswith(f"{name}: ") and "/cache/models/tiny-Q8_0-" in told
    events = look(hub[0], tmp_path, "hgca", "chat", "-m", name, "--plan", "--json", "-c", "128")
    (plan,) = [
        one for one in map(json.loads, events) if one["type"] == "plan"
    ]  # a slow machine tells what it is at, too
    assert plan["model"] == name
