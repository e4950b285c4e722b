"""Waiting for loader processes: those that are stopped are ended, and those that send nothing are given up."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOK_S, LOOKS = 5.0, 8
"""How often loader processes are looked at, and how often in a row they are seen stopped until they are ended."""
TELL_LOOKS = 12
"""Looks without a batch after which it is said what is waited for."""
ended_here: dict[int, tuple[str, str]] = {}
"""Loader processes that this process has ended: why, and what to do."""
_AGAIN = "The same command goes on where it was"
_STATES = {"R": "it computes", "D": "it waits for a disk or a network drive", "T": "it is stopped"}

_log = logging.getLogger(__name__)


def _nobody(_what: str, _until: float) -> None:
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


def watched(batches: Iterator[Any], pids: Collection[int], patience: Patience) -> Iterator[Any]:
    """Yield `batches` from the loader processes `pids`; end those that are stopped for 40 s, and all that send nothing.

    Their death is what the iterator then stumbles over; `ended_here` says the reason. Looks are counted, not seconds:
    where this process is stopped as well, as by Ctrl-Z, nobody looks.
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
        self.number_waited_for = self.number_come = 0
        self._seen_waiting_for = 0
        self._looks = 0
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
        waited_s, limit_s = self._looks * LOOK_S, self._patience.timeout_s
        if self._looks == math.ceil(limit_s / LOOK_S):
            self._give_up(waited_s)
        elif self._looks == TELL_LOOKS:
            what = f"images, of which none have come for {waited_s:.0f} s: {self._states()}"
            _log.warning("waiting up to %.0f s more for %s", limit_s - waited_s, what)
            self._patience.tell(what, time.time() + limit_s - waited_s)

    def _end_wait(self) -> None:
        if self._looks >= TELL_LOOKS:
            self._patience.tell("", 0.0)
        self._looks = 0

    def _give_up(self, waited_s: float) -> None:
        states, key = self._states(), self._patience.key
        for pid in self._pids:
            how = f"was ended, since no batch had come for {waited_s:.0f} s: {states}"
            _end(pid, how, f"Look at where the images are{f', or raise {key}' if key else ''}. {_AGAIN}")

    def _states(self) -> str:
        return ", ".join(f"process {pid} ({_STATES.get(_state(pid), 'it waits')})" for pid in self._pids)


def _end(pid: int, how: str, action: str) -> None:
    ended_here[pid] = how, action
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _state(pid: int) -> str:
    """Return the letter of a process's state, as in proc(5); empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it has ended, or this is no Linux
        return ""
