"""The sections of an evaluation: figures per class, the confusion matrix, calibration, the most confident mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tltrain.report.charts import Cell, heat_map
from tltrain.report.layout import Row, Value, card, row, scroll, share_bar, table
from tltrain.report.markup import Markup, element, shortened
from tltrain.report.pictures import pictures_card
from tltrain.report.scales import Axis
from tltrain.report.svg import Plot, chart, draw_line, draw_text
from tltrain.report.trials import Metric

MAX_CLASSES = 1000
MAX_MATRIX = 24
MAX_PAIRS = 10
MAX_MISTAKES = 20
_NAME = 60
_STRIP = 40


def sections(
    evaluation: Mapping[str, Any], predictions: pa.Table | None, thumbnails: pa.Table | None
) -> list[Markup | None]:
    """Return the sections of the contents of evaluation.json, predictions.parquet and thumbnails.parquet."""
    split = str(evaluation.get("split", "test"))
    halves = [
        confusion_card(evaluation, split),
        pairs_card(evaluation, split),
        calibration_card(evaluation, split),
        classes_card(evaluation, split),
    ]
    return [row(*halves), *_examples(predictions, thumbnails, split)]


def _examples(predictions: pa.Table | None, thumbnails: pa.Table | None, split: str) -> list[Markup | None]:
    """Single images, as pictures where the run has kept some."""
    wrong, title = _wrong(predictions), "Most confident mistakes"
    note = f"The surest of {0 if wrong is None else wrong.num_rows:,} mistakes. Above: the true class."
    mistakes = pictures_card(thumbnails, "mistake", title, note, "mistakes") or mistakes_card(wrong)
    note = f"The {split} images with the least probable prediction, right or wrong. Above: the true class."
    return [mistakes, pictures_card(thumbnails, "uncertain", "Most uncertain images", note, "uncertain")]


def classes_card(evaluation: Mapping[str, Any], split: str) -> Markup:
    """Return precision, recall and F1 per class, the worst F1 first."""
    found = sorted(evaluation["per_class"], key=lambda one: (one["f1"], one["class"]))
    rows = [
        Row(
            [
                shortened(one["class"], _NAME),
                Value(f"{one['support']:,}", one["support"]),
                *(Value(f"{one[name]:.3f}", one[name]) for name in ("precision", "recall", "f1")),
                share_bar(one["f1"]),
            ]
        )
        for one in found[:MAX_CLASSES]
    ]
    note = f"Of the {split} images; the lowest F1 first."
    if len(found) > MAX_CLASSES:
        note = f"The {MAX_CLASSES:,} of {len(found):,} classes with the lowest F1, on the {split} images."
    heads = ["class", "images", "precision", "recall", "F1", ""]
    return card("Classes", table(heads, rows, is_tall=True), note=note, id_="classes")


def worst_pairs(evaluation: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Return (count, true class, predicted class) of all confusions, the most frequent first."""
    matrix = evaluation["confusion_matrix"]
    pairs = [
        (count, true, predicted)
        for true, counts in enumerate(matrix)
        for predicted, count in enumerate(counts)
        if count and true != predicted
    ]
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))


def pairs_card(evaluation: Mapping[str, Any], split: str) -> Markup:
    """Return the pairs of classes that are confused most."""
    names = [one["class"] for one in evaluation["per_class"]]
    supports = [one["support"] for one in evaluation["per_class"]]
    pairs = worst_pairs(evaluation)
    if not pairs:
        return card("Worst pairs", element("p", f"All {split} images were named correctly."), id_="pairs")
    rows = [
        Row(
            [
                shortened(names[true], _NAME),
                shortened(names[predicted], _NAME),
                Value(f"{count:,}", count),
                _share(count, supports[true]),
            ]
        )
        for count, true, predicted in pairs[:MAX_PAIRS]
    ]
    wrong = sum(count for count, _, _ in pairs)
    top = sum(count for count, _, _ in pairs[:MAX_PAIRS])
    note = f"These {len(rows)} account for {top:,} of {wrong:,} mistakes; the share is that of the true class."
    heads = ["true", "predicted", "images", "share"]
    return card("Worst pairs", table(heads, rows, wrapped=(0, 1)), note=note, id_="pairs")


def _share(count: int, support: int) -> Value:
    return Value(f"{100 * count / support:.1f} %", count / support)


def confusion_card(evaluation: Mapping[str, Any], split: str) -> Markup:
    """Return the confusion matrix, the most confused classes first, as a heat map."""
    names = [one["class"] for one in evaluation["per_class"]]
    order = _confused_first(evaluation)[:MAX_MATRIX]
    cells = _cells(evaluation, order, has_text=len(order) <= 12)
    labels = [shortened(names[index], _NAME) for index in order]
    size = (32, 32) if len(order) <= 12 else (14, 14)
    picture = heat_map(
        labels, labels, cells, title="Confusion matrix", x_label="predicted", y_label="true", cell_size=size
    )
    note = (
        f"Of the {split} images; the most confused classes first. Blue: right, red: wrong, by share of the true class."
    )
    if len(order) < len(names):
        note = f"The {len(order)} most confused of {len(names):,} classes, {split} images. Blue: right, red: wrong."
    return card("Confusion matrix", scroll(picture), note=note, id_="confusion")


def _confused_first(evaluation: Mapping[str, Any]) -> list[int]:
    """Classes by the images that were wrongly taken out of them or put into them; partners stand side by side."""
    matrix = evaluation["confusion_matrix"]
    order: list[int] = []
    placed: set[int] = set()
    for _, true, predicted in worst_pairs(evaluation):
        for index in (true, predicted):
            if index not in placed:
                placed.add(index)
                order.append(index)
    return order + [index for index in range(len(matrix)) if index not in placed]


def _cells(evaluation: Mapping[str, Any], order: Sequence[int], *, has_text: bool) -> dict[tuple[int, int], Cell]:
    matrix, classes = evaluation["confusion_matrix"], evaluation["per_class"]
    shares = [matrix[t][p] / classes[t]["support"] for t in order for p in order if t != p and matrix[t][p]]
    worst = max(shares, default=1.0)
    cells = {}
    for row_index, true in enumerate(order):
        for column, predicted in enumerate(order):
            count = matrix[true][predicted]
            if count:
                share = count / classes[true]["support"]
                style = f"q{min(8, int(share * 9))}" if true == predicted else f"e{1 + min(4, int(share / worst * 5))}"
                tip = (
                    f"{shortened(classes[true]['class'], _NAME)} taken for "
                    f"{shortened(classes[predicted]['class'], _NAME)}: {count:,} ({100 * share:.1f} %)"
                )
                cells[row_index, column] = Cell(str(count) if has_text else "", tip, style)
    return cells


def calibration_card(evaluation: Mapping[str, Any], split: str) -> Markup:
    """Return how often the network is right at each level of its confidence, and below it how many images are there."""
    bins = [one for one in evaluation["calibration_bins"] if one["count"]]
    plot = Plot(Axis(0, 1), Axis(0, 1), height=290)
    percent = Metric("val_top1").tick
    most = max((one["count"] for one in bins), default=1)
    picture = chart(
        "Reliability diagram",
        plot.height + _STRIP + 8,
        plot.draw("confidence", "accuracy", percent, percent),
        *(_bin(plot, one, most) for one in bins),
        draw_line(plot.at_x(0), plot.at_y(0), plot.at_x(1), plot.at_y(1), "diagonal"),
        draw_text("images", plot.left - 6, plot.height + _STRIP, "tick", "end"),
    )
    error = evaluation["expected_calibration_error"]
    note = (
        f"Bars: how often it was right, marks: how sure it was, red: surer than right. "
        f"Expected calibration error {100 * error:.1f} % on the {split} images."
    )
    return card("Reliability", picture, note=note, id_="reliability")


def _bin(plot: Plot, one: Mapping[str, Any], most: int) -> Markup:
    left, right = plot.at_x(one["lower"]) + 1, plot.at_x(one["upper"]) - 1
    accuracy, said = one["accuracy"], one["confidence"]
    tip = (
        f"{one['count']:,} images with confidence {one['lower']:.2f} to {one['upper']:.2f}, "
        f"{100 * said:.1f} % on average: {100 * accuracy:.1f} % right"
    )

    def box(top: float, foot: float, style: str) -> Markup:
        return element("rect", x=left, y=top, width=right - left, height=max(0.0, foot - top), class_=style)

    strip, foot = _STRIP * one["count"] / most, plot.height + _STRIP
    return element(
        "g",
        element("title", tip),
        box(plot.at_y(accuracy), plot.at_y(0), "bar"),
        box(plot.at_y(said), plot.at_y(accuracy), "gap"),
        draw_line(left, plot.at_y(said), right, plot.at_y(said), "said"),
        box(foot - strip, foot, "count"),
    )


def _wrong(predictions: pa.Table | None) -> pa.Table | None:
    if predictions is None or not predictions.num_rows:
        return None
    return predictions.filter(pc.invert(predictions["correct"]))  # pyright: ignore[reportAttributeAccessIssue]


def mistakes_card(wrong: pa.Table | None) -> Markup | None:
    """Return the rows of wrong predictions that the network was surest of."""
    if wrong is None:
        return None
    top = wrong.sort_by([("probability", "descending")]).slice(0, MAX_MISTAKES).to_pylist()
    if not top:
        return None
    rows = [
        Row(
            [
                Value(f"{100 * one['probability']:.1f} %", one["probability"]),
                shortened(one["label"], _NAME),
                shortened(one["prediction"], _NAME),
                shortened(one["id"], _NAME),
            ]
        )
        for one in top
    ]
    heads = ["confidence", "true", "predicted", "image"]
    note = f"The {len(rows)} surest of {wrong.num_rows:,} mistakes."
    return card(
        "Most confident mistakes", table(heads, rows, wrapped=(1, 2, 3), is_tall=True), note=note, id_="mistakes"
    )
