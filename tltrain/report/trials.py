"""The trials of a sweep, joined with their metrics; the keys they differ in; and two keys as a grid."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tltrain.report.scales import bin_edges, number_text

MAX_DISTINCT = 10
_LABELS = {"val_top1": "val top-1", "val_top5": "val top-5", "val_loss": "val loss", "train_top1": "train top-1"}


@dataclass(frozen=True)
class Metric:
    """The column of metrics.jsonl that trials are judged by."""

    name: str = "val_top1"
    higher_is_better: bool = True

    @classmethod
    def of(cls, name: str, mode: str | None = None) -> Metric:
        """The metric `name`; without a `mode` (`min`, `max`) losses are better when lower, all others when higher."""
        return cls(name, (mode or ("min" if name.endswith("loss") else "max")) == "max")

    @property
    def is_share(self) -> bool:
        """Whether its values are shares, shown in per cent."""
        return "top" in self.name

    @property
    def label(self) -> str:
        """Its name for people."""
        return _LABELS.get(self.name, self.name.replace("_", " "))

    @property
    def title(self) -> str:
        """Its name as a heading."""
        words = self.label.replace("val ", "validation ")
        return words[:1].upper() + words[1:]

    def text(self, value: float | None) -> str:
        """A value for people: `84.2 %`, `0.5123`, or `-` for None."""
        if value is None:
            return "-"
        return f"{100 * value:.1f} %" if self.is_share else f"{value:.4f}"

    def tick(self, value: float) -> str:
        """A value as it stands at an axis: `80 %`, `0.5`."""
        return f"{number_text(100 * value)} %" if self.is_share else number_text(value)

    def best(self, values: Iterable[float]) -> float:
        """The best of some values."""
        return max(values) if self.higher_is_better else min(values)

    def rank(self, value: float | None) -> tuple[bool, float]:
        """A key to sort by, best first and None last."""
        return value is None, 0.0 if value is None else -value if self.higher_is_better else value


@dataclass(frozen=True)
class Trial:
    """One trial as far as it has come."""

    id: str
    values: Mapping[str, Any]
    """Dotted key of the spec -> the value tried."""
    state: str
    reason: str
    epochs: int
    score: float | None
    """Best value of the metric so far; None before the first."""
    score_epoch: int | None
    seconds: float | None
    frozen_stages: int | None


def read_trials(trials: Iterable[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]], metric: Metric) -> list[Trial]:
    """Return the entries of trials.json with their rows of metrics.jsonl, best first, those without a value last."""
    by_lane: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_lane[row["lane"]].append(row)
    joined = [_join(entry, by_lane.get(entry["trial"], []), metric) for entry in trials]
    return sorted(joined, key=lambda trial: (metric.rank(trial.score), trial.id))


def _join(entry: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], metric: Metric) -> Trial:
    scored = [(row[metric.name], row.get("epoch")) for row in rows if row.get(metric.name) is not None]
    best = entry.get("best")
    if not scored and best and metric.name in ("val_top1", "val_loss"):
        value = best.get(metric.name.removeprefix("val_"))
        scored = [] if value is None else [(value, best.get("epoch"))]
    score = metric.best(value for value, _ in scored) if scored else None
    return Trial(
        id=entry["trial"],
        values=entry.get("values") or {},
        state=entry.get("state", "pending"),
        reason=entry.get("reason") or "",
        epochs=max([entry.get("epochs") or 0, *(row.get("epoch") or 0 for row in rows)]),
        score=score,
        score_epoch=next((epoch for value, epoch in scored if value == score), None),
        seconds=entry.get("seconds"),
        frozen_stages=rows[-1].get("frozen_stages") if rows else None,
    )


def searched_keys(trials: Iterable[Trial]) -> list[str]:
    """Return all keys that some trial has a value of: learning rate and freeze depth first, then by first use."""
    keys = list(dict.fromkeys(key for trial in sorted(trials, key=lambda t: t.id) for key in trial.values))
    first = [key for end in ("learning_rate", "freeze_depth") for key in keys if key.endswith(f".{end}")]
    return [*first, *(key for key in keys if key not in first)]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return key -> its last part, or more of it where that is not unique or just `name`."""
    return {key: _short_name(key, keys) for key in keys}


def _short_name(key: str, keys: Sequence[str]) -> str:
    parts = key.split(".")
    ends = [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
    unique = (end for end in ends if sum(other == end or other.endswith(f".{end}") for other in keys) == 1)
    return next((end for end in unique if end != "name"), key)


def value_text(value: Any) -> str:
    """Return a searched value as one short line."""
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int | float):
        return number_text(value, 3)
    text = str(value)
    return text if text.isprintable() else json.dumps(text)


@dataclass(frozen=True)
class Buckets:
    """The columns or rows of a grid: distinct values, or bins named by where they start."""

    labels: tuple[str, ...]
    is_binned: bool
    edges: tuple[float, ...] = ()

    def index(self, value: Any) -> int | None:
        """The number of the bucket that `value` is in; None where there is none."""
        if self.is_binned:
            return max(0, bisect_right(self.edges, value) - 1) if is_number(value) else None
        text = value_text(value)
        return self.labels.index(text) if text in self.labels else None


@dataclass(frozen=True)
class Grid:
    """The trials of a sweep by two of its keys."""

    x_key: str
    y_key: str
    columns: Buckets
    rows: Buckets
    cells: Mapping[tuple[int, int], tuple[Trial, ...]]
    """(row, column) -> the trials there, best first; cells without trials are left out."""

    def scores(self) -> dict[tuple[int, int], float]:
        """The best value of each cell that has one."""
        best = {place: trials[0].score for place, trials in self.cells.items()}
        return {place: score for place, score in best.items() if score is not None}


def make_grid(trials: Sequence[Trial], x_key: str, y_key: str, num_bins: int = MAX_DISTINCT) -> Grid:
    """Return `trials` (best first) by two keys; numbers with many distinct values go into at most `num_bins` bins."""
    columns, rows = make_buckets(trials, x_key, num_bins), make_buckets(trials, y_key, num_bins)
    cells: dict[tuple[int, int], list[Trial]] = defaultdict(list)
    for trial in trials:
        if x_key in trial.values and y_key in trial.values:
            row, column = rows.index(trial.values[y_key]), columns.index(trial.values[x_key])
            if row is not None and column is not None:
                cells[row, column].append(trial)
    return Grid(x_key, y_key, columns, rows, {place: tuple(found) for place, found in cells.items()})


def make_buckets(trials: Sequence[Trial], key: str, num_bins: int = MAX_DISTINCT) -> Buckets:
    """Return the distinct values of `key` in order; more than MAX_DISTINCT of them, all numbers, become bins."""
    having = [trial for trial in trials if key in trial.values]
    values = [trial.values[key] for trial in having]
    labels = {value_text(value): value for value in values}
    if len(labels) > MAX_DISTINCT and all(is_number(value) for value in values):
        edges = bin_edges(values, num_bins)
        return Buckets(tuple(f"{number_text(edge)}+" for edge in edges), True, tuple(edges))
    frozen = {value_text(trial.values[key]): trial.frozen_stages for trial in having}
    if key.endswith("freeze_depth") and all(count is not None for count in frozen.values()):
        return Buckets(tuple(sorted(labels, key=lambda label: (frozen[label], label))), False)
    return Buckets(tuple(sorted(labels, key=lambda label: _order(labels[label]))), False)


def is_number(value: Any) -> bool:
    """Whether a searched value is a number (true and false are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _order(value: Any) -> tuple[int, float, list[tuple[int, str]]]:
    """Numbers by size, then texts with the numbers in them by size (`stage2` before `stage10`), `all` last."""
    if is_number(value):
        return 0, value, []
    text = value_text(value)
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text) if part]
    return 2 if text == "all" else 1, 0.0, parts
