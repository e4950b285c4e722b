"""Runs as their storage has them: listed, compared, removed. Nothing else is asked, so anyone's runs are there."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tltrain.errors import Problem, SpecError
from tltrain.jobs.run_index import Summary, summaries
from tltrain.lease import LEASE_FILE, read_lease
from tltrain.run_folder import SPEC_FILE, STATE_FILE, RunFolder
from tltrain.spec.keys import leaves
from tltrain.spec.load import differences, parse_spec
from tltrain.spec.schema import Spec
from tltrain.spec.yaml_text import dotted
from tltrain.storage import Folder

READERS = 32
LOST = "lost"
"""State of a run that says it is running while nothing has been heard of its process."""
METRICS = (
    ("state", ("state",)),
    ("trial", ("winner",)),
    ("best epoch", ("best", "epoch")),
    ("val top-1", ("best", "top1")),
    ("val loss", ("best", "loss")),
    ("evaluated on", ("evaluation", "split")),
    ("images", ("evaluation", "num_images")),
    ("accuracy", ("evaluation", "accuracy")),
    ("loss", ("evaluation", "loss")),
    ("calibration error", ("evaluation", "expected_calibration_error")),
)
"""What a comparison shows -> where it stands in run.json."""


@dataclass(frozen=True)
class Run(Summary):
    """A run in a list."""

    uri: str
    duration_s: float | None
    """From its first start to its end, pauses included; to now where it runs."""


def list_runs(storage: Folder, *, rebuild: bool = False) -> list[Run]:
    """The runs under `storage`, the newest first. Raises StorageError where it cannot be read."""
    found = summaries(storage, rebuild=rebuild)
    running = [summary for summary in found if summary.state == "running"]
    with ThreadPoolExecutor(READERS) as executor:
        lost = {summary.name for summary in executor.map(lambda each: _if_lost(storage, each), running) if summary}
    now = time.time()
    runs = [_run(storage, dataclasses.replace(s, state=LOST) if s.name in lost else s, now) for s in found]
    return sorted(runs, key=lambda run: (-(run.started_at or run.written_at), run.name))


def _if_lost(storage: Folder, summary: Summary) -> Summary | None:
    lease = read_lease(storage.child(summary.name))
    return summary if lease is None or not lease.is_live else None


def _run(storage: Folder, summary: Summary, now: float) -> Run:
    end = now if summary.state == "running" else summary.finished_at or summary.written_at
    duration_s = None if summary.started_at is None else max(0.0, end - summary.started_at)
    return Run(**vars(summary), uri=storage.child(summary.name).uri, duration_s=duration_s)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side: what of their specs differs, and their numbers. Each row has one value per run."""

    runs: list[str]
    spec: dict[str, list[Any]]
    metrics: dict[str, list[Any]]


def compare(folders: Sequence[RunFolder]) -> Comparison:
    """Compare runs. Raises SpecError where one has no readable spec."""
    specs = [_spec(folder) for folder in folders]
    keys = {key: None for spec in specs[1:] for key, _, _ in differences(specs[0], spec) if key != "name"}
    values = [{dotted(path): value for path, value in leaves(spec)} for spec in specs]
    states = [folder.state() for folder in folders]
    metrics = {name: [_at(state, path) for state in states] for name, path in METRICS}
    metrics["duration"] = [_duration(state) for state in states]
    known = {name: row for name, row in metrics.items() if any(value is not None for value in row)}
    names = [folder.name for folder in folders]
    shown = names if len(set(names)) == len(names) else [str(folder.folder) for folder in folders]
    return Comparison(shown, {key: [each.get(key) for each in values] for key in keys}, known)


def _spec(run: RunFolder) -> Spec:
    return parse_spec(run.spec_text(), where=f"{run.uri}/{SPEC_FILE}", base=Path.cwd()).spec


def _at(state: Any, path: Sequence[str]) -> Any:
    for name in path:
        state = state.get(name) if isinstance(state, dict) else None
    return state


def _duration(state: dict[str, Any]) -> float | None:
    start, end = state.get("started_at"), state.get("finished_at")
    return None if start is None or end is None else end - start


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
