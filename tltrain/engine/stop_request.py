"""Asking the workers of a run to end: the driver leaves a word in Ray's key-value store, where the first rank looks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

LOOK_EVERY_S = 0.5
GRACE_S = 25.0
"""Seconds that workers have to end by themselves."""
STOPPED_BY = "stopped_by"
"""Key of a worker's result where it ended because it was asked to: the signal."""


def ask_to_stop(key: str, number: int) -> None:
    """Ask the workers that listen for `key` to end as the signal `number` asks for."""
    _internal_kv_put(key, str(number).encode(), overwrite=True)


def forget(key: str) -> None:
    """Take back what was asked for under `key`."""
    _internal_kv_del(key)


@contextlib.contextmanager
def listening(key: str, *, is_first: bool) -> Iterator[Callable[[], int]]:
    """Yield, for a `with` block, what returns the signal that this worker is asked to end by, 0 where there is none.

    Only the first rank looks; the others learn it from that one.
    """
    if not is_first:
        yield lambda: 0
        return
    ended, asked = threading.Event(), [0]

    def keep_looking() -> None:
        while not ended.wait(LOOK_EVERY_S):
            word = _internal_kv_get(key)
            if word:
                asked[0] = int(word)
                return

    thread = threading.Thread(target=keep_looking, name="stop-request", daemon=True)
    thread.start()
    try:
        yield lambda: asked[0]
    finally:
        ended.set()
        thread.join()
