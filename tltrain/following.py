"""How a run goes, looked up in its folder a few times a second and shown: epochs, trials, a bar."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from tltrain.output import Output
from tltrain.progress import Bar, Pace, read_progress, run_bar, sweep_bar
from tltrain.report.sweep import grid, trials_table
from tltrain.report.trial_lines import ENDED, TABLE_ROWS
from tltrain.report.trials import Metric
from tltrain.run_folder import WINNER, RunFolder
from tltrain.spec.schema import Spec
from tltrain.terminal import Show

LOCAL_INTERVAL_S, REMOTE_INTERVAL_S = 0.5, 5.0
"""Seconds between two looks into the run folder."""


class RunFollower:
    """Shows a single run: a line for each new epoch, and a bar."""

    def __init__(self, spec: Spec, run: RunFolder, output: Output, show: Show) -> None:
        self._run, self._epochs, self._output, self._show = run, spec.train.epochs, output, show
        self._shown = {row["step"] for row in run.metrics()}
        self._pace, self._clock = Pace(), _Clock(run)
        self._lock = threading.Lock()

    def poll(self, *, now: bool = False) -> None:
        """Show what is new; looks only every so often unless `now`."""
        with self._lock:
            if not self._clock.is_due() and not now:
                return
            for row in self._run.metrics():
                if row["step"] not in self._shown:
                    self._shown.add(row["step"])
                    self._output.epoch(row, self._epochs)
            self._show([], run_bar(read_progress(self._run.folder), self._pace))

    @contextlib.contextmanager
    def polling(self) -> Iterator[None]:
        """Poll from a thread for a `with` block, whose own thread trains."""
        ended = threading.Event()

        def keep_polling() -> None:
            while not ended.wait(LOCAL_INTERVAL_S):
                self.poll()

        thread = threading.Thread(target=keep_polling, name="follower", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class Known(Protocol):
    """What the driver of a sweep knows: entries of trials.json by name, and rows of metrics.jsonl."""

    trials: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]]


class SweepFollower:
    """Shows a sweep: its table of trials in place, or a line for each that ends, and a bar."""

    def __init__(self, spec: Spec, run: RunFolder, output: Output, show: Show, *, has_table: bool) -> None:
        """has_table: whether `show` shows lines."""
        assert spec.sweep is not None
        self._spec, self._run, self._sweep, self._epochs = spec, run, spec.sweep, spec.train.epochs
        self._metric = Metric.of(spec.sweep.metric, spec.sweep.mode)
        self._output, self._show, self._has_table = output, show, has_table
        self._pace, self._clock = Pace(), _Clock(run)
        self._told_rows = {(row["lane"], row["step"]) for row in run.metrics()}
        self._told_trials: set[str] | None = None
        self._table: list[str] = []
        self._num_rows = -1

    def poll(self, known: Known) -> None:
        """Show what is new."""
        self._tell_rows(known.rows)
        self._tell_ended(known.trials)
        if self._clock.is_due():
            self._show(self._table, self._bar(known))

    def _tell_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if len(rows) == self._num_rows:
            return
        for row in rows:
            if (row["lane"], row["step"]) not in self._told_rows:
                self._told_rows.add((row["lane"], row["step"]))
                self._output.lane_epoch(row)

    def _bar(self, known: Known) -> Bar:
        entries = list(known.trials.values())
        if self._has_table and len(known.rows) != self._num_rows:
            self._table = trials_table(entries, known.rows, limit=TABLE_ROWS, metric=self._metric)
        self._num_rows = len(known.rows)
        return bar_of_sweep(self._spec, self._run, entries, known.rows, self._pace)

    def _tell_ended(self, trials: Mapping[str, dict[str, Any]]) -> None:
        ended = {name for name, entry in trials.items() if has_ended(entry, self._epochs)}
        if self._told_trials is None:  # what had ended in an earlier attempt is not news
            self._told_trials = {name for name in ended if trials[name]["state"] in ENDED}
        for name in sorted(ended - self._told_trials):
            self._told_trials.add(name)
            self._output.trial(trials[name], len(self._told_trials), len(trials), is_shown=self._has_table)

    def grid(self) -> list[str]:
        """Return the final table, and the grid of the first two searched keys where there are two."""
        trials, rows = self._run.read_json("trials.json"), self._run.metrics()
        lines = trials_table(trials, rows, limit=TABLE_ROWS, metric=self._metric)
        keys = list(self._sweep.space)
        if len(keys) >= 2:
            lines += ["", *grid(trials, keys[0], keys[1], self._metric, metrics=rows)]
        return [*lines, ""]


def has_ended(entry: Mapping[str, Any], epochs: int) -> bool:
    """Whether a trial trains no more, though its end may not be recorded yet."""
    return entry["state"] in ENDED or entry["epochs"] >= epochs


def bar_of_sweep(
    spec: Spec, run: RunFolder, trials: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], pace: Pace
) -> Bar:
    """Return the bar of the sweep in `run`: of its trials, then of their confirmation, then of the winner."""
    assert spec.sweep is not None
    epochs, groups = spec.train.epochs, read_progress(run.folder)
    count = max(len(trials), spec.sweep.num_trials or 0)
    ended = [entry for entry in trials if has_ended(entry, epochs)]
    if count and len(ended) == count:
        winner = run_bar(read_progress(run.folder.child(WINNER)), pace)
        if winner is not None:
            return replace(winner, label=f"Winner: {winner.label}")
        if spec.sweep.confirm is not None:
            names = {entry["trial"] for entry in trials}
            done = sum(row["lane"] not in names for row in rows)
            total = min(spec.sweep.confirm.top, count) * (spec.sweep.confirm.seeds - 1) * epochs
            return sweep_bar(groups, label="Confirming over seeds", epochs=done, total=total, pace=pace)
    total = sum(entry["epochs"] for entry in ended) + (count - len(ended)) * epochs
    done = sum(entry["epochs"] for entry in trials)
    return sweep_bar(groups, label=f"{len(ended)} of {count} trials ended", epochs=done, total=total, pace=pace)


class _Clock:
    """Says when the run folder may be looked into again."""

    def __init__(self, run: RunFolder) -> None:
        self._interval_s = LOCAL_INTERVAL_S if run.folder.local_path else REMOTE_INTERVAL_S
        self._next = 0.0

    def is_due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._interval_s
        return True
