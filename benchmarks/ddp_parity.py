"""Measures tltrain's training loop against a plain torchrun script: same model, images, order and settings.

    python benchmarks/ddp_parity.py                               # everything: about 15 minutes on 2 cores
    python benchmarks/ddp_parity.py --modes full --arms local

Arms: `plain` is plain_ddp.py under torchrun, `local` is `tltrain run --local` under torchrun, `ray` is
`tltrain run` on Ray Train. First a gate: from the same initial weights, the losses and the trained weights of
a short run have to agree. Then the arms take turns, forwards and backwards, and the ratio tltrain / plain is
taken within each turn. Images per second are those of the epochs after the first, over all workers, without
validation and with one checkpoint at the end; time to first step runs from the start of the command.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from arms import PROJECT_DIR, Measured, Setting, run_plain, run_tltrain
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

IMAGES = PROJECT_DIR / "jobs" / "data" / "fashion-mnist" / "train.parquet"
TOLERANCE = 1e-4
TARGET_RATIO = 0.97
SHARED_SETTINGS = (
    "model",
    "image_size",
    "batch_size",
    "num_workers",
    "loader_workers",
    "plain_keeps_decoded",
)
GATE_STEPS, GATE_EPOCHS = 3, 2
CONSOLE = Console(width=110)


def largest_difference(first: Path, second: Path) -> float:
    """Return the largest absolute difference between two files of weights with the same names."""
    a, b = load_file(first), load_file(second)
    if a.keys() != b.keys():
        sys.exit(f"{first} and {second} have different tensors: {sorted(a.keys() ^ b.keys())}")
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def check_gate(setting: Setting, arm: str, work_dir: Path) -> None:
    """Train a few steps with both, from the same weights; end the benchmark where they disagree."""
    ours = run_tltrain(setting, fresh_folder(work_dir / "gate" / arm), arm)
    plain = run_plain(setting, fresh_folder(work_dir / "gate" / "plain"), ours.initial_weights)
    losses = max(abs(a - b) for a, b in zip(ours.epoch_losses, plain.epoch_losses, strict=True))
    weights = largest_difference(ours.trained_weights, plain.trained_weights)
    CONSOLE.print(f"gate {mode_name(setting)} {arm}: loss differs by {losses:.1e}, trained weights by {weights:.1e}")
    if max(losses, weights) > TOLERANCE:
        sys.exit(f"The arms do not compute the same (tolerance {TOLERANCE:.0e}), so their speed is not compared.")


def fresh_folder(path: Path) -> Path:
    """Return an empty folder at `path`; what stood there is removed."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def mode_name(setting: Setting) -> str:
    """Return `head-only` or `full`."""
    return "head-only" if setting.head_only else "full"


def take_turns(setting: Setting, arms: Sequence[str], repetitions: int, work_dir: Path) -> dict[str, list[Measured]]:
    """Run all arms `repetitions` times, every other time backwards, so that drift hits all alike."""
    results: dict[str, list[Measured]] = {arm: [] for arm in arms}
    for repetition in range(repetitions):
        for arm in arms if repetition % 2 == 0 else reversed(arms):
            folder = fresh_folder(work_dir / arm)
            run = run_plain(setting, folder) if arm == "plain" else run_tltrain(setting, folder, arm)
            results[arm].append(run)
            CONSOLE.print(
                f"{mode_name(setting)} {repetition + 1}/{repetitions} {arm}: "
                f"{run.images_per_s:.1f} images/s, first step after {run.first_step_s:.1f} s"
            )
    return results


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarise(results: dict[str, list[Measured]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return arm -> figure -> median and range; ratios are taken within each turn."""
    plain = [run.images_per_s for run in results["plain"]]
    return {
        arm: {
            "images_per_s": spread([run.images_per_s for run in runs]),
            "ratio": spread([run.images_per_s / base for run, base in zip(runs, plain, strict=True)]),
            "first_step_s": spread([run.first_step_s for run in runs]),
        }
        for arm, runs in results.items()
    }


def format_spread(values: dict[str, float], digits: int) -> str:
    """Return `median (smallest to largest)`."""
    median, smallest, largest = (f"{values[name]:.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({smallest} to {largest})"


def print_table(mode: str, summary: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print one mode's figures, each as median (smallest to largest)."""
    table = Table("arm", "images/s", "ratio to plain", "time to first step, s", title=mode)
    for arm, figures in summary.items():
        columns = (("images_per_s", 1), ("ratio", 3), ("first_step_s", 1))
        table.add_row(arm, *(format_spread(figures[name], digits) for name, digits in columns))
    CONSOLE.print(table)
    for arm in summary.keys() - {"plain"}:
        verdict = "reaches" if summary[arm]["ratio"]["median"] >= TARGET_RATIO else "misses"
        CONSOLE.print(f"{mode}, {arm}: the median ratio {verdict} {TARGET_RATIO}")


def cut_data(target: Path, num_images: int) -> Path:
    """Write the first `num_images` shipped training images to `target`."""
    table = pq.read_table(IMAGES)
    if num_images > len(table):
        sys.exit(f"{num_images} images were asked for, and {IMAGES} has {len(table)}.")
    pq.write_table(table.slice(0, num_images), target)
    return target


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=["full", "head-only"], default=["full", "head-only"])
    parser.add_argument("--arms", nargs="+", choices=["local", "ray"], default=["local", "ray"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="the first one is not timed")
    parser.add_argument("--steps", type=int, default=20, help="per epoch")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64, help="over all workers")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--loader-workers", type=int, default=1, help="decoding processes per worker")
    parser.add_argument(
        "--plain-keeps-decoded",
        action="store_true",
        help="let the plain script, too, decode each image once and keep it",
    )
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    return parser.parse_args()


def measure(mode: str, arguments: argparse.Namespace, work_dir: Path) -> dict[str, Any]:
    """Pass the gate, then time all arms in one mode."""
    shared = {name: getattr(arguments, name) for name in SHARED_SETTINGS}
    gate_data = cut_data(work_dir / "gate.parquet", GATE_STEPS * arguments.batch_size)
    gate = Setting(gate_data, mode == "head-only", GATE_EPOCHS, **shared)
    for arm in arguments.arms:
        check_gate(gate, arm, work_dir)
    data = cut_data(work_dir / "train.parquet", arguments.steps * arguments.batch_size)
    setting = Setting(data, mode == "head-only", arguments.epochs, **shared)
    summary = summarise(take_turns(setting, ["plain", *arguments.arms], arguments.repetitions, work_dir))
    print_table(mode, summary)
    return summary


def describe_machine() -> dict[str, Any]:
    """Return the versions and devices that the figures belong to."""
    packages = ("torch", "torchvision", "ray", "pillow", "pyarrow")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "cpus": os.cpu_count(),
        "gpus": gpus,
    }


def main() -> None:
    """Measure every mode and keep the figures."""
    arguments = parse_arguments()
    report: dict[str, Any] = {"machine": describe_machine(), "arguments": vars(arguments) | {"output": None}}
    with tempfile.TemporaryDirectory(prefix="ddp-parity-") as work_dir:
        report["modes"] = {mode: measure(mode, arguments, Path(work_dir)) for mode in arguments.modes}
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
