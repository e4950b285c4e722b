"""A run as lines of text of at most 80 columns: the header, one line per epoch, the result."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

COLUMNS = " epoch  train loss  top-1   val loss  top-1   top-5        lr  images/s    time"


def header(facts: Mapping[str, Any]) -> list[str]:
    """Return the header of a run from what `tltrain.header` gathers, with its `devices`."""
    packages = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if name != "tltrain")
    sizes = f"{facts['num_train']:,} train, {facts['num_val']:,} val, {facts['num_test']:,} test images"
    parts = [
        ("tltrain", f"{facts['versions']['tltrain']} ({packages})"),
        ("Devices", facts["devices"]),
        ("Workers", facts["workers"]),
        ("Data", f"{sizes}, {len(facts['classes'])} classes, {facts['image_size']} px"),
        *_model_parts(facts),
        ("Run folder", facts["run"]),
        *(("Note", note) for note in facts["notes"]),
    ]
    return [line for label, text in parts for line in _labelled(label, text)]


def _model_parts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    trained, total, searched = facts["trained_parameters"], facts["parameters"], facts["searched"]
    frozen = [stage["name"] for stage in facts["stages"] if not stage["trained"]]
    names = f"{frozen[0]} to {frozen[-1]}" if len(frozen) > 1 else "".join(frozen) or "nothing"
    text = f"{names} ({len(frozen)} of {len(facts['stages'])} stages)"
    by_trial = "model.freeze_depth" in (searched or ())
    model = f"{total:,} parameters" if by_trial else f"{trained:,} of {total:,} parameters train"
    return [
        ("Model", f"{facts['model']}: {model}"),
        ("Frozen", "each trial as it says" if by_trial else text),
        *([("Search", f"{', '.join(searched)} ({facts['search']})")] if searched else []),
    ]


def _labelled(label: str, text: str) -> list[str]:
    """Return a label and its text in lines of at most 80 columns; a path stays whole."""
    indent = f"{label:<12}"
    return textwrap.wrap(
        text, 80, initial_indent=indent, subsequent_indent=" " * 12, break_long_words=False, break_on_hyphens=False
    )


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
    if state.get("num_skipped"):
        lines.append(f"Left out    {state['num_skipped']:,} of {state['num_images']:,} images: skipped.json")
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
