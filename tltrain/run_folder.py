"""Reading and writing a run folder, the one place where the submitting and the training side meet."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tltrain.errors import Problem, SpecError, StorageError
from tltrain.storage import Folder

FORMAT = 1
SPEC_FILE, STATE_FILE, METRICS_FILE = "spec.yaml", "run.json", "metrics.jsonl"
WINNER = "winner"
"""Folder of a sweep in which its winner is a run of its own."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What came of a run, as its folder says."""

    uri: str
    """Address of the run folder."""
    state: str
    """`finished`, or where it stands."""
    best: dict[str, Any] | None
    """Epoch and validation metrics (`top1`, `top5`, `loss`) of the best epoch."""
    evaluation: dict[str, Any] | None
    """The headline on the images of `split`: `accuracy`, its `accuracy_interval_95`, `loss`, ..."""
    metrics: list[dict[str, Any]]
    """One row per epoch, of a sweep one per lane and epoch."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: spec.yaml, run.json, metrics.jsonl, checkpoints/, model/ and results.

    Every file is replaced whole. One process writes at a time; any number may read. JSON is strict: a number
    that is not finite is written as null, for it has no value that could be compared or drawn.
    """

    folder: Folder

    @classmethod
    def at(cls, storage: str, name: str) -> RunFolder:
        """The folder of the run `name` under `storage`, whether it exists or not."""
        return cls(Folder.open(storage).child(name))

    @classmethod
    def open(cls, path_or_uri: str) -> RunFolder:
        """The existing run folder at a path or address. Raises SpecError where there is none."""
        run = cls(Folder.open(path_or_uri))
        if not run.exists():
            raise SpecError(_no_run_folder(run.folder))
        return run

    def exists(self) -> bool:
        """Whether a run has been started here."""
        return self.folder.exists(SPEC_FILE) or self.folder.exists(STATE_FILE)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def uri(self) -> str:
        """Address of the folder; `RunFolder.open(run.uri)` is the same run."""
        return self.folder.uri

    @property
    def checkpoints(self) -> Folder:
        """The folder of the checkpoints."""
        return self.folder.child("checkpoints")

    @property
    def model(self) -> Folder:
        """The folder of the finished model."""
        return self.folder.child("model")

    def spec_text(self) -> str:
        """The resolved spec, as YAML."""
        return self._text(SPEC_FILE)

    def write_spec(self, text: str) -> None:
        """Write the resolved spec."""
        self.folder.write_bytes(SPEC_FILE, text.encode())

    def state(self) -> dict[str, Any]:
        """What run.json says; empty where there is none yet."""
        if not self.folder.exists(STATE_FILE):
            return {}
        state = self.read_json(STATE_FILE)
        if not isinstance(state, dict) or not isinstance(state.get("format"), int):
            raise self._damaged(STATE_FILE, "it has no format number")
        if state["format"] > FORMAT:
            raise StorageError(
                Problem(
                    f"the run was written in format {state['format']}, and this tltrain reads up to {FORMAT}",
                    "Upgrade tltrain here",
                    self._where(STATE_FILE),
                )
            )
        return state

    def update(self, **fields: Any) -> None:
        """Set fields of run.json and leave the others as they are."""
        self.write_json(STATE_FILE, {**self.state(), **fields, "format": FORMAT})

    def result(self) -> Result:
        """What has come of the run so far."""
        state = self.state()
        return Result(self.uri, state.get("state", ""), state.get("best"), state.get("evaluation"), self.metrics())

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, ordered by step and lane; a torn last line is left out."""
        if not self.folder.exists(METRICS_FILE):
            return []
        lines = self.folder.read_bytes(METRICS_FILE).split(b"\n")
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                rows += [_row(line)] if line.strip() else []
            except ValueError as error:
                if number < len(lines):  # whole lines end in a line break, so only the last can be torn
                    raise self._damaged(METRICS_FILE, f"line {number} is no row: {error}") from error
                _log.warning("%s: left out line %d, which is torn", self._where(METRICS_FILE), number)
        return rows

    def record_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows with `lane` (str), `step` (int) and more; a row of the same lane and step is replaced."""
        table = {_key(row): row for row in [*self.metrics(), *map(dict, rows)]}
        self.replace_metrics(table.values())

    def replace_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write these rows, in the place of all that were there."""
        ordered = sorted(rows, key=lambda row: (row["step"], row["lane"]))
        lines = [json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in ordered]
        self.folder.write_bytes(METRICS_FILE, _encode("".join(lines)))

    def drop_metrics_after(self, step: int) -> None:
        """Drop the rows of later steps, which a run that resumes at `step` will write again."""
        rows = self.metrics()
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows):
            self.replace_metrics(kept)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file; numbers that are not finite become null."""
        text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
        self.folder.write_bytes(name, _encode(text + "\n"))

    def read_json(self, name: str) -> Any:
        """The contents of a JSON file."""
        text = self._text(name)
        try:
            return json.loads(text)
        except ValueError as error:
            raise self._damaged(name, str(error)) from error

    def _text(self, name: str) -> str:
        try:
            return self.folder.read_bytes(name).decode()
        except UnicodeDecodeError as error:
            raise self._damaged(name, str(error)) from error

    def _damaged(self, name: str, what: str) -> StorageError:
        action = "Restore it from a copy, or start the run under another name"
        return StorageError(Problem(f"the file is damaged: {what}", action, self._where(name)))

    def _where(self, name: str) -> str:
        return f"{self.folder}/{name}"


def _encode(text: str) -> bytes:
    """UTF-8; what it lacks (halves of surrogate pairs, from odd file names) becomes a JSON escape."""
    return text.encode("utf-8", "backslashreplace")


def _key(row: Mapping[str, Any]) -> tuple[int, str]:
    step, lane = row["step"], row["lane"]
    assert isinstance(step, int), row
    assert isinstance(lane, str), row
    return step, lane


def _row(line: bytes) -> dict[str, Any]:
    """One parsed line; raises ValueError where it is no row of metrics."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    if not isinstance(row.get("step"), int) or not isinstance(row.get("lane"), str):
        raise ValueError("it lacks a step or a lane")
    return row


def _finite(value: Any) -> Any:
    """The value with null in place of numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _no_run_folder(folder: Folder) -> Problem:
    what = f"this is no run folder: it has neither {SPEC_FILE} nor {STATE_FILE}"
    names = folder.names()
    runs = [name for name in names if RunFolder(folder.child(name)).exists()]
    if runs:
        return Problem(what, f"Name one of the runs in it: {', '.join(runs[:5])}", str(folder))
    action = "Name the folder that `tltrain run` printed" if names else "Check the path: nothing is there"
    return Problem(what, action, str(folder))
