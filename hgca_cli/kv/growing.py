"""An array that grows without moving: address space for all of it is reserved, memory is committed as rows come.

Memory, or a file without a name that is gone with the process, however that ends: the array is the file's pages then.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import shutil
import tempfile
from typing import IO

import torch

from hgca_cli import native
from hgca_cli.errors import DoesNotFitError
from hgca_cli.kv.layout import whole_pages
from hgca_cli.kv.pinning import Pinning, Registered
from hgca_cli.kv.reservation import HUGE_PAGE, Reservation, round_up
from hgca_cli.kv.shared import Part, SharedFiles
from hgca_cli.units import format_bytes

try:
    import resource
except ImportError:  # it is Unix's
    resource = None  # type: ignore[assignment]

COMMIT_BYTES = 1 << 20  # per KV head and growth step; only touched pages take memory
# A huge page is given whole when it is first touched, so a head's first rows have small ones, and so has what
# does not fill one at the end. Small pages that are nearly full become a huge one, as single rows here and there take half as long
# again to find in small ones: a full store takes the bytes of its rows, and at most an eighth of a huge page a head more.
PAGE = mmap.PAGESIZE
NEARLY = HUGE_PAGE - HUGE_PAGE // 8
FEW = 256  # rows that come at once while a text is written, and not read


class GrowingArray:
    """Numbers [heads, capacity, width], `whole`, of which the rows that were committed may be touched.

    what    named where memory is refused
    folder  where the file is; None: no file. Raises DoesNotFitError where none can be made
    pinning what full rows may be registered with; None: nothing, and files never are
    """

    def __init__(
        self,
        heads: int,
        capacity: int,
        width: int,
        dtype: torch.dtype,
        what: str = "older rows",
        folder: str | None = None,
        pinning: Pinning | None = None,
    ) -> None:
        self.bytes_per_row = heads * width * dtype.itemsize
        self._heads = heads
        self._what = what
        self._row_bytes = width * dtype.itemsize
        self._most = round_up(max(1, capacity) * self._row_bytes, PAGE)  # bytes per head
        self._committed = 0
        self._part: Part | None = None  # of a file: what others may begin with. It holds what is here
        self._mapped = False  # there are pages that others have, too
        self._joined = 0  # bytes per head in huge pages, if the system has them
        self._coming = 0  # bytes per head that a prompt is going to fill
        self._touching = self._touched = 0  # where huge pages begin that so many heads have before they need them
        # what does not nearly fill a huge page is committed whole, heads one behind the other: a process may have only so many
        # stretches of memory (65,530 on Linux), and each border of what is committed makes one
        self._small = self._most < NEARLY and folder is None
        unit = PAGE if self._small else COMMIT_BYTES if self._most < HUGE_PAGE else HUGE_PAGE
        self._head_bytes = round_up(self._most, unit)
        self._folder = folder
        self._registered = None if pinning is None or folder is not None else Registered(pinning)
        before = self._registered.close if self._registered is not None else lambda: None
        size = heads * self._head_bytes
        self._memory = Reservation(size, before=before) if folder is None else self._from_file(folder)
        strides = (self._head_bytes // dtype.itemsize, width, 1)
        with torch.inference_mode(False):  # the caller may leave inference mode between a prompt and a rewind
            self.whole = self._memory.tensor(dtype, (heads, capacity, width), strides, 0)

    def pin(self, rows: int) -> None:
        """Register rows 0 .. rows - 1, which are there, as far as they fill steps. It takes a while."""
        # pages that are joined already: a registered one must stay where it is. Nor are pages that others have, too: a
        # driver that locks them would have each written to, and copied
        if self._registered is not None and self._joined and not self._mapped:
            heads = [head.data_ptr() for head in self.whole]
            self._registered.grow(heads, min(rows * self._row_bytes, self._joined))

    def registered(self, first: int, rows: int) -> list[slice]:
        """Of rows first .. rows - 1 those that are registered, from the first on: numbers of a head's [rows * width], by range.

        Of each head the same ones; whole rows, which two ranges may share.
        """
        registered = self._registered
        if registered is None or registered.pinning.refused_copies or not registered.ends:
            return []
        end = min(rows, registered.ends[-1] // self._row_bytes) * self._row_bytes
        begin, size = first * self._row_bytes, self.whole.element_size()
        runs = []
        for border in registered.ends:
            stop = min(border, end)
            if begin < stop:
                runs.append(slice(begin // size, stop // size))
                begin = stop
        return runs

    def commit(self, rows: int, first: int) -> None:
        """Make rows 0 .. rows - 1 usable, of which those from `first` on are about to be written. Raises DoesNotFitError."""
        if self._part is not None and first * self._row_bytes < self._part.size:
            self._part = self._part._replace(size=whole_pages(first * self._row_bytes))
        needed = rows * self._row_bytes
        if needed > self._committed:
            self._grow(needed)
        if max(needed, self._coming) >= self._joined + NEARLY and self._folder is None:
            self._join_pages(needed)
        if 0 < rows - first <= FEW and not self._small and self._folder is None:
            self._touch_next(needed)

    def _touch_next(self, needed: int) -> None:
        """A huge page is cleared when it is first touched, and all heads, of all layers, come to their next one in the same token: 256
        pages of a model of 8B. In the last eighth of the present ones one head after another gets its next one.
        """
        end = round_up(needed, HUGE_PAGE)
        begun, row = needed - (end - HUGE_PAGE // 8), -(-end // self._row_bytes)
        if end != self._touching:
            self._touching, self._touched = end, 0
        if begun <= 0 or end + HUGE_PAGE > self._head_bytes or row >= self.whole.shape[1]:
            return
        if end + HUGE_PAGE > self._committed:
            try:
                self._grow(end + self._row_bytes)
            except DoesNotFitError:  # that is for who needs it
                return
        due = min(-(-self._heads * begun // (HUGE_PAGE // 8)), self._touched + -(-self._heads // 4))
        for head in range(self._touched, due):
            self.whole[head, row] = 0  # nobody's yet
        self._touched = max(self._touched, due)

    def _grow(self, needed: int) -> None:
        # an eighth more than needed, so that a long prefill asks the kernel rarely
        grown = round_up(needed + needed // 8, COMMIT_BYTES if needed < HUGE_PAGE else HUGE_PAGE)
        grown = self._most if self._small else min(grown, self._most)
        for head in range(self._heads):
            try:  # of what is committed for some heads only, nothing is used
                self._memory.commit(head * self._head_bytes + self._committed, grown - self._committed)
            except native.OutOfMemoryError as error:
                raise DoesNotFitError(
                    f"no memory for {format_bytes(grown * self._heads)} of {self._what} in one layer.",
                    "Lower --ctx, or choose --kv-dtype bf16 or int8.",
                ) from error
            except native.NoSpaceError as error:
                raise self._no_space(grown, head) from error
        self._committed = grown

    def expect(self, rows: int) -> None:
        """So many rows, those that are here counted, there will be when a prompt has been read: pages that they nearly fill are huge
        ones from the first row on, and nothing is copied later. 0: nobody knows.
        """
        self._coming = rows * self._row_bytes

    def _join_pages(self, needed: int) -> None:
        """Huge pages under what was written before, and what is now; what is committed now may be the rest of one."""
        full = max(needed, self._coming)
        while needed > self._joined and full >= self._joined + NEARLY and self._joined + HUGE_PAGE <= self._head_bytes:
            for head in range(self._heads):
                with contextlib.suppress(native.OutOfMemoryError):  # it goes without
                    self._memory.join_pages(head * self._head_bytes + self._joined)
            self._joined += HUGE_PAGE

    def share(self, files: SharedFiles, rows: int) -> None:
        """Rows 0 .. rows - 1, which are there and stay as they are, are written to a file, as far as they fill pages, and are that
        file's from now on: others may begin with them. Nobody may copy them to a device meanwhile. Raises DoesNotFitError;
        nothing has changed then.
        """
        heads = [self._memory.content(head * self._head_bytes, rows * self._row_bytes) for head in range(self._heads)]
        part = files.put(heads, self._folder)
        if part is not None:
            if self._registered is not None:
                self._registered.close()
            self._map(part)

    def begin_as(self, other: GrowingArray, rows: int) -> None:
        """Rows 0 .. rows - 1 of this empty array are another's, of as many heads and as wide: what that one shares is shared, the rest
        copied. Raises DoesNotFitError.
        """
        assert not self._committed and (self._heads, self._row_bytes) == (other._heads, other._row_bytes)
        if other._part is not None:
            self._map(other._part._replace(size=whole_pages(min(other._part.size, rows * self._row_bytes))))
        shared = 0 if self._part is None else self._part.size // self._row_bytes
        self.commit(rows, shared)
        self.whole[:, shared:rows] = other.whole[:, shared:rows]

    def _map(self, part: Part) -> None:
        self._mapped = True  # even if memory is refused for some heads
        for head in range(self._heads):
            try:
                self._memory.map(head * self._head_bytes, part.size, part.file, part.at + head * part.apart)
            except native.OutOfMemoryError as error:
                raise DoesNotFitError(
                    f"no memory for {self._what} that several rows begin with.", "Lower --concurrency."
                ) from error
        self._part = part
        self._committed = max(self._committed, part.size)
        self._joined = max(self._joined, part.size // HUGE_PAGE * HUGE_PAGE)

    def advise(self, in_order: bool) -> None:
        """How a file will be read next."""
        self._memory.advise(in_order)

    def _from_file(self, folder: str) -> Reservation:
        _allow_many_files()
        try:
            file: IO[bytes] = tempfile.TemporaryFile(dir=folder, prefix="hgca-store-")  # noqa: SIM115 (open as long as it is used)
            return Reservation(self._heads * self._head_bytes, file)
        except OSError as error:
            raise DoesNotFitError(
                f"--store-dir {folder}: no file for {format_bytes(self._heads * self._head_bytes)} of {self._what} in one "
                f"layer ({error.strerror}).",
                "Lower --concurrency, or raise the limit of open files (ulimit -n)."
                if error.errno in (errno.EMFILE, errno.ENFILE)
                else "Choose another directory, or lower --ctx.",
            ) from error

    def _no_space(self, grown: int, head: int) -> DoesNotFitError:
        more = (grown - self._committed) * (self._heads - head)
        free = shutil.disk_usage(self._folder or ".").free
        return DoesNotFitError(
            f"--store-dir {self._folder}: {format_bytes(more)} more of {self._what} in one layer, and the disk has "
            f"{format_bytes(free)} free.",
            "Free some space, lower --ctx, or choose --kv-dtype bf16 or int8.",
        )


def _allow_many_files() -> None:
    """This process may have as many open files as the system lets it: each layer of each sequence has one, or two of int8 rows, and
    1,024 is the usual limit until one asks for more.
    """
    if resource is not None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):  # it goes on with what it has
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
