"""Folders of runs and sweeps as training leaves them, with made-up but plausible numbers."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from tltrain.run_folder import RunFolder

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
HOSTILE = "<script>alert('x')</script>\"&\x07"
STAGES = 8
SPEC = """\
version: 1
name: {name}
model:
  name: efficientnet_lite0   # pretrained on ImageNet
  freeze_depth: all
data:
  train: data/fashion-mnist/train.parquet
  val: 0.1
  test: data/fashion-mnist/test.parquet
optim:
  name: adamw
  learning_rate: 0.003
train:
  epochs: {epochs}
"""
SWEEP_SPEC = """\
sweep:
  metric: {metric}
  scheduler: asha
"""


def grid_values(
    rates: Sequence[float] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0), depths: Sequence[Any] = (6, "all")
) -> list[dict[str, Any]]:
    """The trials of a grid over learning rate and freeze depth."""
    return [{"optim.learning_rate": rate, "model.freeze_depth": depth} for depth in depths for rate in rates]


def random_values(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The trials of a random search over five keys."""
    random = Random(seed)
    return [
        {
            "optim.learning_rate": 10 ** random.uniform(-4, -0.5),
            "model.freeze_depth": random.choice([4, 6, "all"]),
            "optim.name": random.choice(["sgd", "adamw"]),
            "train.label_smoothing": random.uniform(0, 0.2),
            "optim.weight_decay": random.choice([0.0, 0.01, 0.05]),
        }
        for _ in range(count)
    ]


def write_sweep(
    folder: Path,
    values: Sequence[dict[str, Any]],
    *,
    epochs: int = 6,
    state: str = "finished",
    metric: str = "val_top1",
    classes: Sequence[str] = CLASSES,
    images: int = 500,
    seed: int = 0,
    has_extras: bool = True,
) -> RunFolder:
    """Write a sweep that was stopped by ASHA in part; one that is `running` has pending trials and no evaluation."""
    random, run = Random(seed), RunFolder.at(str(folder.parent), folder.name)
    trials, rows = [], []
    for index, one in enumerate(values):
        entry, lines = _trial(f"t{index:04}", one, epochs, state, random, index)
        trials.append(entry)
        rows += lines
    run.write_spec(SPEC.format(name=run.name, epochs=epochs) + SWEEP_SPEC.format(metric=metric))
    run.update(
        kind="sweep",
        name=run.name,
        state=state,
        started_at=1_750_000_000.0,
        versions={"python": "3.11.7", "torch": "2.14.1", "torchvision": "0.29.1"},
        workers="2 x 1 CPU, Ray Train on this machine",
        error=None,
    )
    run.write_json("trials.json", trials)
    run.record_metrics(rows)
    if has_extras:
        _write_extras(run, trials, random)
    if state == "finished":
        run.update(finished_at=1_750_000_038.4)
        write_evaluation(run, classes, images, seed)
    return run


def _trial(
    name: str, values: dict[str, Any], epochs: int, sweep_state: str, random: Random, index: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rate, depth = values.get("optim.learning_rate", 0.003), values.get("model.freeze_depth", "all")
    peak = 0.86 - 0.07 * abs(math.log10(rate / (0.02 if depth == "all" else 0.004))) ** 1.6
    peak += random.gauss(0, 0.004) - (0.03 if depth == "all" else 0.0)
    peak = max(0.1, peak)
    state, reason, done = "finished", "", epochs
    if sweep_state == "running" and index % 4 == 3:
        state, done = "pending", 0
    elif sweep_state == "running" and index % 4 == 2:
        state, done = "running", 2
    elif rate >= 1.0 and depth != "all":
        state, reason, done = "failed", "loss is not finite at step 93, learning rate 1", 1
    elif peak < 0.8:
        done = 1 if peak < 0.75 else 2
        state, reason = "stopped", f"stopped by asha at epoch {done}"
    frozen = depth if isinstance(depth, int) else STAGES
    rows = [_row(name, epoch, epochs, peak, rate, frozen, random) for epoch in range(1, done + 1)]
    if state == "failed":
        rows[-1] |= {"val_loss": None, "train_loss": None}
    best = max(rows, key=lambda row: row["val_top1"], default=None)
    entry = {
        "trial": name,
        "values": values,
        "state": state,
        "reason": reason,
        "epochs": done,
        "best": best and {"epoch": best["epoch"], "top1": best["val_top1"], "loss": best["val_loss"]},
        "seconds": round(0.7 * done + random.random(), 2),
    }
    return entry, rows


def _row(lane: str, epoch: int, epochs: int, peak: float, rate: float, frozen: int, random: Random) -> dict[str, Any]:
    top1 = min(0.999, max(0.05, peak - 0.25 * math.exp(-1.1 * epoch) + random.gauss(0, 0.004)))
    loss = 1.6 * (1 - top1) + 0.25 + (5.0 * rate if peak < 0.6 else 0.0)
    return {
        "lane": lane,
        "step": 32 * epoch,
        "epoch": epoch,
        "train_loss": loss * 0.9,
        "train_top1": min(1.0, top1 + 0.02 * epoch / epochs),
        "val_loss": loss,
        "val_top1": top1,
        "val_top5": min(1.0, top1 + 0.12),
        "learning_rate": rate * (0.5 + 0.5 * math.cos(math.pi * (epoch - 1) / epochs)) + 1e-9,
        "frozen_stages": frozen,
        "train_images_per_s": 900 + random.gauss(0, 20),
        "epoch_s": 2.1 + random.random() / 5,
    }


def _write_extras(run: RunFolder, trials: Sequence[dict[str, Any]], random: Random) -> None:
    run.write_json("sharing.json", sharing_record(trials))
    scored = [trial for trial in trials if trial["best"]]
    ranked = sorted(scored, key=lambda trial: -trial["best"]["top1"])[:3]
    top = []
    for trial in ranked:
        values = [trial["best"]["top1"] + random.gauss(-0.004, 0.006) for _ in range(3)]
        mean = sum(values) / 3
        top.append(
            {
                "trial": trial["trial"],
                "seeds": [0, 1, 2],
                "top1": values,
                "mean": mean,
                "interval": [mean - 0.012, mean + 0.012],
            }
        )
    run.write_json("confirm.json", {"top": top, "winner": max(top, key=lambda one: one["mean"])["trial"]})


def sharing_record(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What two groups have measured in a sweep whose frozen layers ran once, up to stage 6 and from there to all 8."""
    lanes = {
        one["trial"]: {str(depth if isinstance(depth := one["values"].get("model.freeze_depth"), int) else STAGES): n}
        for one in trials
        if (n := one["epochs"])
    }
    bench = {
        "images": {"train": 2000, "val": 200},
        "stages": [f"block{number}" for number in range(1, STAGES + 1)],
        "views": 1,
        "kept": {"train": [6, STAGES], "val": [6, STAGES]},
        "decoded": 2200,
        "decode_s": 1.9,
        "computed": [[-1, 6, 8.8, 2200], [6, STAGES, 2.2, 2200]],
        "lanes": lanes,
    }
    seconds = {"decode": 1.9, "prefix": 12.4, "lanes": 21.7, "validation": 4.0, "checkpoint": 1.2}
    around = {"waiting": 3.3, "winner": 4.8, "other": 6.1}
    return {"seconds": {**seconds, **around}, "workers": 1, "groups": 2, "benches": {"a1b2": bench}}


def write_run(folder: Path, *, epochs: int = 5, done: int | None = None, seed: int = 0) -> RunFolder:
    """Write a plain run of which `done` epochs are over (None: all, with its evaluation)."""
    random, run = Random(seed), RunFolder.at(str(folder.parent), folder.name)
    run.write_spec(SPEC.format(name=run.name, epochs=epochs))
    rows = [_row("lane-0", epoch, epochs, 0.85, 0.003, 3, random) for epoch in range(1, (done or epochs) + 1)]
    run.record_metrics(rows if done != 0 else [])
    run.update(name=run.name, state="running" if done is not None else "finished", started_at=1_750_000_000.0)
    if done is None:
        best = max(rows, key=lambda row: row["val_top1"])
        run.update(
            best={"epoch": best["epoch"], "top1": best["val_top1"], "loss": best["val_loss"], "step": best["step"]}
        )
        write_evaluation(run, CLASSES, 500, seed)
        seconds = {"decode": 2.4, "prefix": 9.9, "lanes": 14.2, "validation": 3.0, "checkpoint": 0.8, "test": 2.2}
        run.write_json("timings.json", {"first_step_at": 1_750_000_004.0, "seconds": {**seconds, "other": 3.1}})
    return run


def write_evaluation(run: RunFolder, classes: Sequence[str], images: int, seed: int = 0) -> None:
    """Write what an evaluation of `images` images leaves, in which neighbouring classes are confused."""
    random, count = Random(seed), len(classes)
    matrix = [[0] * count for _ in classes]
    rows = []
    for index in range(images):
        label = index % count
        is_hit = random.random() < 0.93 - 0.3 * (label % 3 == 0)
        predicted = (
            label if is_hit else random.choice([(label + 2) % count, (label + 1) % count, random.randrange(count)])
        )
        matrix[label][predicted] += 1
        probability = min(1.0, max(1 / count, random.gauss(0.88 if is_hit else 0.6, 0.12)))
        rows.append((f"img/{index:05}.png", classes[label], classes[predicted], probability, label == predicted))
    run.write_json("evaluation.json", {"split": "test", **_numbers(matrix, rows, classes)})
    columns = list(zip(*rows, strict=True))
    names = ("id", "label", "prediction", "probability", "correct")
    sink = io.BytesIO()
    pq.write_table(pa.table({name: list(column) for name, column in zip(names, columns, strict=True)}), sink)
    run.folder.write_bytes("predictions.parquet", sink.getvalue())
    _write_thumbnails(run, rows)


def _write_thumbnails(run: RunFolder, rows: Sequence[tuple[Any, ...]]) -> None:
    surest = sorted((row for row in rows if not row[4]), key=lambda row: -row[3])[:24]
    chosen = [("mistake", row) for row in surest]
    chosen += [("uncertain", row) for row in sorted(rows, key=lambda row: row[3])[:24]]
    names = ("kind", "id", "label", "prediction", "probability", "image")
    table = [
        dict(zip(names, (kind, *row[:4], _picture(index)), strict=True)) for index, (kind, row) in enumerate(chosen)
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(table), sink)
    run.folder.write_bytes("thumbnails.parquet", sink.getvalue())


def _picture(number: int) -> bytes:
    """A JPEG file of a few shapes."""
    image = Image.new("RGB", (96, 72), (40 + 4 * number, 90, 160 - 2 * number))
    ImageDraw.Draw(image).ellipse((20, 10, 50 + number, 60), fill=(240, 200, 80))
    sink = io.BytesIO()
    image.save(sink, "JPEG")
    return sink.getvalue()


def _numbers(matrix: list[list[int]], rows: list[tuple[Any, ...]], classes: Sequence[str]) -> dict[str, Any]:
    accuracy = sum(row[4] for row in rows) / len(rows)
    bins = []
    for index in range(15):
        inside = [row for row in rows if index / 15 < row[3] <= (index + 1) / 15]
        n = len(inside)
        bins.append(
            {
                "lower": index / 15,
                "upper": (index + 1) / 15,
                "count": n,
                "accuracy": sum(row[4] for row in inside) / n if n else None,
                "confidence": sum(row[3] for row in inside) / n if n else None,
            }
        )
    error = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins if b["count"]) / len(rows)
    per_class = []
    for index, name in enumerate(classes):
        support, predicted = sum(matrix[index]), sum(line[index] for line in matrix)
        hits = matrix[index][index]
        per_class.append(
            {
                "class": name,
                "support": support,
                "precision": hits / predicted if predicted else 0.0,
                "recall": hits / support if support else 0.0,
                "f1": 2 * hits / (support + predicted) if support + predicted else 0.0,
            }
        )
    return {
        "num_images": len(rows),
        "accuracy": accuracy,
        "accuracy_interval_95": [accuracy - 0.03, accuracy + 0.03],
        "top5_accuracy": 0.99,
        "top5_note": None,
        "loss": 0.5,
        "macro": {"precision": accuracy, "recall": accuracy, "f1": accuracy},
        "weighted": {"precision": accuracy, "recall": accuracy, "f1": accuracy},
        "expected_calibration_error": error,
        "calibration_bins": bins,
        "per_class": per_class,
        "confusion_matrix": matrix,
    }
