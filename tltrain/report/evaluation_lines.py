"""An evaluation as lines of at most 80 columns: the headline, calibration, what is confused, one line per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tltrain.report.evaluation_page import worst_pairs
from tltrain.report.markup import shortened

MAX_CLASSES = 50
MAX_PAIRS = 3
_NAME = 35
_COLUMNS = f"{'class':<{_NAME}}{'images':>8}{'right':>8}{'precision':>11}{'recall':>9}{'F1':>8}"


def evaluation_lines(numbers: Mapping[str, Any]) -> list[str]:
    """Return the lines of what `evaluate_model` gave."""
    bootstrap = numbers["bootstrap"]
    again = f"bootstrap ({bootstrap['resamples']:,} resamples, seed {bootstrap['seed']})"
    low, high = numbers["accuracy_interval_95"]
    top5 = numbers["top5_accuracy"]
    return [
        f"Images      {numbers['num_images']:,} in {len(numbers['per_class']):,} classes",
        f"Accuracy    {numbers['accuracy']:.4f}, 95 % intervals:",
        f"            {low:.4f} to {high:.4f}  Wilson",
        f"            {_interval(bootstrap['accuracy_interval_95'])}  {again}",
        *([] if top5 is None else [f"Top-5       {top5:.4f}"]),
        f"Macro F1    {numbers['macro']['f1']:.4f}, 95 % interval {_interval(bootstrap['macro_f1_interval_95'])} "
        "(bootstrap)",
        *_calibration(numbers),
        *_confused(numbers),
        "",
        _COLUMNS,
        *_classes(numbers),
    ]


def _interval(ends: Sequence[float]) -> str:
    return f"{ends[0]:.4f} to {ends[1]:.4f}"


def _calibration(numbers: Mapping[str, Any]) -> list[str]:
    """Lines with NLL, calibration error and Brier score, each also as it was before a temperature was fitted."""
    names = {"NLL": "loss", "ECE": "expected_calibration_error", "Brier": "brier_score"}
    before, temperature = numbers.get("before"), numbers["temperature"]
    shown = [
        f"{short} {numbers[name]:.4f}" if before is None else f"{short} {before[name]:.4f} -> {numbers[name]:.4f}"
        for short, name in names.items()
    ]
    lines = [f"Calibration {', '.join(shown)}"]
    if before is not None:
        lines.append(f"            fitted to these images: temperature {temperature:.4f}, saved in model.json")
    elif temperature != 1:
        lines.append(f"            at the model's temperature, {temperature:.4f}")
    return lines


def _confused(numbers: Mapping[str, Any]) -> list[str]:
    classes = numbers["per_class"]
    lines = [
        f"{shortened(classes[true]['class'], 20)} taken for {shortened(classes[predicted]['class'], 20)}: "
        f"{count:,} of {classes[true]['support']:,}"
        for count, true, predicted in worst_pairs(numbers)[:MAX_PAIRS]
    ]
    return [f"{'Confused' if index == 0 else '':<12}{line}" for index, line in enumerate(lines)]


def _classes(numbers: Mapping[str, Any]) -> list[str]:
    """One line per class; of very many the ones with the lowest F1."""
    classes, matrix = numbers["per_class"], numbers["confusion_matrix"]
    shown = list(range(len(classes)))
    if len(shown) > MAX_CLASSES:
        shown = sorted(shown, key=lambda index: classes[index]["f1"])[:MAX_CLASSES]
    lines = [_class_line(classes[index], matrix[index][index]) for index in shown]
    if len(shown) < len(classes):
        lines.append(f"The {len(shown)} classes with the lowest F1; --json has all {len(classes):,}")
    return lines


def _class_line(row: Mapping[str, Any], right: int) -> str:
    return (
        f"{shortened(row['class'], _NAME - 1):<{_NAME}}{row['support']:>8,}{right:>8,}{row['precision']:>11.3f}"
        f"{row['recall']:>9.3f}{row['f1']:>8.3f}"
    )
