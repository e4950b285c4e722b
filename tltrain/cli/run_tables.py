"""Runs as lines of text: a list, and a comparison side by side."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tltrain.jobs.comparison import Comparison
    from tltrain.jobs.runs import Run

NARROWEST_NAME, NARROWEST_CELL, WIDEST_CELL = 12, 10, 40
SHARES = ("val top-1", "accuracy")


def width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return shutil.get_terminal_size().columns


def run_lines(runs: Sequence[Run], columns: int) -> list[str]:
    """A heading and one line per run, in `columns` columns."""
    fixed = "{:<5}  {:<11}  {:<11}  {:>7}  {:>6}  {:>6}"
    heading = fixed.format("kind", "state", "started", "time", "val", "test")
    name_width = min(
        max(len("name"), *(len(run.name) for run in runs)), max(NARROWEST_NAME, columns - len(heading) - 2)
    )
    year = time.localtime().tm_year
    lines = [f"{'name':<{name_width}}  {heading}"]
    for run in runs:
        cells = (run.kind, run.state, _started(run.started_at, year), duration(run.duration_s))
        shares = percent(run.val_top1), percent(run.test_accuracy)
        lines.append(f"{shortened(run.name, name_width):<{name_width}}  {fixed.format(*cells, *shares)}".rstrip())
    return lines


def _started(started_at: float | None, year: int) -> str:
    """Month, day and time of one in `year`; the date of the others."""
    if started_at is None:
        return "-"
    then = time.localtime(started_at)
    return time.strftime("%m-%d %H:%M" if then.tm_year == year else "%Y-%m-%d", then)


def duration(seconds: float | None) -> str:
    """Seconds as people say them, in 7 columns."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.1f} d"


def percent(share: float | None) -> str:
    """A share as a percentage, in 6 columns."""
    return "-" if share is None else f"{100 * share:.1f}%"


def shortened(text: str, length: int) -> str:
    """Text of at most `length` columns; what does not fit is left out of the middle, for ends tell names apart."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def cut(text: str, length: int) -> str:
    """The beginning of a text, in at most `length` columns."""
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"


def comparison_lines(comparison: Comparison, columns: int) -> list[str]:
    """What differs in the specs and the numbers, one row each and one column per run.

    With many runs the lines are longer than `columns`.
    """
    spec = {key: [_cell(value) for value in row] for key, row in comparison.spec.items()}
    metrics = {key: [_metric(key, value) for value in row] for key, row in comparison.metrics.items()}
    rows = {**spec, **metrics}
    label = max(map(len, rows))
    room = (columns - label) // len(comparison.runs) - 2
    cell = max(
        NARROWEST_CELL,
        min(room, WIDEST_CELL, max(len(text) for row in [comparison.runs, *rows.values()] for text in row)),
    )

    def line(name: str, cells: Sequence[str]) -> str:
        return f"{name:<{label}}" + "".join(f"  {shortened(text, cell):>{cell}}" for text in cells)

    lines = [line("", comparison.runs), *(line(*row) for row in spec.items())]
    same = [] if spec else ["The specs are the same."]
    return [*lines, *same, "", *(line(*row) for row in metrics.items())]


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)


def _metric(key: str, value: Any) -> str:
    if key == "duration":
        return duration(value)
    if isinstance(value, float):
        return percent(value) if key in SHARES else f"{value:.4f}"
    return _cell(value)
