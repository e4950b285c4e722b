"""Keep freed memory in the process, so that every training step does not fetch the same pages from the system again."""

from __future__ import annotations

import ctypes
import sys
import threading

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names and numbers of mallopt(3)
LARGEST_KEPT_BYTES = 32 * 2**20
"""The most that glibc takes for M_MMAP_THRESHOLD on 64 bits; larger blocks go back to the system when freed."""


def keep_freed_memory() -> bool:
    """Tell the C library not to give freed blocks back to the system; return whether it has such a setting (glibc).

    Activations are freed and allocated anew in every step. By default glibc maps and unmaps them each time, and a
    step on a CPU spends some per cents in page faults. Has no use in other threads than the main one: their memory is
    kept only where MALLOC_ARENA_MAX=1 was in the environment from the start, and then the thresholds can be too.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
