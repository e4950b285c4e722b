"""Runs as their files show them from one moment to the next: a single one, a sweep, all of a storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from tltrain.cli.run_tables import run_lines, width
from tltrain.errors import SpecError
from tltrain.following import bar_of_sweep, has_ended
from tltrain.header import HEADER_FILE, shown_path
from tltrain.jobs.runs import LOST, list_runs
from tltrain.lease import read_lease
from tltrain.progress import Bar, Pace, read_progress, run_bar
from tltrain.report import lines
from tltrain.report.sweep import TRIALS_FILE, trials_table
from tltrain.report.trial_lines import TABLE_ROWS, trial_line, winner_lines
from tltrain.report.trials import Metric
from tltrain.run_folder import RunFolder
from tltrain.spec.load import parse_spec
from tltrain.storage import Folder


@dataclass(frozen=True)
class View:
    """What there is to show at one moment."""

    news: Sequence[str]
    """Lines for stdout that were not there before."""
    table: Sequence[str]
    """Lines that take the place of those before."""
    bar: Bar | None
    facts: Mapping[str, Any]
    """The same as data."""
    ending: Sequence[str] | None = None
    """Lines to close with where nothing goes on any more, else None."""
    problems: Sequence[str] = ()
    """Why it ended, where it should not have."""
    header: Sequence[str] = ()
    """What is known of it from the start, at the first look."""

    @property
    def exit_code(self) -> int:
        """0 where all is well."""
        return 1 if self.problems else 0


class Watcher(Protocol):
    """What is looked at again and again."""

    def look(self) -> View:
        """Read the files. Raises StorageError where that cannot be done now."""
        ...


def make_watcher(address: str) -> Watcher:
    """Return what watches the run, sweep or storage at a path or address. Raises SpecError where there is none."""
    folder = Folder.open(address)
    run = RunFolder(folder)
    if not run.exists():
        if not list_runs(folder):
            RunFolder.open(address)  # raises, and says what is there instead
            raise SpecError(f"there are no runs in {folder}", "Name a run's folder or a storage")
        return StorageWatcher(folder)
    return SweepWatcher(run) if run.state().get("kind") == "sweep" else RunWatcher(run)


class _Base:
    def __init__(self, run: RunFolder) -> None:
        self._run, self._pace = run, Pace()
        self._spec = parse_spec(run.spec_text(), where=f"{run.folder}/spec.yaml", base=Path.cwd()).spec
        self._has_begun = False

    def _state(self) -> dict[str, Any]:
        """run.json, with the state `lost` where nothing has been heard of the process."""
        state = self._run.state()
        lease = read_lease(self._run.folder) if state.get("state") == "running" else None
        return state if lease is None or lease.is_live else {**state, "state": LOST}

    def _header(self) -> list[str]:
        """The header, once."""
        if self._has_begun or not self._run.folder.exists(HEADER_FILE):
            return []
        self._has_begun = True
        return lines.header(self._run.read_json(HEADER_FILE))

    def _facts(self, state: Mapping[str, Any], bar: Bar | None, **more: Any) -> dict[str, Any]:
        shown = ("state", "started_at", "finished_at", "error", "best", "evaluation")
        facts = {"run": str(self._run.folder), "kind": state.get("kind", "run")}
        return facts | {key: state.get(key) for key in shown} | {"progress": bar and asdict(bar), **more}

    def _problems(self, state: Mapping[str, Any]) -> list[str]:
        name = state.get("state")
        if name == "failed":
            return list(state.get("error") or ["the run failed"])
        if name == LOST:
            return ["nothing is heard of the run any more: its process or machine is gone"]
        return ["the run was interrupted"] if name == "interrupted" else []

    def _ending(self, state: Mapping[str, Any], tables: Sequence[str] = ()) -> list[str] | None:
        if state.get("state") == "running":
            return None
        if state.get("state") != "finished":
            return [*tables]
        kept = RunFolder(self._run.folder.child(state["winner_run"])) if "winner_run" in state else self._run
        return [*tables, *lines.result(state, shown_path(kept))]


class RunWatcher(_Base):
    """A single run: its header, a line per epoch, a bar."""

    def __init__(self, run: RunFolder) -> None:
        super().__init__(run)
        self._shown: set[int] = set()

    def look(self) -> View:
        """Read state, metrics and progress."""
        state, rows = self._state(), self._run.metrics()
        is_going = state.get("state") == "running"
        bar = run_bar(read_progress(self._run.folder), self._pace) if is_going else None
        new = [row for row in rows if row["step"] not in self._shown]
        heading = [lines.COLUMNS] if new and not self._shown else []
        self._shown |= {row["step"] for row in new}
        news = [*heading, *(lines.epoch_line(row, self._spec.train.epochs) for row in new)]
        facts = self._facts(state, bar, last_epoch=rows[-1] if rows else None)
        return View(news, [], bar, facts, self._ending(state), self._problems(state), self._header())


class SweepWatcher(_Base):
    """A sweep: its header, a line per trial that ends, the table of trials, a bar."""

    def __init__(self, run: RunFolder) -> None:
        super().__init__(run)
        assert self._spec.sweep is not None
        self._sweep = self._spec.sweep
        self._metric = Metric.of(self._sweep.metric, self._sweep.mode)
        self._told: set[str] = set()

    def look(self) -> View:
        """Read state, trials, metrics and progress."""
        state, rows = self._state(), self._run.metrics()
        trials = self._run.read_json(TRIALS_FILE) if self._run.folder.exists(TRIALS_FILE) else []
        epochs = self._spec.train.epochs
        is_going = state.get("state") == "running"
        bar = bar_of_sweep(self._spec, self._run, trials, rows, self._pace) if is_going else None
        news = self._ended(trials, epochs)
        table = trials_table(trials, rows, limit=TABLE_ROWS, metric=self._metric, width=width())
        closing = [*table, ""] + (winner_lines(state, self._confirmed()) if "winner" in state else [])
        facts = self._facts(state, bar, trials=trials)
        return View(news, table, bar, facts, self._ending(state, closing), self._problems(state), self._header())

    def _ended(self, trials: Sequence[Mapping[str, Any]], epochs: int) -> list[str]:
        texts = []
        for entry in trials:
            if has_ended(entry, epochs) and entry["trial"] not in self._told:
                self._told.add(entry["trial"])
                texts.append(trial_line(entry, len(self._told), len(trials)))
        return texts

    def _confirmed(self) -> list[dict[str, Any]]:
        return self._run.read_json("confirm.json")["top"] if self._run.folder.exists("confirm.json") else []


class StorageWatcher:
    """All runs of a storage: their table, and how far those are that run."""

    def __init__(self, storage: Folder) -> None:
        self._storage = storage
        self._states: dict[str, str] | None = None
        self._watchers: dict[str, Watcher] = {}

    def look(self) -> View:
        """List the runs, and look at those that run."""
        runs = list_runs(self._storage)
        views = {run.name: self._watcher(run.name).look() for run in runs if run.state == "running"}
        states = {run.name: run.state for run in runs}
        table = run_lines(runs, width()) if runs else [f"No runs in {self._storage}."]
        going = [f"{name}: {view.bar or 'starting'}" for name, view in views.items()]
        # How long each has run is left out: it changes with every look.
        known = [{key: value for key, value in vars(run).items() if key != "duration_s"} for run in runs]
        progress = {name: view.facts["progress"] for name, view in views.items()}
        facts = {"storage": str(self._storage), "runs": known, "progress": progress}
        news = table if self._states is None else self._changes(states)
        self._states = states
        return View(news, [*table, "", *going], None, facts, None if views else table)

    def _watcher(self, name: str) -> Watcher:
        if name not in self._watchers:
            self._watchers[name] = make_watcher(self._storage.child(name).uri)
        return self._watchers[name]

    def _changes(self, states: Mapping[str, str]) -> list[str]:
        before = self._states or {}
        return [f"{name}  {state}" for name, state in states.items() if before.get(name) != state]
