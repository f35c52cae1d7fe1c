"""The store: rows come back as they went in, in every dtype, however it grew and shrank."""

from __future__ import annotations

import errno
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hgca_cli import native
from hgca_cli.errors import DoesNotFitError
from hgca_cli.hardware.memory import SCALES
from hgca_cli.hardware.weights import ITEMSIZE
from hgca_cli.hf.cache_layer import STORE_DTYPES
from hgca_cli.kv.growing import COMMIT_BYTES
from hgca_cli.kv.layout import KVLayout, LayerLayout
from hgca_cli.kv.reservation import Reservation
from hgca_cli.kv.store import Store

LAYOUT = LayerLayout(heads=4, kv_heads=2, key_dim=24, value_dim=16)
CPU = torch.device("cpu")
KINDS = [*STORE_DTYPES.values()]


@pytest.fixture(params=["memory", "file"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return str(tmp_path) if request.param == "file" else None


def rows(rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    size = torch.logspace(-2, 2, count)[:, None] if count else 1.0  # rows differ in size: one scale would not do
    return torch.randn(2, count, 24, generator=rng) * size, torch.randn(2, count, 16, generator=rng) * size


def held(store: Store) -> tuple[Tensor, Tensor]:
    """All rows as float32, through blocks of 7."""
    pieces = list(store.blocks(7, CPU, torch.float32))
    assert all(key.shape[1] == value.shape[1] == 7 for key, value in pieces[:-1])
    keys, values = ([piece[part] for piece in pieces] or [torch.empty(2, 0, (24, 16)[part])] for part in (0, 1))
    return torch.cat(keys, 1), torch.cat(values, 1)


def agrees(got: Tensor, wanted: Tensor, kind: torch.dtype) -> bool:
    if kind != torch.int8:
        return torch.equal(got, wanted.to(kind).float())
    step = wanted.abs().amax(-1, keepdim=True) / 127
    return bool(((got - wanted).abs() <= step * 0.501).all())


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_append_truncate_and_blocks(
    kind: torch.dtype, source: torch.dtype, folder: str | None, rng: torch.Generator
) -> None:
    store = Store(LAYOUT, 100, kind, folder)
    key, value = torch.empty(2, 0, 24), torch.empty(2, 0, 16)
    for count, back in ((1, 0), (0, 0), (30, 5), (7, 33), (64, 1)):
        more = [
            part.to(source).transpose(0, 1).contiguous().transpose(0, 1) for part in rows(rng, count)
        ]  # token-major
        store.append(more[0], more[1])
        key, value = torch.cat([key, more[0].float()], 1), torch.cat([value, more[1].float()], 1)
        store.truncate(store.rows - back)
        key, value = key[:, : store.rows], value[:, : store.rows]
        got = held(store)
        assert agrees(got[0], key, kind) and agrees(got[1], value, kind)
    assert store.rows == 63
    layout = next(name for name, dtype in STORE_DTYPES.items() if dtype == kind)
    counted = KVLayout((LAYOUT,), store_itemsize=ITEMSIZE[layout], store_scales=SCALES.get(layout, 0))
    assert store.bytes == 63 * counted.row_bytes == 63 * 2 * (40 * kind.itemsize + (8 if kind == torch.int8 else 0))


@pytest.mark.parametrize("kind", KINDS)
def test_growth_moves_nothing_and_large_appends_are_whole(
    kind: torch.dtype, folder: str | None, rng: torch.Generator
) -> None:
    many = 3 * COMMIT_BYTES // (40 * kind.itemsize)
    store = Store(LAYOUT, many, kind, folder)
    first, whole = rows(rng, 3), rows(rng, many - 3)
    store.append(*first)
    at = store.keys.data_ptr()
    store.append(*whole)
    assert store.rows == many and store.keys.data_ptr() == at
    for part, (a, b) in enumerate(zip(first, whole, strict=True)):
        got = torch.cat([block[part] for block in store.blocks(1 << 20, CPU, torch.float32)], 1)
        assert agrees(got, torch.cat([a, b], 1), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_store_takes_nothing(kind: torch.dtype, rng: torch.Generator) -> None:
    store = Store(LAYOUT, 10, kind)
    store.append(*rows(rng, 9))
    before = held(store)
    with pytest.raises(DoesNotFitError, match="10 rows is full"):
        store.append(*rows(rng, 2))
    assert store.rows == 9 and all(torch.equal(a, b) for a, b in zip(before, held(store), strict=True))


def test_blocks_are_views_where_nothing_is_to_be_done(rng: torch.Generator) -> None:
    store = Store(LAYOUT, 10, torch.bfloat16)
    store.append(*rows(rng, 10))
    key, value = next(store.blocks(10, CPU, torch.bfloat16))
    assert key.data_ptr() == store.keys.data_ptr() and value.data_ptr() == store.values.data_ptr()


def blocks_on_disk(descriptor: int) -> int:
    return os.fstat(descriptor).st_blocks * 512


def open_files(folder: Path) -> list[int]:
    """Descriptors of files without a name that are in a folder."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            if str(link.readlink()).startswith(str(folder)):
                found.append(int(link.name))
        except OSError:  # the listing's own
            continue
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at open files in /proc")


@needs_proc
def test_a_file_has_no_name_takes_room_as_rows_come_and_goes_with_the_last_view(
    tmp_path: Path, rng: torch.Generator
) -> None:
    store = Store(LAYOUT, 10_000_000, torch.int8, str(tmp_path))
    files = open_files(tmp_path)
    assert len(files) == 2 and list(tmp_path.iterdir()) == [], "rows and scales, without a name"
    assert sum(os.fstat(one).st_size for one in files) > 900_000_000, "as long as the context"
    assert sum(map(blocks_on_disk, files)) == 0
    store.append(*rows(rng, 100))
    store.advise(True)
    store.advise(False)
    assert 100 * store.row_bytes <= sum(map(blocks_on_disk, files)) <= 8 * COMMIT_BYTES
    kept = store.keys[:, :100]
    before = kept.clone()
    del store
    gc.collect()
    assert torch.equal(kept, before), "a view keeps the memory"
    del kept
    gc.collect()
    assert open_files(tmp_path) == []


FULL_DISK = """
import sys, torch
from hgca_cli.errors import DoesNotFitError
from hgca_cli.kv.layout import LayerLayout
from hgca_cli.kv.reservation import Reservation
from hgca_cli.kv.store import Store
store = Store(LayerLayout(4, 2, 24, 16), 1_000_000, getattr(torch, sys.argv[2]), sys.argv[1])
def more(rows): store.append(torch.full((2, rows, 24), 3.0), torch.full((2, rows, 16), 3.0))
more(50)
try:
    more(300_000)
except DoesNotFitError as error:
    assert store.rows == 50
    for _ in range(100):  # what was promised may be touched
        more(100)
    key, value = next(store.blocks(store.rows, torch.device("cpu"), torch.float32))
    assert store.rows == 10_050 and (key == 3.0).all() and (value == 3.0).all()
    print(error.exit_code, error)
"""


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_a_full_disk_is_an_error_with_figures_and_nothing_is_lost(kind: str, tmp_path: Path) -> None:
    """A real one, of 6 MiB, where a process may mount one of its own."""
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=6m none "$0" && exec "$@"', str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mounts of our own here")
    program = [sys.executable, "-c", FULL_DISK, str(tmp_path), kind]
    done = subprocess.run([*mount, *program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        rf"4 --store-dir {tmp_path}: \d.*iB more of older rows in one layer, and the disk has [\d.]+ .iB free\. Free .*\n",
        done.stdout,
    )


def test_room_that_is_refused_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    """The same without a disk to fill."""
    store = Store(LAYOUT, 1_000_000, torch.bfloat16, str(tmp_path))

    def refuse(*_: object) -> None:
        native.check(native.lib.HGCA_NO_SPACE)

    monkeypatch.setattr(Reservation, "commit", refuse)
    with pytest.raises(DoesNotFitError, match=r"2\.0 MiB more of older rows in one layer, and the disk has .*iB free"):
        store.append(*rows(rng, 50))
    assert store.rows == 0


def test_a_file_that_cannot_be_made_is_an_error_with_figures(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFitError, match=r"no file for .*iB of older rows") as caught:
        Store(LAYOUT, 10, torch.bfloat16, str(tmp_path / "not there"))
    assert caught.value.exit_code == 4


def test_stores_in_files_may_be_more_than_files_are_open_usually(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(one.name) for one in Path("/dev/fd").iterdir()}
    free = [number for number in range(4096) if number not in taken]
    if hard != resource.RLIM_INFINITY and hard < free[60]:
        pytest.skip("the system has no more")
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[10], hard))
    try:
        stores = [Store(LAYOUT, 100, torch.int8, str(tmp_path)) for _ in range(20)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(stores) == 20


def test_too_many_open_files_are_an_error_that_names_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(DoesNotFitError, match=r"Too many open files.*Lower --concurrency, or .*ulimit -n"):
        Store(LAYOUT, 10, torch.bfloat16, str(tmp_path))


def test_a_descriptor_that_is_no_file_is_refused() -> None:
    with Path("/dev/null").open("r+b", buffering=0) as nothing, pytest.raises((OSError, native.NativeError)):
        Reservation(1 << 20, nothing).commit(0, 1 << 20)
