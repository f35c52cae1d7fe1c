"""What this process uses of the machine, now."""

from __future__ import annotations

import time

import psutil

from hgca_cli.metrics import Used

MANY_SHARED = 1 << 30  # bytes: libraries are fewer
COUNT_SECONDS = 5.0  # a count takes 40 ms of one processor for 3 GB
LEAST = 0.2  # seconds processors are counted over: the system counts in hundredths


class Usage:
    """Asked now and then: processors are counted from one reading to the next.

    device  "cpu" or a CUDA device
    """

    def __init__(self, device: str) -> None:
        self._process = psutil.Process()
        self._device = device
        self._before = time.perf_counter(), self._seconds()
        self._processors: float | None = None
        self._busy_known = True
        self._counted = -COUNT_SECONDS, 0

    def read(self) -> Used:
        """One reading; of the GPU what its driver tells. How busy it is needs the package nvidia-ml-py."""
        now, seconds = time.perf_counter(), self._seconds()
        then, before = self._before
        if now - then >= LEAST:
            self._processors = (seconds - before) / (now - then)
            self._before = now, seconds
        memory = self._memory(now)
        if self._device == "cpu":
            return Used(self._processors, memory)
        return Used(self._processors, memory, *self._gpu_memory(), self._gpu_busy())

    def _memory(self, now: float) -> int:
        """Bytes of the host's. Pages that several rows begin with are in the process several times: where there may be many, each is
        counted once, which takes the system a while.
        """
        told = self._process.memory_info()
        if getattr(told, "shared", 0) < MANY_SHARED:
            return int(told.rss)
        if now - self._counted[0] >= COUNT_SECONDS:
            self._counted = now, int(self._process.memory_full_info().pss)
        return self._counted[1]

    def _seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def _gpu_memory(self) -> tuple[int | None, int | None]:
        import torch

        try:
            free, total = torch.cuda.mem_get_info(self._device)
        except RuntimeError:  # a driver that does not say
            return None, None
        return int(total - free), int(total)

    def _gpu_busy(self) -> float | None:
        import torch

        if self._busy_known:
            try:
                return float(torch.cuda.utilization(self._device)) / 100
            except (ImportError, RuntimeError, OSError, AttributeError):  # no package, no driver library, not supported
                self._busy_known = False
        return None
