"""Run folders for tests of trackers: what a driver would have written, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec


def spec_in(folder: Path, *, sweep: bool = False, **changes: Any) -> Spec:
    """A spec whose run folder is `folder/NAME`."""
    space = {"optim.learning_rate": {"choice": [0.01, 0.1]}}
    values = {
        "name": "sweep" if sweep else "single",
        "model": {"name": "resnet18"},
        "data": {"train": "s3://me:secret@bucket/images?token=secret", "test": 0.1},
        "storage": str(folder),
        **({"sweep": {"space": space}} if sweep else {}),
        **changes,
    }
    return Spec.model_validate(values)


def row(lane: str, epoch: int, **changes: Any) -> dict[str, Any]:
    """A row of metrics.jsonl."""
    return {
        "lane": lane,
        "step": 10 * epoch,
        "epoch": epoch,
        "train_loss": 2.0 / epoch,
        "train_top1": 0.1 * epoch,
        "val_loss": 2.5 / epoch,
        "val_top1": 0.09 * epoch,
        "val_top5": None,
        "learning_rate": 0.01,
        "frozen_stages": 4,
        "train_images_per_s": 100.0,
        "epoch_s": 1.0,
        **changes,
    }


def begin_run(spec: Spec) -> RunFolder:
    """A run folder that has just begun."""
    run = RunFolder.at(spec.storage, spec.name)
    run.write_spec("name: x\n")
    run.update(name=spec.name, state="running", kind="run" if spec.sweep is None else "sweep")
    return run


def write_trials(run: RunFolder, **states: str) -> None:
    """trials.json with these states."""
    rates = {"t0000": 0.01, "t0001": 0.1}
    run.write_json(
        "trials.json",
        [
            {"trial": name, "values": {"optim.learning_rate": rates[name]}, "state": state, "epochs": 0, "best": None}
            for name, state in states.items()
        ],
    )


def finish_run(run: RunFolder) -> None:
    """Write what a finished run has."""
    best = {"epoch": 2, "top1": 0.18, "loss": 1.25}
    run.update(state="finished", best=best, evaluation={"split": "test", "accuracy": 0.5, "num_images": 20})
    run.model.write_bytes("model.safetensors", b"weights")
    run.model.write_bytes("model.json", b"{}")
    run.write_json("evaluation.json", {"accuracy": 0.5})
    run.folder.write_bytes("report.html", b"<!doctype html>")
