"""A sweep as it goes: a line per trial that ends, or the whole table again and again where it can be shown in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tltrain.report.sweep import grid, trials_table
from tltrain.report.trials import Metric
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec

ENDED = ("finished", "stopped", "failed")
TABLE_ROWS = 16


class Progress(Protocol):
    """What is known of a sweep: entries of trials.json by name, and rows of metrics.jsonl."""

    trials: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]]


class TrialFollower:
    """Shows a sweep's progress.

    write: prints one line. show: shows a table in place of the one before; None prints a line per ended trial instead.
    """

    def __init__(
        self, spec: Spec, write: Callable[[str], None], show: Callable[[list[str]], None] | None = None
    ) -> None:
        assert spec.sweep is not None
        self._sweep, self._epochs = spec.sweep, spec.train.epochs
        self._metric = Metric.of(spec.sweep.metric, spec.sweep.mode)
        self._write, self._show = write, show
        self._told: set[str] | None = None
        self._num_rows = -1

    def poll(self, progress: Progress) -> None:
        """Show what is new."""
        if self._show is not None and len(progress.rows) != self._num_rows:
            self._num_rows = len(progress.rows)
            trials = list(progress.trials.values())
            self._show(trials_table(trials, progress.rows, limit=TABLE_ROWS, metric=self._metric))
        elif self._show is None:
            self._tell_ended(progress.trials)

    def _tell_ended(self, trials: Mapping[str, dict[str, Any]]) -> None:
        ended = {name for name, entry in trials.items() if self._has_ended(entry)}
        if self._told is None:  # what had ended in an earlier attempt is not news
            self._told = {name for name in ended if trials[name]["state"] in ENDED}
        for name in sorted(ended - self._told):
            self._told.add(name)
            self._write(trial_line(trials[name], len(self._told), len(trials)))

    def _has_ended(self, entry: Mapping[str, Any]) -> bool:
        return entry["state"] in ENDED or entry["epochs"] >= self._epochs

    def grid(self, run: RunFolder) -> list[str]:
        """Return the final table, and the grid of the first two searched keys where there are two."""
        trials, rows = run.read_json("trials.json"), run.metrics()
        lines = trials_table(trials, rows, limit=TABLE_ROWS, metric=self._metric)
        keys = list(self._sweep.space)
        if len(keys) >= 2:
            lines += ["", *grid(trials, keys[0], keys[1], self._metric, metrics=rows)]
        return [*lines, ""]


def trial_line(entry: Mapping[str, Any], number: int, total: int) -> str:
    """Return one line of at most 80 columns about a trial that has ended."""
    values = " ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in entry["values"].items())
    best = entry["best"]
    result = f"top-1 {100 * best['top1']:.1f} %" if best else "no result"
    return f"{number:>4}/{total:<4} {entry['trial']}  {result:<13} {values}"[:80]


def winner_lines(state: Mapping[str, Any], confirmed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return who won, with what, and how sure that is."""
    values = ", ".join(f"{key}={value}" for key, value in state["winner_values"].items())
    lines = [f"Winner      {state['winner']}: {values}"]
    for entry in confirmed:
        low, high = entry["interval"] or (entry["mean"], entry["mean"])
        seeds = len(entry["seeds"])
        shown = f"{100 * entry['mean']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        lines.append(f"Confirmed   {entry['trial']}: mean validation top-1 {shown} over {seeds} seeds")
    return lines
