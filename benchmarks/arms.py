"""The arms of a comparison: one run of the plain torchrun script, and the same run of tltrain."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from plain_ddp import MEAN, STD

PROJECT_DIR = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Setting:
    """What all arms have in common."""

    data: Path
    head_only: bool
    epochs: int
    model: str
    image_size: int
    batch_size: int
    num_workers: int
    loader_workers: int
    plain_keeps_decoded: bool = False
    learning_rate: float = 0.01
    momentum: float = 0.9
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """What one run of one arm gave."""

    images_per_s: float
    """Over all workers, the median of the epochs after the first."""
    first_step_s: float
    """From the start of the command to the end of the first optimiser step."""
    epoch_losses: list[float]
    initial_weights: Path | None
    trained_weights: Path


def run_command(command: Sequence[str]) -> tuple[float, str]:
    """Run a command with one thread per process; return when it was started and what it printed to stdout.

    Ends the benchmark where the command fails.
    """
    # torchrun and Ray would each set one thread by themselves: said here, it is the same for all.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started_at = time.time()
    done = subprocess.run(command, cwd=PROJECT_DIR, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return started_at, done.stdout


def torchrun(setting: Setting) -> list[str]:
    """Return the start of a command that runs on `num_workers` processes of this machine."""
    processes = f"--nproc-per-node={setting.num_workers}"
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", processes]


def run_plain(setting: Setting, folder: Path, weights: Path | None = None) -> Measured:
    """Run plain_ddp.py, from `weights` or from random ones."""
    trained = folder / "trained.safetensors"
    options: dict[str, Any] = {
        "data": setting.data,
        "model": setting.model,
        "image-size": setting.image_size,
        "batch-size": setting.batch_size,
        "epochs": setting.epochs,
        "learning-rate": setting.learning_rate,
        "momentum": setting.momentum,
        "seed": setting.seed,
        "loader-workers": setting.loader_workers,
        "save": trained,
    }
    command = [
        *torchrun(setting),
        "benchmarks/plain_ddp.py",
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    command += ["--head-only"] if setting.head_only else []
    command += ["--keep-decoded"] if setting.plain_keeps_decoded else []
    command += [f"--weights={weights}"] if weights else []
    started_at, printed = run_command(command)
    result = json.loads(printed.splitlines()[-1])
    speed = statistics.median(result["epoch_images_per_s"][1:])
    return Measured(speed, result["first_step_at"] - started_at, result["epoch_losses"], weights, trained)


def make_spec(setting: Setting, storage: Path) -> dict[str, Any]:
    """Return the spec of the same run for tltrain."""
    has_gpus = torch.cuda.device_count() >= setting.num_workers
    return {
        "version": 1,
        "name": "parity",
        "seed": setting.seed,
        "model": {
            "name": setting.model,
            "weights": "random",
            "freeze_depth": "all" if setting.head_only else 0,
        },
        "data": {
            "train": str(setting.data),
            "val": None,
            "test": None,
            "image_size": setting.image_size,
            "resize_size": setting.image_size,
            "mean": list(MEAN),
            "std": list(STD),
            "num_loader_workers": setting.loader_workers,
        },
        "optim": {
            "name": "sgd",
            "learning_rate": setting.learning_rate,
            "momentum": setting.momentum,
            "schedule": "constant",
        },
        "train": {"epochs": setting.epochs, "batch_size": setting.batch_size},
        "resources": {"num_workers": setting.num_workers, "gpus_per_worker": int(has_gpus)},
        "checkpoint": {"every_epochs": setting.epochs},
        "storage": str(storage),
    }


def run_tltrain(setting: Setting, folder: Path, arm: str) -> Measured:
    """Run tltrain, `local` under torchrun or on `ray`, from its own random weights."""
    spec = folder / "parity.yaml"
    spec.write_text(json.dumps(make_spec(setting, folder)))  # JSON is YAML
    if arm == "local":
        # Without `--`, torchrun takes `--local` for one of its own options.
        command = [*torchrun(setting), "-m", "--", "tltrain", "run", str(spec), "--local"]
    else:
        command = [sys.executable, "-m", "tltrain", "run", str(spec)]
    started_at, _ = run_command(command)
    run = folder / "parity"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return Measured(
        images_per_s=statistics.median(row["train_images_per_s"] for row in rows[1:]),
        first_step_s=json.loads((run / "timings.json").read_text())["first_step_at"] - started_at,
        epoch_losses=[row["train_loss"] for row in rows],
        initial_weights=next((run / "pretrained").rglob("*.safetensors")),
        trained_weights=run / "model" / "model.safetensors",
    )
