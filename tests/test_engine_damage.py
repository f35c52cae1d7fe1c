"""Damaged sessions: refused in one line, left as they were, and their text can be had."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from hgca_cli.engine.conversation import Conversation
from hgca_cli.engine.session import Session
from hgca_cli.engine.session_files import DamagedError
from hgca_cli.engine.session_record import read_record
from hgca_cli.engine.sessions import every_session, messages_of, one_session
from hgca_cli.errors import ModelError
from tests.saved_sessions import ABOUT, PLENTY, ask, engine_of, forge, one_turn, resumed, rewrite_record, tree

FILES = ("session.json", "messages", "tokens", "kv/")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of one turn, to be copied."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HGCA_DATA_DIR", str(root))
        one_turn(text="the cat sat on the mat " * 8)
    return root


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("HGCA_DATA_DIR", str(tmp_path))
    return tmp_path / "sessions" / "notes"


@pytest.fixture(scope="module")
def engine() -> Any:
    return engine_of()


def named(folder: Path, kind: str) -> Path:
    """One of the four files of a session."""
    return next(
        path for path in sorted(folder.rglob("*")) if str(path.relative_to(folder)).startswith(kind) and path.is_file()
    )


def refused(folder: Path, engine: Any, *, text: bool = True) -> None:
    """Opening it is one error, nothing is changed by that, and what was said can be had: all of it if `text`."""
    before = tree(folder)
    with pytest.raises(DamagedError) as error:
        resumed("notes", engine)
    assert (
        error.value.exit_code == 5 and "session notes is damaged" in str(error.value) and "\n" not in str(error.value)
    )
    assert "--reread" in error.value.hint and "hgca sessions export notes" in error.value.hint
    assert tree(folder) == before, "it was changed"
    assert every_session()[0].name == "notes"
    messages = messages_of(one_session("notes"))
    assert not text or [message["role"] for message in messages] == ["system", "user", "assistant"]
    conversation, notices = resumed("notes", engine, reread=True)
    assert len(notices) == 1 and "is read again" in notices[0].text
    assert conversation.messages == messages and conversation.sequence.cached == 0


@pytest.mark.parametrize("kind", FILES)
def test_every_file_cut_at_each_sixteenth(kind: str, folder: Path, engine: Any) -> None:
    path = named(folder, kind)
    content = path.read_bytes()
    for part in range(16):
        path.write_bytes(content[: len(content) * part // 16])
        refused(folder, engine, text=kind != "messages")
    path.write_bytes(content)
    assert ask(resumed("notes", engine)[0], "why")[0].cached_tokens > 60


@pytest.mark.parametrize("kind", FILES)
def test_a_flipped_bit_anywhere(kind: str, folder: Path, engine: Any) -> None:
    path = named(folder, kind)
    content = path.read_bytes()
    for place in sorted({0, 7, 8, 9, 40, *(len(content) * part // 24 for part in range(24)), len(content) - 1}):
        for bit in (0, 6):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            refused(folder, engine, text=kind != "messages")


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("how", ["link", "folder", "pickle", "pipe", "longer", "no permission", "gone"])
def test_something_else_in_its_place(kind: str, how: str, folder: Path, engine: Any, tmp_path: Path) -> None:
    path = named(folder, kind)
    content = path.read_bytes()
    if how == "longer" and kind == "messages":
        pytest.skip("text behind the last save is a turn that was not committed")
    if how == "no permission" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    if how == "gone" and kind == "session.json":
        pytest.skip("opens with its text, below")
    if how == "longer":
        path.write_bytes(content + b"\0")
    elif how == "pickle":
        path.write_bytes(pickle.dumps(_Marker(tmp_path / "ran")))
    elif how == "no permission":
        path.chmod(0)
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how == "pipe":
            os.mkfifo(path)
        elif how == "link":
            (tmp_path / "elsewhere").write_bytes(content)
            path.symlink_to(tmp_path / "elsewhere")
    refused(folder, engine, text=kind != "messages")
    assert not (tmp_path / "ran").exists()


class _Marker:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_without_its_record_a_session_opens_with_its_text(folder: Path, engine: Any) -> None:
    """As after a kill in its first save: there was nothing else yet."""
    (folder / "session.json").unlink()
    conversation, notices = resumed("notes", engine)
    assert len(notices) == 1 and len(conversation.messages) == 3 and conversation.sequence.cached == 0


def test_a_turn_that_was_written_and_not_committed_is_found(folder: Path, engine: Any) -> None:
    path = named(folder, "messages")
    lines = [
        {"role": "user", "content": "one more"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "to"},
    ]
    content = path.read_bytes() + b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    for cut in range(len(path.read_bytes()), len(content) + 1):
        path.write_bytes(content[:cut])
        conversation, notices = resumed("notes", engine)
        whole_turns = 1 + (cut >= content.index(b"yes") + 5)
        assert notices == [] and len(conversation.messages) == 1 + 2 * whole_turns
    assert ask(conversation, "why")[0].cached_tokens > 60, "and its rows of before are of use"


def test_a_newer_version_is_told(folder: Path, engine: Any) -> None:
    rewrite_record(folder, lambda table: table.update(schema=2))
    before = tree(folder)
    for reread in (False, True):
        with pytest.raises(ModelError, match=r"newer version of hgca \(schema 2, this one reads 1\). Update hgca"):
            resumed("notes", engine, reread=reread)
    assert tree(folder) == before


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(table: dict[str, Any]) -> None:
        *way, last = path.split(".")
        for name in way:
            table = table[int(name) if name.isdigit() else name]
        table[int(last) if last.isdigit() else last] = value

    return change


@pytest.mark.parametrize("schema", [0, -1, "1", None, 1.5, []])
def test_another_schema(schema: Any, folder: Path, engine: Any) -> None:
    rewrite_record(folder, _set("schema", schema))
    refused(folder, engine)


@pytest.mark.parametrize(
    "change",
    [
        _set("saved.rows", 2**63), _set("saved.count", 2**63), _set("saved.rows", 1), _set("saved.count", 1),
        _set("saved.history", 2**61), _set("saved.shared", 10**6), _set("saved.ids.bytes", 2**61),
        _set("saved.shards.0.tokens", 2**61), _set("saved.shards.0.tokens", 0), _set("saved.shards.0.first", 1),
        _set("saved.shards.0.bytes", 2**61), _set("saved.shards.0.slides", 5000), _set("saved.shards", []),
        _set("saved.shards.0.file", "../../../etc/passwd"), _set("saved.shards.0.file", "/etc/passwd"),
        _set("saved.shards.0.file", "kv/../session.json"), _set("saved.ids.file", "../tokens-000001.u32"),
        _set("messages.file", "../x.jsonl"), _set("messages.bytes", 2**61), _set("saved.start", -1),
        _set("saved.rows", "80"), _set("saved.rows", 80.0), _set("saved.rows", None), _set("saved.rows", True),
        _set("created", float("nan")), _set("created", float("inf")), _set("more", 1), _set("saved", []),
        lambda table: table.pop("saved"), lambda table: table["saved"].pop("ids"),
    ],
    ids=str,
)  # fmt: skip
def test_records_that_lie(change: Any, folder: Path, engine: Any) -> None:
    """Numbers, names and fields that nobody wrote, under a right checksum: refused before anything is allocated."""
    rewrite_record(folder, change)
    refused(folder, engine)


@pytest.mark.parametrize("depth", [10**5])
def test_a_nest_of_brackets(depth: int, folder: Path, engine: Any) -> None:
    (folder / "session.json").write_text("[" * depth)
    refused(folder, engine)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(named(folder, "kv/")))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("1.2.values"), lambda tensors: tensors.pop("0.0.keys"),
        lambda tensors: tensors.update({"0.2.keys": tensors["0.2.keys"].float()}),
        lambda tensors: tensors.update({"0.2.keys": tensors["0.2.keys"].half()}),
        lambda tensors: tensors.update({"0.2.keys": tensors["0.2.keys"][:, :-1].clone()}),
        lambda tensors: tensors.update({"0.2.keys": tensors["0.2.keys"][:1].clone()}),
        lambda tensors: tensors.update({"0.2.scales": torch.ones(2, tensors["0.2.keys"].shape[1], 2)}),
        lambda tensors: tensors.update({"0.3.keys": tensors.pop("0.2.keys"), "0.3.values": tensors.pop("0.2.values")}),
        lambda tensors: tensors.update({"2.0.keys": tensors["0.0.keys"]}),
        lambda tensors: tensors.update({"x": tensors["0.0.keys"]}),
        lambda tensors: tensors.update({"0.-1.keys": tensors["0.0.keys"]}),
        lambda tensors: tensors.update({"0.99999999999999999999.keys": tensors["0.0.keys"]}),
        lambda tensors: tensors.clear(),
    ],
)  # fmt: skip
def test_shards_that_lie(change: Any, folder: Path, engine: Any) -> None:
    """Another table of tensors under right checksums."""
    tensors = _tensors(folder)
    change(tensors)
    forge(folder, save({name: one.clone() for name, one in tensors.items()}))
    refused(folder, engine)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 7, b"\xff" * 8, struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 2**64 - 1), b"\x02" + b"\0" * 7 + b"{}",
        struct.pack("<Q", 64) + b"[" * 64, pickle.dumps({"rows": 1}), b"PK\x03\x04" + b"\0" * 100,
        struct.pack("<Q", 72) + b'{"0.0.keys":{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,4]}}'[:72] + b"\0" * 4,
    ],
)  # fmt: skip
def test_headers_that_lie(content: bytes, folder: Path, engine: Any) -> None:
    forge(folder, content)
    refused(folder, engine)


def test_a_damaged_session_goes_on_when_it_is_read_again(folder: Path, engine: Any) -> None:
    named(folder, "kv/").write_bytes(b"no")
    session, conversation = Session("notes", reread=True), Conversation(engine)
    session.resume(engine, conversation, reread=True)
    ask(conversation, "why")
    session.save(conversation, ABOUT, rows=True, limit=PLENTY)
    session.close()
    again, notices = resumed("notes", engine)
    assert notices == [] and again.messages == conversation.messages and again.sequence.cached > 60
    assert read_record(folder).saved is not None
