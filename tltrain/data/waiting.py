"""Waiting for images: loader processes that are stopped are ended, and whoever reads none for long is given up."""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any, TypeVar

from tltrain.errors import LostError

LOOK_S, LOOKS = 5.0, 8
"""How often loader processes are looked at, and how often in a row they are seen stopped until they are ended."""
TELL_LOOKS = 12
"""Looks without a batch after which it is said what is waited for; one before the last, where those are fewer."""
ended_here: dict[int, tuple[str, str]] = {}
"""Loader processes that this process has ended: why, and what to do."""
_AGAIN = "The same command goes on where it was"
_STATES = {"R": "it computes", "D": "it waits for a disk or a network drive", "T": "it is stopped"}

T = TypeVar("T")

_log = logging.getLogger(__name__)


def _nobody(*_: object) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class Patience:
    """How long a batch is waited for, and who is told."""

    timeout_s: float = 240.0
    """Seconds without a batch after which loader processes are ended, and count as lost."""
    key: str = ""
    """The setting that decides this, where one does."""
    tell: Callable[[str, float], None] = _nobody
    """Called once a wait is long: what for, and until when (Unix time) at most; and with "" when it is over."""
    give_up: Callable[[LostError], None] = _nobody
    """Called from another thread, again and again, to end what this process waits for where ending others is no help:
    where it reads images itself, or where the system does not end a loader process."""

    @property
    def action(self) -> str:
        """What to do where it has run out."""
        return f"Look at where the images are{f', or raise {self.key}' if self.key else ''}. {_AGAIN}"

    def begin(self, what: str, waited_s: float) -> None:
        """Say that `what` has been waited for so long, and until when it still is."""
        left_s = self.timeout_s - waited_s
        what = f"images, of which none have come for {waited_s:.0f} s: {what}"
        _log.warning("waiting up to %.0f s more for %s", left_s, what)
        self.tell(what, time.time() + left_s)


def read_in_time(asked: AsyncResult[T], what: str, patience: Patience | None) -> T:
    """Return what was asked of a pool of threads, named by `what`. Raises LostError where it does not come in time."""
    if patience is None:
        return asked.get()
    told_after_s = min(TELL_LOOKS * LOOK_S, patience.timeout_s)
    with contextlib.suppress(multiprocessing.TimeoutError):
        return asked.get(told_after_s)
    patience.begin(what, told_after_s)
    try:
        return asked.get(patience.timeout_s - told_after_s)
    except multiprocessing.TimeoutError:
        raise LostError(f"{what}: not read within {patience.timeout_s:.0f} s", patience.action) from None
    finally:
        patience.tell("", 0.0)


def watched(batches: Iterator[Any], pids: Collection[int], patience: Patience) -> Iterator[Any]:
    """Yield `batches` from the loader processes `pids`; end those that are stopped for 40 s, and all that send nothing.

    Their death is what the iterator then stumbles over; `ended_here` says the reason. Without `pids`, this thread reads
    the images, and is given up. Looks are counted, not seconds: where this process is stopped as well, as by Ctrl-Z,
    nobody looks.
    """
    watch = _Watch(pids, patience)
    with watch:
        while True:
            watch.number_waited_for += 1
            try:
                batch = next(batches)
            except StopIteration:
                return
            watch.number_come += 1
            yield batch


class _Watch:
    """Looks at loader processes from a thread, for a `with` block: what waits for them may hang at any place."""

    def __init__(self, pids: Collection[int], patience: Patience) -> None:
        self._pids, self._patience = pids, patience
        self._thread = f"self/task/{threading.get_native_id()}"
        self.number_waited_for = self.number_come = 0
        self._seen_waiting_for = 0
        self._looks, self._has_told = 0, False
        self._stopped = Counter[int]()
        self._is_over = threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._keep_looking, name="loaders", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()

    def _keep_looking(self) -> None:
        while not self._is_over.wait(LOOK_S):
            self._look_for_stopped()
            self._look_for_batch()
        self._end_wait()

    def _look_for_stopped(self) -> None:
        for pid in self._pids:
            self._stopped[pid] = self._stopped[pid] + 1 if _state(pid) == "T" else 0
            if self._stopped[pid] == LOOKS:
                _end(pid, "stood still, stopped by a signal, and was ended", f"Look at what stopped it. {_AGAIN}")

    def _look_for_batch(self) -> None:
        waited_for = self.number_waited_for
        if self.number_come == waited_for or self._seen_waiting_for != waited_for:
            self._end_wait()
            self._seen_waiting_for = waited_for
            return
        self._looks += 1
        waited_s, looks = self._looks * LOOK_S, math.ceil(self._patience.timeout_s / LOOK_S)
        looks_over = self._looks - looks
        if looks_over == 0 and self._pids:
            self._end_all(waited_s)
        elif looks_over >= 0 and looks_over % LOOKS == 0:
            what = f"{self._states()}: no batch had come for {waited_s:.0f} s"
            self._patience.give_up(LostError(what, self._patience.action))
        elif self._looks == min(TELL_LOOKS, looks - 1):
            self._patience.begin(self._states(), waited_s)
            self._has_told = True

    def _end_wait(self) -> None:
        if self._has_told:
            self._patience.tell("", 0.0)
        self._has_told = False
        self._looks = 0

    def _end_all(self, waited_s: float) -> None:
        states = self._states()
        for pid in self._pids:
            _end(pid, f"was ended, since no batch had come for {waited_s:.0f} s: {states}", self._patience.action)

    def _states(self) -> str:
        if not self._pids:
            return f"process {os.getpid()} ({_told(self._thread)}), which reads images itself"
        return ", ".join(f"process {pid} ({_told(pid)})" for pid in self._pids)


def _told(process: int | str) -> str:
    return _STATES.get(_state(process), "it waits")


def _end(pid: int, how: str, action: str) -> None:
    ended_here[pid] = how, action
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _state(process: int | str) -> str:
    """Return the letter of the state of a process or thread under /proc, as in proc(5); empty where there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it has ended, or this is no Linux
        return ""
