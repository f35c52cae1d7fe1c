"""Threads of the process beside the C library's: work of one kind waits for its own, and begins in order."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache


@cache
def worker(kind: str, threads: int = 1) -> ThreadPoolExecutor:
    """The one thread for work of this kind, or as many as its first user says."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"hgca-{kind}")


os.register_at_fork(after_in_child=worker.cache_clear)  # threads stay with the parent: a child would wait for ever
