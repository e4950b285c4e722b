"""Which rank the others wait for: all of them tell, through the group's store, that they live and how far they are."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from tltrain.errors import LostError
from tltrain.train.distributed import Group

BEAT_S = 5.0
"""Seconds between two signs of life."""
SILENT_BEATS = 8
"""Beats of its own after which a rank takes another one for stopped. A machine that slept has missed all alike."""
_STORE_FAILURES = 3
_TIMED_OUT = ("Timed out waiting", "collective operation timeout")
_CUT_OFF = "stopped, or cut off"
_AGAIN = "Start it again: it goes on from the newest checkpoint"
_LATE = "Look at what that process does, or raise resources.collective_timeout_s"

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def present(group: Group, *, on_silence: Callable[[LostError], None] | None = None) -> Iterator[None]:
    """Tell the other ranks, for a `with` block, that this one lives and how many collectives it has come to.

    on_silence: called once, from another thread, where a rank has given no sign for SILENT_BEATS beats; what waits in
    a collective is not freed by that. Raises LostError, which names the ranks that did not arrive, in the place of the
    error of a collective that ran out of time.
    """
    if group.world_size == 1:
        yield
        return
    presence = _Presence(group, on_silence)
    presence.start()
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _TIMED_OUT):
            raise
        what = f"a collective of {group.world_size} ranks ran out of time: {presence.late()}"
        raise LostError(what, f"{_LATE}. {_AGAIN}") from error
    finally:
        presence.end()


@dataclass(frozen=True)
class _Sign:
    """What a rank tells."""

    beat: int
    arrivals: int
    place: str


@dataclass
class _Other:
    """What is known of another rank."""

    sign: _Sign | None = None
    silent_beats: int = 0
    heard_at: float = dataclasses.field(default_factory=time.monotonic)


class _Presence:
    def __init__(self, group: Group, on_silence: Callable[[LostError], None] | None) -> None:
        self._group, self._on_silence = group, on_silence
        self._store = dist.distributed_c10d._get_default_store().clone()
        self._store.set_timeout(timedelta(seconds=2 * BEAT_S))
        self._mine = _Sign(0, 0, f"process {os.getpid()} on {socket.gethostname()}")
        self._others = {rank: _Other() for rank in range(group.world_size) if rank != group.rank}
        self._has_reported = False
        self._ended = threading.Event()
        self._rounds = 0
        """How often the store has answered all that it was asked."""
        tasks = {"presence": self._keep_telling, "presence-store": self._keep_watching}
        self._threads = [threading.Thread(target=task, name=name, daemon=True) for name, task in tasks.items()]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(3 * BEAT_S)

    def late(self) -> str:
        """Name the ranks that have come to fewer collectives than this one."""
        here = self._group.arrivals.count
        late = [rank for rank, other in self._others.items() if other.sign is None or other.sign.arrivals < here]
        names = ", ".join(self._name(rank) for rank in late)
        return f"{names} did not arrive" if late else f"rank {self._group.rank} waited, and all others had arrived"

    def _name(self, rank: int) -> str:
        other = self._others[rank]
        if other.sign is None:
            return f"rank {rank} (never heard of)"
        return f"rank {rank} ({other.sign.place}, last heard of {time.monotonic() - other.heard_at:.0f} s ago)"

    def _keep_telling(self) -> None:
        failures = 0
        while True:
            try:
                self._tell()
                silent = self._look()
                failures = 0
                self._rounds += 1
            except RuntimeError as error:  # the store does not answer
                failures += 1
                _log.debug("no sign could be given: %s", error)
                silent = f"the ranks' store has not answered {failures} times" if failures >= _STORE_FAILURES else ""
            if silent and not self._ended.is_set():
                self._report(LostError(f"{silent}: {_CUT_OFF}", _AGAIN))
            if self._ended.wait(BEAT_S):
                return

    def _keep_watching(self) -> None:
        """Notice a store that is cut off: whoever asks it then waits for an answer without a limit."""
        rounds, silent_beats = 0, 0
        while not self._ended.wait(BEAT_S):
            silent_beats = silent_beats + 1 if self._rounds == rounds else 0
            rounds = self._rounds
            if silent_beats >= SILENT_BEATS:
                silent_s = silent_beats * BEAT_S
                self._report(LostError(f"the ranks' store has not answered for {silent_s:.0f} s: {_CUT_OFF}", _AGAIN))
                return

    def _report(self, error: LostError) -> None:
        if not self._has_reported:
            self._has_reported = True
            _log.error("%s", error.problems[0].what)
            if self._on_silence is not None:
                self._on_silence(error)

    def _tell(self) -> None:
        self._mine = dataclasses.replace(self._mine, beat=self._mine.beat + 1, arrivals=self._group.arrivals.count)
        self._store.set(_key(self._group.rank), json.dumps(dataclasses.asdict(self._mine)))

    def _look(self) -> str:
        """Read what the others tell; name those that have been silent for too long."""
        for rank, other in self._others.items():
            sign = _Sign(**json.loads(self._store.get(_key(rank)))) if self._store.check([_key(rank)]) else None
            if sign == other.sign:
                other.silent_beats += 1
            else:
                other.sign, other.silent_beats, other.heard_at = sign, 0, time.monotonic()
        silent = [rank for rank, other in self._others.items() if other.silent_beats >= SILENT_BEATS]
        return f"no sign of life from {', '.join(map(self._name, silent))}" if silent else ""


def _key(rank: int) -> str:
    return f"tltrain/presence/{rank}"
