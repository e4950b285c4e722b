"""The results of every arm in one form, and how two of them are compared."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .common import FREEZE_DEPTH

TABLES = {"A": "table.json", "B": "table.json", "D": "table.json", "E": "trials.parquet"}
"""What an arm writes when all trials are done and ranked."""
LOSSES = ("train_loss", "val_loss")
# High rates make chaos of rounding: two trials of D itself that differ in the number of threads, or in the order in
# which one layer sums its gradient, end up to 1e-2 and 7e-2 apart (depth 7, rates 0.03 and 0.1). Most losses stay.
# Where everything trains they all move, so plain torch written in another way says how far they move by themselves.
APART = 1e-2
APART_BY_ROUNDING = 0.25
"""The most that the share of such trials may be, or AS_PLAIN times what it is between two arms of plain torch."""
AS_PLAIN = 3.0
BEST_BY_ROUNDING = 0.01


@dataclass(frozen=True)
class Trial:
    """One trial's values by dotted key, and its epochs: epoch, train_loss, val_loss, val_top1."""

    values: dict[str, Any]
    curve: list[dict[str, float]]

    @property
    def key(self) -> str:
        """What the trial is known by in all arms."""
        return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in sorted(self.values.items()))

    @property
    def score(self) -> tuple[float, float]:
        """What trials are ranked by: the best accuracy, and among equals the lower loss."""
        return max((row["val_top1"], -row["val_loss"]) for row in self.curve)


def read_trials(arm: str, run_dir: Path) -> list[Trial]:
    """Return the trials of one run of `arm`."""
    if arm != "E":
        table = json.loads((run_dir / TABLES[arm]).read_text())
        return [Trial(row["values"], row["curve"]) for row in table]
    trials = json.loads((run_dir / "trials.json").read_text())
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    rows = sorted((json.loads(line) for line in lines), key=lambda row: row["epoch"])
    return [Trial(trial["values"], [row for row in rows if row["lane"] == trial["trial"]]) for trial in trials]


@dataclass(frozen=True)
class Difference:
    """How far an arm is from the reference."""

    medians: dict[str, float]
    """The medians of the losses' relative differences, by freeze depth."""
    largest: float
    """The largest of them."""
    where: str
    apart: float
    """The share of trials with a loss that is more than APART away."""
    lost_by_choice: float
    """By how much the reference's accuracy of the arm's best trial is below that of the reference's best trial."""

    def is_within(self, tolerance: float, plain: Difference | None, *, may_stop_early: bool) -> bool:
        """Whether rounding may explain the differences.

        tolerance: for the medians. plain: how far another arm of plain torch is from the reference, if that is known.
        """
        medians, apart, lost = (plain.medians, plain.apart, plain.lost_by_choice) if plain else ({}, 0.0, 0.0)
        near = all(found <= max(tolerance, AS_PLAIN * medians.get(depth, 0.0)) for depth, found in self.medians.items())
        few = self.apart <= max(APART_BY_ROUNDING, AS_PLAIN * apart)
        return near and few and (may_stop_early or self.lost_by_choice <= max(BEST_BY_ROUNDING, lost))


def compare(trials: Sequence[Trial], reference: Sequence[Trial], *, may_stop_early: bool) -> Difference:
    """Compare every loss of every trial. Ends the benchmark where trials or epochs are missing."""
    by_key = {trial.key: trial for trial in trials}
    if len(by_key) != len(trials) or by_key.keys() != {trial.key for trial in reference}:
        sys.exit(f"the trials are not those of the grid: {sorted(by_key)}")
    found: list[tuple[float, str]] = []
    by_depth: dict[str, list[float]] = {}
    apart: set[str] = set()
    for expected in reference:
        curve = by_key[expected.key].curve
        if not curve or (len(curve) != len(expected.curve) and not may_stop_early):
            sys.exit(f"{expected.key}: {len(curve)} epochs, and the reference has {len(expected.curve)}")
        for row, wanted in zip(curve, expected.curve, strict=False):
            for name in LOSSES:
                where = f"{expected.key}, epoch {row['epoch']:.0f}, {name}"
                found.append((_relative(row[name], wanted[name]), where))
                by_depth.setdefault(str(expected.values[FREEZE_DEPTH]), []).append(found[-1][0])
                if found[-1][0] > APART:
                    apart.add(expected.key)
    scores = {trial.key: trial.score[0] for trial in reference}
    lost = max(scores.values()) - scores[max(trials, key=_score).key]
    medians = {depth: statistics.median(values) for depth, values in by_depth.items()}
    return Difference(medians, *max(found), len(apart) / len(reference), lost)


def _relative(loss: float | None, wanted: float) -> float:
    """Return the relative difference; infinite where a loss is not finite (which JSON has no number for)."""
    if loss is None or not math.isfinite(loss) or not math.isfinite(wanted):
        return math.inf
    return abs(loss - wanted) / abs(wanted)


def _score(trial: Trial) -> tuple[float, float]:
    return trial.score
