"""Limits on what a piece of work may take, set on this very process for as long as it goes on."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MEGABYTE = 2**20


@contextlib.contextmanager
def limited(*, seconds: float, megabytes: int) -> Iterator[None]:
    """Fail where a `with` block takes longer, or more memory on top of what the process holds already.

    Memory is limited as address space, so that the allocation that goes too far raises MemoryError.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    has_limit = sys.platform == "linux"
    if has_limit:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + megabytes * MEGABYTE, before[1]))
    began = time.perf_counter()
    try:
        yield
    finally:
        if has_limit:
            resource.setrlimit(resource.RLIMIT_AS, before)
    taken = time.perf_counter() - began
    assert taken < seconds, f"{taken:.1f} s, more than {seconds:g} s"
