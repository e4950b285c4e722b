"""What trackers are told of a run or a trial: parameters, metrics and files, the same for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from tltrain.run_folder import RunFolder
from tltrain.scratch import scratch_folder
from tltrain.storage import Folder

SCALARS = {
    "train_loss": "train/loss",
    "train_top1": "train/top1",
    "val_loss": "val/loss",
    "val_top1": "val/top1",
    "val_top5": "val/top5",
    "learning_rate": "learning_rate",
    "frozen_stages": "frozen_stages",
    "epoch": "epoch",
    "train_images_per_s": "train/images_per_s",
    "epoch_s": "time/epoch_s",
}
"""Column of metrics.jsonl -> name in every tracker."""
LEFT_OUT = ("name", "version", "storage", "track", "sweep.space")
"""Keys of a spec that are no parameters, or that a title says already."""


@dataclass(frozen=True)
class Entry:
    """A run, or one trial of a sweep, as a tracker shows it."""

    title: str
    parameters: Mapping[str, str | int | float | bool]
    kind: str = "run"
    """`run`, `sweep` or `trial`."""
    parent: str | None = None
    """Id of the entry that it belongs to."""


class Tracker(Protocol):
    """What has entries. Whatever goes wrong is raised as it comes."""

    def begin(self, entry: Entry, known: str | None) -> tuple[str, bool]:
        """Go on with the entry of the id `known`, or begin one; return its id and whether it is a new one."""
        ...

    def last_step(self, id: str) -> int | None:
        """Return the last step of which the entry has metrics, None where that cannot be asked."""
        ...

    def log(self, id: str, step: int, values: Mapping[str, float]) -> None:
        """Add metrics at an optimiser step."""
        ...

    def add_file(self, id: str, path: Path, folder: str) -> None:
        """Add a copy of a file, in `folder` of the entry."""
        ...

    def keep(self) -> None:
        """Make sure that all that was logged so far is there if this process dies now."""
        ...

    def end(self, id: str, state: str) -> None:
        """The run or trial has ended: `finished`, `stopped`, `failed` or `interrupted`."""
        ...

    def close(self) -> None:
        """Send what is still to be sent."""
        ...


def parameters(spec: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Return the settings of a spec by dotted key; lists as text, unset ones left out, no credentials in addresses."""
    found: dict[str, str | int | float | bool] = {}
    for key, value in _leaves(spec, ""):
        if value is not None and not key.startswith(LEFT_OUT):
            found[key] = value if isinstance(value, bool | int | float) else _without_credentials(str(value))
    return found


def _leaves(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _without_credentials(text: str) -> str:
    if "://" not in text:
        return text
    parts = urlsplit(text)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a row of metrics.jsonl by the names that trackers have."""
    return {name: float(row[key]) for key, name in SCALARS.items() if row.get(key) is not None}


def results(state: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures in the run.json of a finished run: of its best epoch and of its evaluation."""
    best, evaluation = state.get("best") or {}, state.get("evaluation") or {}
    split = evaluation.get("split", "test")
    named = {f"best/{key}": value for key, value in best.items()}
    named |= {f"{split}/{key}": value for key, value in evaluation.items()}
    return {name: float(value) for name, value in named.items() if isinstance(value, int | float)}


def files(run: RunFolder) -> list[tuple[Folder, str, str]]:
    """Return what a finished run has for others to use: folder, name, and where it belongs in an entry."""
    state = run.state()
    kept = RunFolder(run.folder.child(state["winner_run"])) if "winner_run" in state else run
    wanted = [
        *((kept.model, name, "model") for name in ("model.json", "model.safetensors")),
        (run.folder, "evaluation.json", ""),
        (run.folder, "report.html", ""),
    ]
    return [(folder, name, where) for folder, name, where in wanted if folder.exists(name)]


@contextlib.contextmanager
def on_disk(folder: Folder, name: str) -> Iterator[Path]:
    """Yield the path of a file of a run folder, or of a copy of it where that is elsewhere."""
    if folder.local_path is not None:
        yield folder.local_path / name
        return
    with scratch_folder("tltrain-track-") as temporary:
        path = Path(temporary, name)
        path.write_bytes(folder.read_bytes(name))
        yield path
