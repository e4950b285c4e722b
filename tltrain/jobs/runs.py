"""Runs as their storage has them: listed and removed. Nothing else is asked, so anyone's runs are there."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tltrain.errors import Problem, SpecError
from tltrain.jobs.run_index import Summary, summaries
from tltrain.lease import LEASE_FILE, read_lease
from tltrain.run_folder import SPEC_FILE, STATE_FILE, RunFolder
from tltrain.storage import Folder

READERS = 32
LOST = "lost"
"""State of a run that says it is running while nothing has been heard of its process."""


@dataclass(frozen=True)
class Run(Summary):
    """A run in a list."""

    duration_s: float | None
    """From its first start to its end, pauses included; to now where it runs."""


def list_runs(storage: Folder, *, rebuild: bool = False, newest: int | None = None) -> list[Run]:
    """The runs under `storage`, the newest first, at most `newest`. Raises StorageError where it cannot be read."""
    found = summaries(storage, rebuild=rebuild, newest=newest)
    running = [summary for summary in found if summary.state == "running"]
    with ThreadPoolExecutor(READERS) as executor:
        lost = {summary.name for summary in executor.map(lambda each: _if_lost(storage, each), running) if summary}
    now = time.time()
    return [_run(dataclasses.replace(each, state=LOST) if each.name in lost else each, now) for each in found]


def _if_lost(storage: Folder, summary: Summary) -> Summary | None:
    lease = read_lease(storage.child(summary.name))
    return summary if lease is None or not lease.is_live else None


def _run(summary: Summary, now: float) -> Run:
    end = now if summary.state == "running" else summary.finished_at or summary.written_at
    duration_s = None if summary.started_at is None else max(0.0, end - summary.started_at)
    return Run(**vars(summary), duration_s=duration_s)


def check_removable(run: RunFolder) -> None:
    """Raise SpecError where somebody writes into the run."""
    lease = read_lease(run.folder)
    if lease is not None and lease.is_live:
        what = f"the run {run.name} is being written by {lease}"
        raise SpecError(Problem(what, "Let it end or stop it first", str(run.folder)))


def remove_run(run: RunFolder) -> None:
    """Delete a run folder that nobody writes into. Raises SpecError or StorageError.

    Its lease goes first, so that an attempt that was thought dead cannot write here any more; what makes it a run goes
    last, so that a deletion that was cut short can be repeated.
    """
    check_removable(run)
    run.folder.delete(LEASE_FILE)
    run.folder.delete_all(last=(SPEC_FILE, STATE_FILE))
