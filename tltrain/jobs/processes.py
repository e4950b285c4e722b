"""Processes of this machine by id: telling them apart, finding what they started, and ending them. Linux only."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PAUSE_S = 0.1


@dataclass(frozen=True)
class Process:
    """A process, told from a later one with the same id by the moment of its start."""

    pid: int
    started: int
    """Clock ticks from the machine's start to the process's."""

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process with this id; None where there is none, or only what is left of one that has ended."""
        entry = _entry(pid)
        return None if entry is None else entry.process

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return Process.of(self.pid) == self


@dataclass(frozen=True)
class _Entry:
    """A line of the table of processes."""

    process: Process
    parent: int
    session: int


def family(first: Iterable[Process]) -> set[Process]:
    """Those of `first` that are alive, all in the sessions that they lead, and all that these have started."""
    table = [entry for entry in map(_entry, _pids()) if entry is not None]
    found = {process for process in first if process.is_alive}
    sessions = {process.pid for process in first if process in found or Process.of(process.pid) is None}
    found |= {entry.process for entry in table if entry.session in sessions}
    while True:
        pids = {process.pid for process in found}
        more = {entry.process for entry in table if entry.parent in pids} - found
        if not more:
            return found - {process for process in found if process.pid == os.getpid()}
        found |= more


def end(first: Process, others: Iterable[Process], *, grace_s: float) -> None:
    """End a process that ends its own children, then what of its family is left."""
    victims = family([first, *others])
    _send([first], signal.SIGTERM)
    for signal_number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, grace_s)):
        deadline = time.monotonic() + wait_s
        while victims := {process for process in victims | family(victims) if process.is_alive}:
            if time.monotonic() > deadline:
                break
            time.sleep(_PAUSE_S)
        if not victims:
            return
        _send(victims, signal_number)


def _send(processes: Iterable[Process], signal_number: signal.Signals) -> None:
    for process in processes:
        if process.is_alive:
            try:
                os.kill(process.pid, signal_number)
            except ProcessLookupError:
                continue


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _entry(pid: int) -> _Entry | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name, in brackets, may hold anything
    state, parent, session, started = fields[0], int(fields[1]), int(fields[3]), int(fields[19])
    return None if state in ("Z", "X") else _Entry(Process(pid, started), parent, session)
