"""The page of a comparison: runs' curves over each other, their numbers, what differs, and whether it is chance."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tltrain.arrow_files import read_parquet
from tltrain.report.chance import (
    Accuracy,
    Difference,
    common_hits,
    holm,
    paired_difference,
    unpaired_difference,
)
from tltrain.report.document import document
from tltrain.report.layout import Row, Value, card, join_words, row, table, tile
from tltrain.report.markup import Markup, element, shortened
from tltrain.report.scales import duration_text, number_text
from tltrain.report.svg import Series, line_chart
from tltrain.report.trials import Metric
from tltrain.run_folder import RunFolder

MAX_ALL_PAIRS = 6
"""Runs of which every two are compared; of more, each is compared with the first."""
MAX_CLASSES = 300
_COLORS = 8
_NAME = 40


@dataclass(frozen=True)
class Compared:
    """A run as a comparison shows it: `name` in the page, its number, and its folder."""

    name: str
    number: int
    run: RunFolder

    @cached_property
    def state(self) -> dict[str, Any]:
        """What run.json says."""
        return self.run.state()

    @cached_property
    def evaluation(self) -> dict[str, Any] | None:
        """What evaluation.json says; None before the end."""
        return self.run.read_json("evaluation.json") if self.run.folder.exists("evaluation.json") else None

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The metrics of its epochs; of a sweep, those of the winner."""
        winner = self.state.get("winner_run")
        return (RunFolder(self.run.folder.child(winner)) if winner else self.run).metrics()

    @cached_property
    def predictions(self) -> dict[str, tuple[str, bool]]:
        """Image -> (label, whether the prediction was right); empty where there are none or ids are not unique."""
        if not self.run.folder.exists("predictions.parquet"):
            return {}
        content = self.run.folder.read_bytes("predictions.parquet")
        rows = read_parquet(content, ["id", "label", "correct"]).to_pylist()
        found = {one["id"]: (one["label"], one["correct"]) for one in rows}
        return found if len(found) == len(rows) else {}

    @property
    def style(self) -> str:
        """The CSS classes of its line."""
        return f"c{self.number % _COLORS}" + (" dim" if self.number >= _COLORS else "")


def build_comparison(
    runs: Sequence[RunFolder],
    names: Sequence[str],
    spec: Mapping[str, Sequence[Any]],
    differences: Sequence[Difference],
) -> str:
    """Return the page of `runs` called `names`; its `differences` come from `find_differences`.

    spec: what of the specs differs, dotted key -> one value per run. Raises StorageError.
    """
    compared = [Compared(name, number, run) for number, (name, run) in enumerate(zip(names, runs, strict=True))]
    body = element(
        "main",
        _header(compared),
        element("div", *(_tile(one) for one in compared), class_="tiles"),
        numbers_card(compared),
        chance_card(compared, differences),
        row(*_curves(compared)),
        spec_card(compared, spec),
        classes_card(compared),
    )
    return document(f"{join_words(list(names), 3)} - tltrain", body)


def find_differences(runs: Sequence[RunFolder], names: Sequence[str]) -> list[Difference]:
    """Return how the accuracies of runs differ: of every two, or of each from the first where there are many."""
    compared = [Compared(name, number, run) for number, (name, run) in enumerate(zip(names, runs, strict=True))]
    evaluated = [one for one in compared if one.evaluation]
    pairs = itertools.combinations(evaluated, 2)
    if len(evaluated) > MAX_ALL_PAIRS:
        pairs = ((evaluated[0], other) for other in evaluated[1:])
    return holm([_difference(one, other) for one, other in pairs])


def _difference(one: Compared, other: Compared) -> Difference:
    """The second run's accuracy less the first's, which it is compared with."""
    hits = common_hits(other.predictions, one.predictions)
    if hits[0]:
        return paired_difference(other.name, one.name, *hits)
    return unpaired_difference(other.name, one.name, _accuracy(other), _accuracy(one))


def _accuracy(one: Compared) -> Accuracy:
    assert one.evaluation is not None
    low, high = one.evaluation["accuracy_interval_95"]
    return Accuracy(one.evaluation["accuracy"], (low, high), one.evaluation["num_images"])


def _header(compared: Sequence[Compared]) -> Markup:
    names = join_words([shortened(one.name, _NAME) for one in compared], 8)
    title = element("h1", f"{len(compared)} runs compared")
    return element("header", element("div", title, class_="top"), element("div", names, class_="soft"))


def _tile(one: Compared) -> Markup:
    name = element("span", element("i", "", class_=f"swatch {one.style}"), shortened(one.name, _NAME))
    if one.evaluation is None:
        return tile("-", name, str(one.state.get("state", "not started")))
    low, high = one.evaluation["accuracy_interval_95"]
    note = f"{one.evaluation.get('split', 'test')} accuracy, {100 * low:.1f} to {100 * high:.1f} %"
    return tile(f"{100 * one.evaluation['accuracy']:.1f} %", name, note)


def numbers_card(compared: Sequence[Compared]) -> Markup:
    """Return the numbers of all runs, a row each."""
    heads = ["run", "state", "test accuracy", "95 % interval", "images", "test loss", "calibration error"]
    heads += ["best epoch", "val top-1", "val loss", "time"]
    note = "The interval is that of the accuracy by itself. Whether runs differ is below: it can be told more sharply."
    return card("Numbers", table(heads, [_numbers(one) for one in compared]), note=note, id_="numbers")


def _numbers(one: Compared) -> Row:
    evaluation, best, share = one.evaluation or {}, one.state.get("best") or {}, Metric("val_top1")
    interval = evaluation.get("accuracy_interval_95")
    start, end = one.state.get("started_at"), one.state.get("finished_at")
    seconds = None if start is None or end is None else end - start
    return Row(
        [
            shortened(one.name, _NAME),
            str(one.state.get("state", "not started")),
            Value(share.text(evaluation.get("accuracy")), evaluation.get("accuracy")),
            Value("-") if interval is None else Value(_interval_text(interval), interval[0]),
            _number(evaluation.get("num_images"), "{:,}"),
            _number(evaluation.get("loss"), "{:.4f}"),
            _number(evaluation.get("expected_calibration_error"), "{:.4f}"),
            _number(best.get("epoch"), "{}"),
            Value(share.text(best.get("top1")), best.get("top1")),
            _number(best.get("loss"), "{:.4f}"),
            Value("-" if seconds is None else duration_text(seconds), seconds),
        ],
        one.name,
    )


def _interval_text(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def _number(value: float | None, text: str) -> Value:
    return Value("-" if value is None else text.format(value), value)


def chance_card(compared: Sequence[Compared], differences: Sequence[Difference]) -> Markup | None:
    """Return for pairs of runs whether their accuracies differ by more than chance."""
    if not differences:
        return None
    heads = ["run", "against", "difference", "95 % interval", "images", "right alone", "wrong alone", "p"]
    rows = [_difference_row(one) for one in differences]
    notes = ["In points of accuracy."]
    if any(one.is_paired for one in differences):
        notes.append("Runs that saw the same images are compared image by image (McNemar's test).")
    if not all(one.is_paired for one in differences):
        notes.append("A dash where they saw different images, so that only their counts can be compared.")
    if len(differences) > 1:
        notes.append(f"p is adjusted for {len(differences)} comparisons (Holm).")
    notes += ["Larger than chance: p below 0.05. Chance is which images are tested; another seed moves results too."]
    title = "Is the difference larger than chance?"
    return card(title, table([*heads, "larger than chance"], rows), note=" ".join(notes), id_="chance")


def _difference_row(one: Difference) -> Row:
    low, high = one.interval
    return Row(
        [
            shortened(one.one, _NAME),
            shortened(one.other, _NAME),
            Value(f"{100 * one.value:+.1f}", one.value),
            Value(f"{100 * low:+.1f} to {100 * high:+.1f}", low),
            Value(f"{one.images:,}", one.images),
            Value(f"{one.only_one:,}" if one.is_paired else "-", one.only_one if one.is_paired else None),
            Value(f"{one.only_other:,}" if one.is_paired else "-", one.only_other if one.is_paired else None),
            Value(p_text(one.p_adjusted), one.p_adjusted),
            "yes" if one.is_clear else "no",
        ],
        one.one,
        "clear" if one.is_clear else None,
    )


def difference_lines(differences: Sequence[Difference]) -> list[str]:
    """Return a line of text per difference, about 80 columns with names of usual length."""
    lines = [""] if differences else []
    for one in differences:
        low, high = one.interval
        verdict = "larger than chance" if one.is_clear else "may be chance"
        lines.append(
            f"{one.one} against {one.other}: {100 * one.value:+.1f} points "
            f"({100 * low:+.1f} to {100 * high:+.1f}), p {p_text(one.p_adjusted)}: {verdict}"
        )
    return lines


def p_text(p_value: float) -> str:
    """Return a p-value as people write it."""
    return "< 0.001" if p_value < 0.001 else number_text(p_value, 2)


def _curves(compared: Sequence[Compared]) -> list[Markup | None]:
    columns = (("val_top1", True), ("val_loss", False), ("train_loss", False), ("learning_rate", True))
    return [_curve_card(compared, Metric(column, is_high)) for column, is_high in columns]


def _series(one: Compared, column: str) -> Series:
    points = [(row["epoch"], row[column]) for row in one.rows if row.get(column) is not None]
    style = f"{one.style} dot-only" if len(points) == 1 else one.style
    return Series(points, shortened(one.name, _NAME), style, one.name)


def _curve_card(compared: Sequence[Compared], metric: Metric) -> Markup | None:
    series = [one for one in (_series(each, metric.name) for each in compared) if one.points]
    if not series:
        return None
    legend = [(shortened(one.tip, 24), one.style.removesuffix(" dot-only")) for one in series]
    picture = line_chart(
        series,
        title=metric.title,
        x_label="epoch",
        y_label=metric.label,
        y_text=metric.tick,
        legend=legend,
        data_unit="%" if metric.is_share else "",
    )
    return card(metric.title, picture, id_=f"curves-{metric.name.replace('_', '-')}")


def spec_card(compared: Sequence[Compared], spec: Mapping[str, Sequence[Any]]) -> Markup:
    """Return the settings that differ."""
    if not spec:
        return card("Settings", element("p", "The specs are the same."), id_="settings")
    rows = [Row([key, *("-" if value is None else str(value) for value in values)]) for key, values in spec.items()]
    heads = ["setting", *(shortened(one.name, _NAME) for one in compared)]
    columns = tuple(range(1, len(heads)))
    return card("Settings that differ", table(heads, rows, wrapped=columns), id_="settings")


def classes_card(compared: Sequence[Compared]) -> Markup | None:
    """Return F1 of every class in every run, the class with the widest spread first; None where classes differ."""
    evaluated = [one for one in compared if one.evaluation]
    scores = [{c["class"]: c["f1"] for c in (one.evaluation or {})["per_class"]} for one in evaluated]
    if len(evaluated) < 2 or any(other.keys() != scores[0].keys() for other in scores[1:]):
        return None
    spread = {name: max(s[name] for s in scores) - min(s[name] for s in scores) for name in scores[0]}
    order = sorted(spread, key=lambda name: (-spread[name], name))[:MAX_CLASSES]
    rows = [
        Row(
            [
                shortened(name, 60),
                *(Value(f"{each[name]:.3f}", each[name]) for each in scores),
                Value(f"{spread[name]:.3f}", spread[name]),
            ]
        )
        for name in order
    ]
    heads = ["class", *(shortened(one.name, _NAME) for one in evaluated), "spread"]
    note = "F1 of each class; those in which the runs differ most first."
    return card("Classes", table(heads, rows, is_tall=True), note=note, id_="classes")
