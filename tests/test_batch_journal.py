"""The output of a job survives what may happen to it: torn lines, full disks, two writers, other jobs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hgca_cli.batch.check import Checked, Entry
from hgca_cli.batch.journal import Manifest, difference
from hgca_cli.batch.output import Output
from hgca_cli.batch.results import encoded
from hgca_cli.errors import ModelError, UsageError


def record(name: str, error: Any = None, digest: str = "d") -> dict[str, Any]:
    return {"id": name, "text": "naïve 東京", "error": error, "hgca": {"input": digest}}


def opened(path: Path, **more: Any) -> Output:
    return Output(path, None, **more)


def filled(path: Path, *names: str) -> bytes:
    output = opened(path)
    output.begin({"model": "m"})
    for name in names:
        output.write(name, record(name))
    output.close()
    return path.read_bytes()


def test_what_is_written_is_there_again(tmp_path: Path) -> None:
    content = filled(tmp_path / "out", "a", "b")
    assert [json.loads(line)["id"] for line in content.splitlines()] == ["a", "b"]
    output = opened(tmp_path / "out")
    assert output.done == {"a": False, "b": False} and output.mended == 0


def test_a_last_line_torn_at_any_byte_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "out"
    content = filled(path, "a", "b")
    first = content.index(b"\n") + 1
    for length in range(len(content)):
        path.write_bytes(content[:length])
        output = opened(path)
        assert list(output.done) == (["a"] if length >= first else [])
        output.write("b", record("b"))
        output.close()
        assert path.read_bytes() == content[: first if length >= first else 0] + encoded(record("b"))


@pytest.mark.parametrize("tail", [b"\0" * 5, b"\0" * 3_000_000, b'{"id":"c","te\0\0\0\0', b"\0\0\n"[:2]])
def test_zeros_a_file_system_left_are_cut_off(tmp_path: Path, tail: bytes) -> None:
    content = filled(tmp_path / "out", "a", "b")
    (tmp_path / "out").write_bytes(content + tail)
    output = opened(tmp_path / "out")
    assert list(output.done) == ["a", "b"] and output.mended == len(tail)
    output.close()
    assert (tmp_path / "out").read_bytes() == content


@pytest.mark.parametrize("content", [b"my notes", b"my notes\n", b'{"a": 1}\n', b"5\n"])
def test_what_is_not_a_jobs_output_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "out"
    path.write_bytes(content)
    for manifest in (False, True):
        if manifest:
            Manifest(path).write({"model": "m"})
        with pytest.raises(UsageError):
            opened(path)
        assert path.read_bytes() == content
    output = opened(path, overwrite=True)
    assert path.read_bytes() == content  # until it begins
    output.begin({})
    output.close()
    assert path.read_bytes() == b""


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    first = opened(tmp_path / "out")
    with pytest.raises(UsageError, match="another job"):
        opened(tmp_path / "out")
    first.close()
    opened(tmp_path / "out").close()


def test_another_job_or_another_line_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "out", "a")
    output = opened(tmp_path / "out")
    same, other = ([Entry(1, 0, "a", digest, 5)] for digest in ("d", "e"))
    output.of({"model": "m"})
    output.compare(Checked(same))
    with pytest.raises(UsageError, match='model was "m" and is "n"'):
        output.of({"model": "n"})
    with pytest.raises(UsageError, match='quant was not given and is "q8"'):
        output.of({"model": "m", "quant": "q8"})
    with pytest.raises(UsageError, match="line 1"):
        output.compare(Checked(other))


def test_rows_that_failed_are_forgotten_as_a_whole(tmp_path: Path) -> None:
    output = opened(tmp_path / "out")
    output.begin({})
    for name, error in (("a", None), ("b", {"code": "x"}), ("c", None)):
        output.write(name, record(name, error))
    output.close()
    output = opened(tmp_path / "out")
    assert output.done == {"a": False, "b": True, "c": False}
    assert output.forget_errors() == 1
    assert b'"b"' in (tmp_path / "out").read_bytes()  # until it begins
    output.begin({})
    with pytest.raises(UsageError):  # the lock moved with the file
        opened(tmp_path / "out")
    output.write("b", record("b"))
    output.close()
    assert [json.loads(line)["id"] for line in (tmp_path / "out").read_bytes().splitlines()] == ["a", "c", "b"]


@pytest.mark.parametrize("before", [(), ("out",), ("bad",), ("out.manifest.json",), ("out", "out.manifest.json")])
@pytest.mark.parametrize("begun", [False, True])
def test_what_ends_without_a_line_leaves_no_file_it_made(tmp_path: Path, before: tuple[str, ...], begun: bool) -> None:
    for name in before:
        (tmp_path / name).write_text('{"version": 1}' if name.endswith("json") else "")
    output = Output(tmp_path / "out", tmp_path / "bad")
    if begun:
        output.begin({"model": "m"})
    output.close()
    assert {one.name for one in tmp_path.iterdir()} == set(before)
    output = Output(tmp_path / "out", None)
    output.keep()
    output.close()
    assert (tmp_path / "out").read_bytes() == b""  # an input without rows has an output without lines


def test_a_file_that_took_the_outputs_name_is_left(tmp_path: Path) -> None:
    output = opened(tmp_path / "out")
    (tmp_path / "out").unlink()
    (tmp_path / "out").write_text("")
    output.close()
    assert (tmp_path / "out").exists()


def test_errors_go_into_a_file_of_their_own(tmp_path: Path) -> None:
    output = Output(tmp_path / "out", tmp_path / "bad")
    output.begin({})
    output.write("a", record("a"))
    output.write("b", record("b", {"code": "x"}))
    output.close()
    assert len((tmp_path / "out").read_bytes().splitlines()) == len((tmp_path / "bad").read_bytes().splitlines()) == 1
    assert Output(tmp_path / "out", tmp_path / "bad").done == {"a": False, "b": True}


def test_lines_in_order_wait_for_those_before_them(tmp_path: Path) -> None:
    output = opened(tmp_path / "out")
    output.in_order([Entry(at, 0, name, "d", 5) for at, name in enumerate("abc")])
    output.write("c", record("c"))
    assert (tmp_path / "out").read_bytes() == b""
    output.write("a", record("a"))
    output.write("b", record("b"))
    assert [json.loads(line)["id"] for line in (tmp_path / "out").read_bytes().splitlines()] == ["a", "b", "c"]


def test_lines_of_several_runs_are_put_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry(at, 0, name, "d", 5) for at, name in enumerate("abcd")]
    names = [entry.id for entry in entries]

    def ids(name: str) -> list[str]:
        return [json.loads(line)["id"] for line in (tmp_path / name).read_bytes().splitlines()]

    output = Output(tmp_path / "out", tmp_path / "bad")
    output.begin({"model": "m"})
    for name in "zdbca":
        output.write(name, record(name, {"code": "x"} if name in "db" else None))
    output.close()
    assert ids("bad") == ["d", "b"]
    output = Output(tmp_path / "out", tmp_path / "bad")
    output.forget_errors()
    output.begin({"model": "m"})
    output.in_order([entry for entry in entries if entry.id not in output.done])
    for name in "db":
        output.write(name, record(name, {"code": "x"} if name == "d" else None))
    assert ids("out") == ["z", "c", "a", "b"]
    before = (tmp_path / "out").read_bytes()
    with monkeypatch.context() as broken:  # as if killed, and then gone on with
        broken.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "broken")))
        with pytest.raises(ModelError, match="broken"):
            output.arrange(names)
    assert (tmp_path / "out").read_bytes() == before
    output.close()
    output = Output(tmp_path / "out", tmp_path / "bad")
    output.keep()
    output.arrange(names)
    assert ids("out") == ["a", "b", "c", "z"] and ids("bad") == ["d"], "what the input does not name stays"
    with pytest.raises(UsageError):  # the lock moved with the file
        opened(tmp_path / "out")
    output.write("e", record("e"))
    output.close()
    assert ids("out") == ["a", "b", "c", "z", "e"] and {one.name for one in tmp_path.iterdir()} == {
        "out",
        "bad",
        "out.manifest.json",
    }


def test_an_output_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "there" / "far")
    filled(tmp_path / "out", "b", "a")
    output = opened(tmp_path / "out")
    output.keep()
    output.arrange("ab")
    output.write("c", record("c"))
    output.close()
    found = [json.loads(line)["id"] for line in (tmp_path / "there" / "far").read_bytes().splitlines()]
    assert found == ["a", "b", "c"] and (tmp_path / "out").is_symlink()


def test_an_output_that_was_removed_or_cannot_be_one(tmp_path: Path) -> None:
    output = opened(tmp_path / "out")
    output.write("a", record("a"))
    (tmp_path / "out").unlink()
    with pytest.raises(ModelError, match="removed"):
        output.write("b", record("b"))
    with pytest.raises(UsageError):
        opened(tmp_path)
    with pytest.raises(UsageError):
        opened(tmp_path / "none" / "out")
    with pytest.raises(UsageError):
        opened(Path("/dev/null"))


FULL = """
import resource, sys
from pathlib import Path
from hgca_cli.batch.journal import Journal, difference
from hgca_cli.errors import DoesNotFitError
journal = Journal(Path(sys.argv[1]))
journal.append(b"{}" * 40 + b"\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    journal.append(b"{}" * 40 + b"\\n")
except DoesNotFitError:
    sys.exit(4)
"""


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "out")], check=False, cwd=Path(__file__).parent.parent
    )
    assert done.returncode == 4
    assert (tmp_path / "out").read_bytes() == b"{}" * 40 + b"\n"


def test_a_manifest_is_whole_or_as_it_was(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "out")
    assert manifest.read() is None
    manifest.write({"model": "m"})
    assert manifest.read() == {"model": "m", "version": 1}
    manifest.path.write_text("{")
    with pytest.raises(UsageError):
        manifest.read()


def test_weights_rounded_for_a_gpu_are_another_job() -> None:
    """What the planner chose is known only once there is a plan, and is nothing in most jobs."""
    old, plain = {"model": "x", "quant chosen": "q4"}, {"model": "x"}
    assert difference(old, plain) == "" and difference(old, old) == ""
    assert difference(old, plain | {"quant chosen": None}) == 'quant chosen was "q4" and is not given'
    assert difference(plain, plain | {"quant chosen": None}) == ""
    assert difference(plain, old) == 'quant chosen was not given and is "q4"'
