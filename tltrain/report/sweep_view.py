"""A sweep as its page shows it: the trials, their curves, and the looks a trial has in every chart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tltrain.report.layout import Shades
from tltrain.report.markup import shortened
from tltrain.report.svg import Series
from tltrain.report.trials import Metric, Trial, read_trials, searched_keys, short_names, value_text


@dataclass(frozen=True)
class Sweep:
    """A sweep as its page shows it."""

    trials: Sequence[Trial]
    """Best first."""
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    """Trial -> its rows of metrics.jsonl, by step."""
    metric: Metric
    winner: Trial | None
    confirmation: Mapping[str, Any] | None
    sharing: Mapping[str, Any] | None

    @classmethod
    def read(
        cls,
        trials: Sequence[Mapping[str, Any]],
        metrics: Sequence[Mapping[str, Any]],
        metric: Metric,
        confirmation: Mapping[str, Any] | None,
        sharing: Mapping[str, Any] | None,
    ) -> Sweep:
        """The sweep in the contents of trials.json, metrics.jsonl, confirm.json and sharing.json."""
        rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for one in metrics:
            rows[one["lane"]].append(one)
        joined = read_trials(trials, metrics, metric)
        named = (confirmation or {}).get("winner")
        first = joined[0] if joined and joined[0].score is not None else None
        winner = next((trial for trial in joined if trial.id == named), first)
        return cls(joined, rows, metric, winner, confirmation, sharing)

    @cached_property
    def scored(self) -> list[Trial]:
        """The trials that have a value, best first."""
        return [trial for trial in self.trials if trial.score is not None]

    @cached_property
    def keys(self) -> list[str]:
        """The searched keys."""
        return searched_keys(self.trials)

    @cached_property
    def names(self) -> dict[str, str]:
        """Searched key -> its short name."""
        return short_names(self.keys)

    @cached_property
    def shades(self) -> Shades:
        """Shades for the trials' values, the same in all charts."""
        return Shades.of([trial.score for trial in self.trials if trial.score is not None], self.metric)

    def settings(self, trial: Trial) -> str:
        """The values of a trial in one line."""
        return ", ".join(f"{self.names[key]} {shortened(value_text(value), 40)}" for key, value in trial.values.items())

    def series(self, trial: Trial, column: str) -> Series:
        """The curve of one column of a trial, with the looks it has in all charts."""
        points = [(r["epoch"], r[column]) for r in self.rows.get(trial.id, ()) if r.get(column) is not None]
        tip = f"{trial.id} ({trial.state}): {self.settings(trial)}"
        return Series(points, tip, self.style(trial) + (" dot-only" if len(points) == 1 else ""), trial.id)

    def style(self, trial: Trial) -> str:
        """The CSS classes of a trial's line: its shade, dimmed where it was stopped, or the winner's colour."""
        if trial == self.winner:
            return "best"
        shade = "q0" if trial.score is None else self.shades.style(trial.score)
        return f"{shade} dim" if trial.state in ("stopped", "failed") else shade
