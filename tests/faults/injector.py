"""Breaks a training process at a named place: at the n-th call of a function, before it or after it."""

from __future__ import annotations

import errno
import functools
import importlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PLACES = {
    "decode": "tltrain.data.loader:_Reader._image",
    "prefix pass": "tltrain.train.taps:Taps.__call__",
    "lane step": "tltrain.train.lane:Lane.accumulate",
    "optimiser step": "tltrain.train.lane:Lane.update",
    "validation": "tltrain.train.cohort:Validation.run",
    "collective": "tltrain.train.distributed:Group.sum",
    "checkpoint": "tltrain.train.checkpoint:Checkpoints.save",
    "file write": "tltrain.storage:Folder.write_bytes",
    "file delete": "tltrain.storage:Folder.delete",
    "report": "tltrain.run_folder:RunFolder.record_metrics",
    "evaluation": "tltrain.train.finish:evaluate_split",
    "model save": "tltrain.train.finish:save_model",
}
"""Place -> `module:function` as it is looked up when it is called."""

PROGRESS_THREAD = "progress"
BEFORE, AFTER = "before", "after"
KILL, FULL, TERMINATE, INTERRUPT, STOP = "SIGKILL", "disk full", "SIGTERM", "SIGINT", "SIGSTOP"
ACTIONS = (KILL, FULL, TERMINATE, INTERRUPT, STOP)
SIGNALS = {
    KILL: signal.SIGKILL,
    TERMINATE: signal.SIGTERM,
    INTERRUPT: signal.SIGINT,
    STOP: signal.SIGSTOP,
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong, where and when. The rank is that of the process it happens in."""

    place: str
    call: int
    """Counted from 1."""
    moment: str
    rank: int
    action: str

    def __str__(self) -> str:
        return f"{self.action} {self.moment} {self.place} no. {self.call} of rank {self.rank}"


def count_calls() -> Counter[str]:
    """Return a counter of the calls of every place in this process from now on."""
    counts: Counter[str] = Counter()
    for place in PLACES:
        intercept(place, lambda call, place=place: _counted(counts, place, call))
    return counts


def arm(fault: Fault, act: Callable[[Fault], None] | None = None) -> None:
    """Make `fault` happen in this process, in none that it forks; `act` does it, by default as the fault says."""
    calls, act, armed = 0, act or _act, os.getpid()

    def breaking(call: Callable[[], Any]) -> Any:
        nonlocal calls
        calls += 1
        is_due = calls == fault.call and os.getpid() == armed
        if is_due and fault.moment == BEFORE:
            act(fault)
        result = call()
        if is_due and fault.moment == AFTER:
            act(fault)
        return result

    intercept(fault.place, breaking)


def _counted(counts: Counter[str], place: str, call: Callable[[], Any]) -> Any:
    counts[place] += 1
    return call()


def _act(fault: Fault) -> None:
    if fault.action == FULL:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.kill(os.getpid(), SIGNALS[fault.action])


def intercept(place: str, around: Callable[[Callable[[], Any]], Any]) -> None:
    """Let `around` decide on every call of the function at `place`; it is given the call to make.

    The thread that writes progress is left alone: how often it writes depends on the time that training takes.
    """
    module, _, path = PLACES[place].partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    original = getattr(owner, name)

    @functools.wraps(original)
    def intercepted(*args: Any, **options: Any) -> Any:
        if threading.current_thread().name == PROGRESS_THREAD:
            return original(*args, **options)
        return around(lambda: original(*args, **options))

    setattr(owner, name, intercepted)
