"""Runs side by side: what of their specs differs, and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tltrain.run_folder import SPEC_FILE, RunFolder
from tltrain.spec.keys import leaves
from tltrain.spec.load import differences, parse_spec
from tltrain.spec.schema import Spec
from tltrain.spec.yaml_text import dotted

METRICS = (
    ("state", ("state",)),
    ("trial", ("winner",)),
    ("best epoch", ("best", "epoch")),
    ("val top-1", ("best", "top1")),
    ("val loss", ("best", "loss")),
    ("evaluated on", ("evaluation", "split")),
    ("images", ("evaluation", "num_images")),
    ("accuracy", ("evaluation", "accuracy")),
    ("loss", ("evaluation", "loss")),
    ("calibration error", ("evaluation", "expected_calibration_error")),
)
"""What a comparison shows -> where it stands in run.json."""


@dataclass(frozen=True)
class Comparison:
    """Runs side by side: what of their specs differs, and their numbers. Each row has one value per run."""

    runs: list[str]
    spec: dict[str, list[Any]]
    metrics: dict[str, list[Any]]


def compare(folders: Sequence[RunFolder]) -> Comparison:
    """Compare runs. Raises SpecError where one has no readable spec."""
    specs = [_spec(folder) for folder in folders]
    keys = {key: None for spec in specs[1:] for key, _, _ in differences(specs[0], spec) if key != "name"}
    values = [{dotted(path): value for path, value in leaves(spec)} for spec in specs]
    states = [folder.state() for folder in folders]
    metrics = {name: [_at(state, path) for state in states] for name, path in METRICS}
    metrics["duration"] = [_duration(state) for state in states]
    known = {name: row for name, row in metrics.items() if any(value is not None for value in row)}
    names = [folder.name for folder in folders]
    shown = names if len(set(names)) == len(names) else [str(folder.folder) for folder in folders]
    return Comparison(shown, {key: [each.get(key) for each in values] for key in keys}, known)


def _spec(run: RunFolder) -> Spec:
    return parse_spec(run.spec_text(), where=f"{run.uri}/{SPEC_FILE}", base=Path.cwd()).spec


def _at(state: Any, path: Sequence[str]) -> Any:
    for name in path:
        state = state.get(name) if isinstance(state, dict) else None
    return state


def _duration(state: dict[str, Any]) -> float | None:
    start, end = state.get("started_at"), state.get("finished_at")
    return None if start is None or end is None else end - start
