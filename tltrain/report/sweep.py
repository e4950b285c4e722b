"""A sweep as text for the terminal, its table of trials and its grid, and as trials.parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tltrain.report.markup import shortened
from tltrain.report.trials import (
    MAX_DISTINCT,
    Grid,
    Metric,
    Trial,
    make_grid,
    read_trials,
    searched_keys,
    short_names,
    value_text,
)
from tltrain.run_folder import RunFolder

TRIALS_FILE, TRIALS_TABLE = "trials.json", "trials.parquet"
_GAP = "  "
_NARROWEST = 8


@dataclass(frozen=True)
class _Column:
    title: str
    texts: tuple[str, ...]
    is_key: bool = False
    is_right: bool = False
    limit: int = 40

    @property
    def width(self) -> int:
        return min(self.limit, max(map(len, (self.title, *self.texts))))

    def cell(self, text: str) -> str:
        text = shortened(text, self.width)
        return text.rjust(self.width) if self.is_right else text.ljust(self.width)


def trials_table(
    trials: Iterable[Mapping[str, Any]],
    metrics: Iterable[Mapping[str, Any]],
    *,
    width: int = 80,
    limit: int | None = None,
    metric: Metric = Metric(),  # noqa: B008 (a frozen value)
) -> list[str]:
    """Return trials.json and metrics.jsonl as a table, best trial first, of at most `width` columns.

    Where the searched keys need more room, they are shortened, and then the last ones are left out and named below.
    `limit` is the number of trials shown.
    """
    found = read_trials(trials, metrics, metric)
    shown = found[:limit]
    columns, left_out = _fit(_columns(shown, searched_keys(found), metric), width)
    lines = [_line(columns, [column.title for column in columns])]
    lines += [_line(columns, [column.texts[index] for column in columns]) for index in range(len(shown))]
    if len(shown) < len(found):
        lines.append(f"... and {len(found) - len(shown)} more")
    if left_out:
        lines.append(shortened(f"Not shown: {', '.join(left_out)}", width))
    return lines


def _columns(trials: Sequence[Trial], keys: Sequence[str], metric: Metric) -> list[_Column]:
    names = short_names(keys)
    return [
        _Column("trial", tuple(trial.id for trial in trials)),
        *(
            _Column(names[key], tuple(value_text(t.values[key]) if key in t.values else "-" for t in trials), True)
            for key in keys
        ),
        _Column("epoch", tuple(str(trial.epochs) for trial in trials), is_right=True),
        _Column(metric.label, tuple(metric.text(trial.score) for trial in trials), is_right=True),
        _Column("state", tuple(trial.state for trial in trials)),
    ]


def _fit(columns: list[_Column], width: int) -> tuple[list[_Column], list[str]]:
    """Shorten the widest keys, then leave out the last ones, until all fit; return the rest and what is left out."""
    left_out: list[str] = []
    while _total(columns) > width:
        keys = [index for index, column in enumerate(columns) if column.is_key]
        if not keys:
            break
        widest = max(keys, key=lambda index: columns[index].width)
        if columns[widest].width > _NARROWEST:
            columns = list(columns)
            columns[widest] = replace(columns[widest], limit=columns[widest].width - 1)
        else:
            left_out.insert(0, columns[keys[-1]].title)
            columns = [column for index, column in enumerate(columns) if index != keys[-1]]
    return columns, left_out


def _total(columns: Sequence[_Column]) -> int:
    return sum(column.width for column in columns) + len(_GAP) * (len(columns) - 1)


def _line(columns: Sequence[_Column], texts: Sequence[str]) -> str:
    return _GAP.join(column.cell(text) for column, text in zip(columns, texts, strict=True)).rstrip()


def grid(
    trials: Iterable[Mapping[str, Any]],
    x_key: str,
    y_key: str,
    metric: Metric = Metric(),  # noqa: B008 (a frozen value)
    *,
    metrics: Iterable[Mapping[str, Any]] = (),
    width: int = 80,
) -> list[str]:
    """Return the best value for each pair of values of two searched keys, `x_key` to the right, `y_key` downwards.

    The best of all is marked with `*`, what was not tried is a dot. Numbers with many values are binned. Without
    `metrics` the values come from `best` in trials.json. Columns beyond `width` go into further blocks.
    """
    joined = read_trials(trials, metrics, metric)
    keys = short_names(sorted({x_key, y_key}))
    block, has_bins = list[str](), False
    for num_bins in range(MAX_DISTINCT, 3, -1):  # the finest bins that need no second block
        found = make_grid(joined, x_key, y_key, num_bins)
        if not found.scores():
            return [f"No trial has a {metric.label} yet."]
        has_bins = found.columns.is_binned or found.rows.is_binned
        block = _blocks(found, _grid_texts(found, metric), keys[x_key], keys[y_key], width)
        if not found.columns.is_binned or len(block) == len(found.rows.labels) + 2:
            break
    unit = " in %" if metric.is_share else ""
    title = f"Best {metric.label}{unit} of each cell; * the best of all, . nothing yet"
    return [shortened(title, width), *block, *(["+: from there up to the next number."] if has_bins else [])]


def _grid_texts(found: Grid, metric: Metric) -> dict[tuple[int, int], str]:
    scores = found.scores()
    best = metric.best(scores.values())
    scale, digits = (100, 1) if metric.is_share else (1, 4)
    return {place: f"{'*' * (score == best)}{scale * score:.{digits}f}" for place, score in scores.items()}


def _blocks(found: Grid, texts: Mapping[tuple[int, int], str], across: str, down: str, width: int) -> list[str]:
    """The grid in lines: the key across, the columns' labels, one line per row; then the columns that are left."""
    label_width = min(max(map(len, (down, *found.rows.labels))), 20)
    cell_width = 2 + min(max(map(len, (*found.columns.labels, *texts.values()))), 16)
    per_block = max(1, (width - label_width) // cell_width)
    lines: list[str] = []
    for start in range(0, len(found.columns.labels), per_block):
        columns = range(start, min(start + per_block, len(found.columns.labels)))
        block = [(down, [found.columns.labels[column] for column in columns])]
        block += [
            (label, [texts.get((row, column), ".") for column in columns])
            for row, label in enumerate(found.rows.labels)
        ]
        lines.append(" " * (label_width + 2) + shortened(across, cell_width * len(columns)))
        lines += [_grid_line(label, cells, label_width, cell_width) for label, cells in block]
    return lines


def _grid_line(label: str, cells: Sequence[str], label_width: int, cell_width: int) -> str:
    texts = [shortened(cell, cell_width - 2).rjust(cell_width) for cell in cells]
    return shortened(label, label_width).ljust(label_width) + "".join(texts)


def write_trials_table(run: RunFolder) -> None:
    """Write trials.parquet: one row per trial of trials.json, with a column per searched key.

    Columns: trial, state, reason, epochs, best_epoch, best_top1, best_loss, seconds, then the dotted keys. A key whose
    values are of several kinds is text. Raises StorageError.
    """
    trials: list[dict[str, Any]] = run.read_json(TRIALS_FILE)
    keys = list(dict.fromkeys(key for trial in trials for key in trial["values"]))
    bests = [trial.get("best") or {} for trial in trials]
    fixed = {
        "trial": pa.array([trial["trial"] for trial in trials], pa.string()),
        "state": pa.array([trial["state"] for trial in trials], pa.string()),
        "reason": pa.array([trial.get("reason") or "" for trial in trials], pa.string()),
        "epochs": pa.array([trial.get("epochs") for trial in trials], pa.int64()),
        **{f"best_{name}": pa.array([best.get(name) for best in bests], kind) for name, kind in _BEST_COLUMNS},
        "seconds": pa.array([trial.get("seconds") for trial in trials], pa.float64()),
    }
    searched = {key: _value_column([trial["values"].get(key) for trial in trials]) for key in keys}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({**fixed, **searched}), sink, compression="zstd")
    run.folder.write_bytes(TRIALS_TABLE, sink.getvalue().to_pybytes())


_BEST_COLUMNS = (("epoch", pa.int64()), ("top1", pa.float64()), ("loss", pa.float64()))


def _value_column(values: Sequence[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    for accepted, kind in (({bool}, pa.bool_()), ({int}, pa.int64()), ({int, float}, pa.float64())):
        if kinds and kinds <= accepted:
            return pa.array(values, kind)
    return pa.array([None if value is None else _as_text(value) for value in values], pa.string())


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
