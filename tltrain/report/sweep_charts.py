"""The charts of a sweep: the grid of two keys, all curves, parallel coordinates, the best again over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tltrain.report.charts import NARROW, Cell, Coordinate, color_bar, heat_map, interval_chart, parallel_coordinates
from tltrain.report.layout import NUM_SHADES, Row, Value, card, scroll, table
from tltrain.report.markup import Markup
from tltrain.report.scales import Axis, fit_axis, number_text
from tltrain.report.svg import Dot, Text, dot_chart, line_chart
from tltrain.report.sweep_view import Sweep
from tltrain.report.trials import Metric, Trial, is_number, make_buckets, make_grid

MAX_LINES = 400


def cells_card(sweep: Sweep) -> Markup | None:
    """Return the heat map of the first two searched keys, or dots where there is but one."""
    if not sweep.scored or not sweep.keys:
        return None
    if len(sweep.keys) == 1:
        return card(f"By {sweep.names[sweep.keys[0]]}", _dots(sweep, sweep.keys[0]), id_="grid")
    x_key, y_key = sweep.keys[:2]
    grid = make_grid(sweep.trials, x_key, y_key)
    notes = [f"Best {sweep.metric.label} of each cell; the frame is the best of all."]
    if grid.columns.is_binned or grid.rows.is_binned:
        notes.append("+: from there up to the next number.")
    scores = grid.scores()
    if not scores:
        return None
    marked = min(scores, key=lambda place: sweep.metric.rank(scores[place]))
    cells = {place: _cell(sweep, found) for place, found in grid.cells.items()}
    picture = heat_map(
        grid.columns.labels,
        grid.rows.labels,
        cells,
        title=f"{sweep.metric.label} by {sweep.names[x_key]} and {sweep.names[y_key]}",
        x_label=sweep.names[x_key],
        y_label=sweep.names[y_key],
        marked=marked,
    )
    return card(
        f"By {sweep.names[x_key]} and {sweep.names[y_key]}",
        scroll(picture),
        _scale(sweep),
        note=" ".join(notes),
        id_="grid",
    )


def _cell(sweep: Sweep, trials: Sequence[Trial]) -> Cell:
    best, count = trials[0], len(trials)
    lines = [f"{trial.id}: {sweep.metric.text(trial.score)} ({sweep.settings(trial)})" for trial in trials[:6]]
    tip = "\n".join([*lines, *([f"and {count - 6} more"] if count > 6 else [])])
    if best.score is None:
        return Cell("", tip, "waiting")
    text = f"{100 * best.score:.1f}" if sweep.metric.is_share else f"{best.score:.3f}"
    return Cell(text, tip, sweep.shades.style(best.score))


def _scale(sweep: Sweep) -> Markup:
    worst, best = sweep.metric.text(sweep.shades.worst), sweep.metric.text(sweep.shades.best)
    return color_bar(f"{worst} or worse", best, [f"q{n}" for n in range(NUM_SHADES)])


def _dots(sweep: Sweep, key: str) -> Markup:
    having = [trial for trial in sweep.scored if key in trial.values]
    x_axis, place, x_text = _value_axis(having, key)
    scores = [trial.score or 0.0 for trial in having]
    dots = [
        Dot(
            place(trial.values[key]),
            trial.score or 0.0,
            f"{trial.id}: {sweep.metric.text(trial.score)}, {sweep.settings(trial)}",
            "best" if trial == sweep.winner else "plain",
            lane=trial.id,
        )
        for trial in reversed(having[:MAX_LINES])
    ]
    return dot_chart(
        dots,
        title=f"{sweep.metric.label} by {key}",
        x_label=sweep.names[key],
        y_label=sweep.metric.label,
        x_axis=x_axis,
        y_axis=fit_axis(scores, is_log=False),
        x_text=x_text,
        y_text=sweep.metric.tick,
    )


def curves_card(sweep: Sweep, column: str) -> Markup | None:
    """Return one column of metrics.jsonl over the epochs, a line per trial; None where no trial has it."""
    metric = sweep.metric if column == sweep.metric.name else Metric.of(column)
    shown = _shown(sweep)
    series = [sweep.series(trial, column) for trial in reversed(shown)]
    series = [one for one in series if one.points]
    if not series:
        return None
    series.sort(key=lambda one: one.style == "best")
    axis, is_cut = _curve_axis([y for one in series for _, y in one.points], metric)
    which = f"{len(series):,} trials" if len(shown) == len(sweep.trials) else f"The best {len(series):,} trials"
    notes = [f"{which}, coloured by their best {sweep.metric.label}."]
    notes += [f"Values above {metric.text(axis.hi)} are drawn at the edge."] if is_cut else []
    legend = [("the best", "best")] if sweep.winner else []
    legend += [("finished or running", "q6")]
    legend += [("stopped or failed", "q6 dim")] if any("dim" in one.style for one in series) else []
    picture = line_chart(
        series,
        title=f"{metric.label} of all trials",
        x_label="epoch",
        y_label=metric.label,
        y_text=metric.tick,
        y_axis=axis,
        legend=legend,
        data_unit="%" if metric.is_share else "",
        is_cut=is_cut,
    )
    return card(metric.title, picture, note=" ".join(notes), id_=f"curves-{column.replace('_', '-')}")


def _shown(sweep: Sweep) -> list[Trial]:
    """The trials that are drawn as lines, best first, with the winner among them."""
    shown = list(sweep.trials[:MAX_LINES])
    return shown if sweep.winner is None or sweep.winner in shown else [*shown[:-1], sweep.winner]


def _curve_axis(values: Sequence[float], metric: Metric) -> tuple[Axis, bool]:
    """The axis of the curves, and whether values lie beyond it: losses that ran away do not press down all others."""
    if metric.is_share:
        return fit_axis(values, is_log=False), False
    ordered = sorted(values)
    lower, upper = ordered[0], ordered[len(ordered) * 3 // 4]
    limit = upper + 3 * (upper - lower)
    return fit_axis([value for value in values if value <= limit]), ordered[-1] > limit


def parallel_card(sweep: Sweep) -> Markup | None:
    """Return the searched keys and the metric as parallel coordinates; None with fewer than two keys."""
    keys = sweep.keys[:9]
    trials = [trial for trial in _shown(sweep) if trial.score is not None and all(key in trial.values for key in keys)]
    if len(keys) < 2 or not trials:
        return None
    axes = [(key, *_value_axis(trials, key)) for key in keys]
    score_axis = _score_axis(sweep)
    coordinates = [Coordinate(sweep.names[key], _ticks(axis, text)) for key, axis, _, text in axes]
    coordinates.append(Coordinate(sweep.metric.label, _score_ticks(sweep, score_axis)))
    lines = []
    for trial in reversed(trials):
        shares = [axis.share(place(trial.values[key])) for key, axis, place, _ in axes]
        looks = sweep.series(trial, sweep.metric.name)
        tip = f"{trial.id}: {sweep.metric.text(trial.score)}, {sweep.settings(trial)}"
        lines.append(
            ([*shares, score_axis.share(trial.score or 0.0)], replace(looks, tip=tip, style=sweep.style(trial)))
        )
    lines.sort(key=lambda line: line[1].style == "best")
    picture = parallel_coordinates(coordinates, lines, title="Searched values and what they led to")
    note = "Each line is a trial: its values, and at the right its best value of the metric."
    return card(
        "From values to result",
        scroll(picture),
        _scale(sweep),
        note=note,
        id_="parallel",
        is_wide=len(coordinates) > NARROW,
    )


def _value_axis(trials: Sequence[Trial], key: str) -> tuple[Axis, Callable[[Any], float], Text]:
    """The axis of a searched key, where a value stands on it, and the text of a tick: numbers, or names at 0, 1, ..."""
    values = [trial.values[key] for trial in trials]
    if all(is_number(value) for value in values):
        return fit_axis(values, is_tight=True), float, number_text
    buckets = make_buckets(trials, key)

    def place(value: Any) -> float:
        return float(buckets.index(value) or 0)

    def text(tick: float) -> str:
        is_name = tick == int(tick) and 0 <= tick < len(buckets.labels)
        return buckets.labels[int(tick)] if is_name else ""

    return Axis(-0.5, len(buckets.labels) - 0.5), place, text


def _ticks(axis: Axis, text: Text) -> list[tuple[float, str]]:
    return [(axis.share(tick), text(tick)) for tick in axis.ticks() if text(tick)]


def _score_axis(sweep: Sweep) -> Axis:
    ends = sorted((sweep.shades.worst, sweep.shades.best))
    return fit_axis(ends, is_log=False, is_tight=True)


def _score_ticks(sweep: Sweep, axis: Axis) -> list[tuple[float, str]]:
    return [(axis.share(tick), sweep.metric.tick(tick)) for tick in axis.ticks()]


def confirmation_card(sweep: Sweep) -> Markup | None:
    """Return the best trials again over seeds, with the interval of the mean."""
    top = (sweep.confirmation or {}).get("top") or []
    if not top:
        return None
    metric = Metric("val_top1")
    rows = [
        (one["trial"], one["top1"], one["mean"], tuple(one["interval"]) if one.get("interval") else None) for one in top
    ]
    best = next((index for index, one in enumerate(rows) if sweep.winner and one[0] == sweep.winner.id), -1)
    picture = interval_chart(rows, title="The best over seeds", x_label=metric.label, x_text=metric.tick, best=best)
    lines = [
        Row(
            [name, Value(str(len(values)), len(values)), Value(metric.text(mean), mean), _interval(interval)],
            name,
            "best" if index == best else None,
        )
        for index, (name, values, mean, interval) in enumerate(rows)
    ]
    note = "The best trials trained again from other seeds: rings are single runs, dots their means."
    return card(
        "Confirmed over seeds",
        picture,
        table(["trial", "seeds", "mean", "95 % interval"], lines),
        note=note,
        id_="confirm",
    )


def _interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"
