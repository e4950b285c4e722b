"""What is known of a sweep's trials, and its two files in the run folder: trials.json and metrics.jsonl."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

from tltrain.engine.broker_actor import Event
from tltrain.engine.tuning import Outcome
from tltrain.engine.work import trial_of
from tltrain.report.sweep import TRIALS_FILE, write_trials_table
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import SweepSpec
from tltrain.spec.space import Trial

ENDED = ("finished", "stopped", "failed")
SETTLED = {"finished": "finished", "dropped": "stopped"}
"""Kind of an event -> state of its trial from then on."""
WRITE_INTERVAL_S = 2.0


class SweepRecord:
    """The trials of one sweep by name, as trials.json has them; written at most every few seconds."""

    def __init__(self, run: RunFolder, sweep: SweepSpec) -> None:
        self._run, self._sweep = run, sweep
        known = run.read_json(TRIALS_FILE) if run.folder.exists(TRIALS_FILE) else []
        self.trials: dict[str, dict[str, Any]] = {entry["trial"]: entry for entry in known}
        self.rows: list[dict[str, Any]] = run.metrics()
        self._seen = {(row["lane"], row["epoch"]) for row in self.rows}
        self._new_rows: list[dict[str, Any]] = []
        self._has_dropped_rows = False
        self._written_at = 0.0
        self._started: dict[str, float] = {}
        self._saved: dict[str, str] = {}
        """State that a lane was saved as -> sha256 of its weights."""

    def add(self, trials: Iterable[Trial]) -> None:
        """Add trials that have not begun."""
        for trial in trials:
            entry = {"trial": trial.name, "values": trial.values, "state": "pending", "reason": ""}
            self.trials[trial.name] = {**entry, "epochs": 0, "best": None, "seconds": 0.0}
        self.write()

    def unfinished(self) -> list[Trial]:
        """Return the trials that have not ended."""
        return [Trial(e["trial"], e["values"]) for e in self.trials.values() if e["state"] not in ENDED]

    def epochs_of(self, lane: str) -> int:
        """Return how many epochs of a lane, of a confirmation run too, are recorded."""
        return max((row["epoch"] for row in self.rows if row["lane"] == lane), default=0)

    def results(self) -> list[tuple[dict[str, Any], float]]:
        """Return values and best metric of all trials that have ended with one; NaN for those that failed."""
        ended = [entry for entry in self.trials.values() if entry["state"] in ENDED]
        told = [entry for entry in ended if entry["state"] == "failed" or entry["best"]]
        return [(entry["values"], math.nan if entry["state"] == "failed" else self.score(entry)) for entry in told]

    def score(self, entry: dict[str, Any]) -> float:
        """Return the sweep's metric at the trial's best epoch."""
        return entry["best"][self._sweep.metric.removeprefix("val_")]

    def ranked(self) -> list[dict[str, Any]]:
        """Return the trials with a result, best first; failed ones are never among them."""
        with_result = [entry for entry in self.trials.values() if entry["best"] and entry["state"] != "failed"]
        sign = -1 if self._sweep.better == "max" else 1
        return sorted(with_result, key=lambda entry: (sign * self.score(entry), entry["trial"]))

    def note(self, events: Sequence[Event]) -> None:
        """Take in what the broker tells of lanes, those of confirmation runs too."""
        for event in events:
            entry = self.trials.get(event.trial)
            if event.kind == "registered" and entry is None and "-" not in event.trial:
                self.add([Trial(event.trial, event.data)])
            elif event.kind == "row" and (event.trial, event.epoch) not in self._seen:
                self._seen.add((event.trial, event.epoch))  # a lane that went back trains some epochs twice
                row = {key: value for key, value in event.data.items() if key != "is_last"}
                self._new_rows.append(row)
                self.rows.append(row)
                if entry is not None:
                    self._note_row(entry, row)
            elif event.kind == "failed" and entry is not None:
                entry |= {"state": "failed", "reason": event.data["error"]}
            elif event.kind == "saved":
                self._saved[event.data["state"]] = event.data["sha256"]
            elif event.kind == "cloned" and entry is not None:
                self._note_clone(entry, event)
            elif event.kind in SETTLED and entry is not None:
                # Known at once, so that a driver that is killed before the search ends runs none of these again.
                entry["state"] = SETTLED[event.kind]

    def _note_clone(self, entry: dict[str, Any], event: Event) -> None:
        hashes = {"sha256": event.data["sha256"], "source_sha256": self._saved.get(event.data["state"])}
        clone = {"source": trial_of(event.data["state"]), "epoch": event.epoch, "left_at": event.data["left_at"]}
        entry.setdefault("clones", []).append({**clone, **hashes})

    def restart(self, trial: str, epoch: int) -> None:
        """A trial goes on after `epoch` epochs: what an earlier attempt told of later ones is forgotten."""
        entry = self.trials[trial]
        kept = [row for row in self.rows if row["lane"] != trial or row["epoch"] <= epoch]
        # They may not come anew: what a scheduler decides by was lost as well, and it may stop the trial earlier.
        self._has_dropped_rows |= len(kept) < len(self.rows)
        self.rows = kept
        self._seen = {(row["lane"], row["epoch"]) for row in self.rows}
        entry |= {"epochs": 0, "best": None}
        for row in self.rows:
            if row["lane"] == trial:
                self._note_row(entry, row)
        entry["state"] = "pending"

    def _note_row(self, entry: dict[str, Any], row: dict[str, Any]) -> None:
        now = time.monotonic()
        begun = self._started.setdefault(entry["trial"], now - row["epoch_s"])
        entry |= {"state": "running", "epochs": row["epoch"], "seconds": round(now - begun, 2)}
        name = self._sweep.metric.removeprefix("val_")
        value = row.get(self._sweep.metric)
        if value is None:
            return
        sign = 1 if self._sweep.better == "max" else -1
        if entry["best"] is None or sign * value > sign * entry["best"][name]:
            shown = ("top1", "top5", "loss")
            entry["best"] = {"epoch": row["epoch"], **{key: row[f"val_{key}"] for key in shown if f"val_{key}" in row}}

    def end(self, outcomes: Iterable[Outcome]) -> None:
        """Record how trials ended, and write everything."""
        for outcome in outcomes:
            if outcome.trial in self.trials:
                self.trials[outcome.trial] |= {
                    "state": outcome.state,
                    "reason": outcome.reason,
                    "values": outcome.values,
                }
        self.write()

    def write(self, *, now: bool = True) -> None:
        """Write both files; without `now` only if the last time was some seconds ago."""
        if not now and time.monotonic() - self._written_at < WRITE_INTERVAL_S:
            return
        if self._has_dropped_rows:
            self._run.replace_metrics(self.rows)
        elif self._new_rows:
            self._run.record_metrics(self._new_rows)
        self._new_rows, self._has_dropped_rows = [], False
        self._run.write_json(TRIALS_FILE, list(self.trials.values()))
        self._written_at = time.monotonic()

    def write_table(self) -> None:
        """Write trials.parquet, the last of a sweep's tables."""
        write_trials_table(self._run)
