"""A run as lines of text of at most 80 columns: the header, one line per epoch, the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from tltrain.run_folder import RunFolder

COLUMNS = " epoch  train loss  top-1   val loss  top-1   top-5        lr  images/s    time"


def header(facts: Mapping[str, Any]) -> list[str]:
    """Return the header of a run from the facts that an explanation holds, plus `run`, `versions` and `workers`."""
    trained, total = facts["trained_parameters"], facts["parameters"]
    frozen = [stage["name"] for stage in facts["stages"] if not stage["trained"]]
    frozen_text = f"{frozen[0]} to {frozen[-1]}" if len(frozen) > 1 else "".join(frozen) or "nothing"
    sizes = f"{facts['num_train']:,} train, {facts['num_val']:,} val, {facts['num_test']:,} test"
    lines = [
        f"Run         {facts['run']}",
        f"Data        {sizes} images, {len(facts['classes'])} classes, {facts['image_size']} px",
        f"Model       {facts['model']}: {trained:,} of {total:,} parameters train",
        f"Frozen      {frozen_text} ({len(frozen)} of {len(facts['stages'])} stages)",
        f"Workers     {facts['workers']}",
        f"Versions    {facts['versions']}",
    ]
    return lines + [f"Note        {note}" for note in facts["notes"]]


def epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    """Return the line of one row of metrics.jsonl, in the columns of COLUMNS."""
    return (
        f"{row['epoch']:>3}/{epochs:<3}{row['train_loss']:>11.4f}{_percent(row['train_top1'])}"
        f"{_number(row.get('val_loss'), 10)}{_percent(row.get('val_top1'))}{_percent(row.get('val_top5'))}"
        f"{row['learning_rate']:>10.2g}{row['train_images_per_s']:>10.0f}{row['epoch_s']:>6.1f} s"
    )


def _percent(value: float | None) -> str:
    return f"{'-':>7}" if value is None else f"{100 * value:>6.1f}%"


def _number(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.4f}"


def result(state: Mapping[str, Any], run: str) -> list[str]:
    """Return the closing lines from run.json's `state` of a finished run at the path or address `run`."""
    lines, evaluation, best = [], state.get("evaluation"), state.get("best")
    if best:
        lines.append(
            f"Best epoch  {best['epoch']} (validation top-1 {100 * best['top1']:.1f} %, loss {best['loss']:.4f})"
        )
    if evaluation:
        low, high = evaluation["accuracy_interval_95"]
        name = f"{evaluation['split'].capitalize()} accuracy"
        lines.append(
            f"{name} {evaluation['accuracy']:.4f}, 95 % interval {low:.3f} to {high:.3f}, "
            f"{evaluation['num_images']:,} images"
        )
    return [
        *lines,
        f"Run folder  {run}",
        "            model/           weights, classes, preprocessing",
        "            evaluation.json  accuracy per class, confusion matrix, calibration",
        f"Next        tltrain evaluate {run} --data SOURCE",
    ]


def explanation(facts: Mapping[str, Any], workers: str) -> list[str]:
    """Return the table of a spec worked out: one line per stage, then the data and where it would run."""
    rows = [f"{'stage':<24}{'parameters':>12}  {'state':<13}{'peak lr':>9}  {'BatchNorm':<9}{'forward':>8}"]
    for stage in facts["stages"]:
        later = stage["trained_from_epoch"]
        mode = "trained" if stage["trained"] else f"from epoch {later}" if later else "frozen"
        rate = "-" if stage["learning_rate"] is None else f"{stage['learning_rate']:.2g}"
        norm = {"none": "-", "batch statistics": "batch", "stored statistics": "stored"}[stage["batchnorm"]]
        rows.append(
            f"{stage['name'][:23]:<24}{stage['parameters']:>12,}  {mode:<13}{rate:>9}  {norm:<9}"
            f"{100 * stage['forward_share']:>6.1f} %"
        )
    trained, total = facts["trained_parameters"], facts["parameters"]
    sizes = f"{facts['num_train']:,} train, {facts['num_val']:,} validation, {facts['num_test']:,} test images"
    return [
        *rows,
        "",
        f"Trained     {trained:,} of {total:,} parameters ({100 * trained / total:.1f} %)",
        f"Data        {sizes}, {len(facts['classes'])} classes, {facts['image_size']} px",
        f"Steps       {facts['steps_per_epoch']:,} per epoch",
        f"Workers     {workers}",
        *(f"Note        {note}" for note in facts["notes"]),
    ]


def evaluation(numbers: Mapping[str, Any]) -> list[str]:
    """Return an evaluation as lines: the headline, then one line per class."""
    low, high = numbers["accuracy_interval_95"]
    top5 = numbers["top5_accuracy"]
    return [
        f"Accuracy    {numbers['accuracy']:.4f}, 95 % interval {low:.3f} to {high:.3f}",
        f"Images      {numbers['num_images']:,}",
        *([] if top5 is None else [f"Top-5       {top5:.4f}"]),
        f"Loss        {numbers['loss']:.4f}",
        f"Calibration expected error {numbers['expected_calibration_error']:.4f}",
        "",
        f"{'class':<40}{'images':>8}{'precision':>11}{'recall':>9}{'F1':>8}",
        *(
            f"{row['class'][:39]:<40}{row['support']:>8}{row['precision']:>11.3f}{row['recall']:>9.3f}{row['f1']:>8.3f}"
            for row in numbers["per_class"]
        ),
    ]


class Follower:
    """Prints a line for each new epoch of a run, from its metrics.jsonl."""

    def __init__(self, run: RunFolder, epochs: int, write: Callable[[str], None]) -> None:
        self._run, self._epochs, self._write = run, epochs, write
        self._shown = {(row["lane"], row["step"]) for row in run.metrics()}
        self._interval_s = 0.2 if run.folder.local_path else 5.0
        self._next = 0.0
        self._has_columns = False

    def poll(self, *, now: bool = False) -> None:
        """Print what is new; looks at the storage only every so often unless `now`."""
        if not now and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._interval_s
        for row in self._run.metrics():
            if (row["lane"], row["step"]) not in self._shown:
                self._shown.add((row["lane"], row["step"]))
                self._print(row)

    def _print(self, row: Mapping[str, Any]) -> None:
        if not self._has_columns:
            self._write(COLUMNS)
            self._has_columns = True
        self._write(epoch_line(row, self._epochs))
