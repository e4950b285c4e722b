"""One tracker brought up to date with a run folder, again and again, so that nothing is told twice or forgotten."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.track.entries import Entry, Tracker, files, on_disk, parameters, results, scalars

NOTES_FILE = "tracking.json"
"""In the run folder: what trackers were told. Tracker -> lane -> id, step of its last row, and how it ended."""
RUN = ""
"""Name of the run's own entry among those of its lanes."""
TRIALS_FILE = "trials.json"
ENDED = ("finished", "stopped", "failed")
_NOTES_LOCK = threading.Lock()


class Mirror:
    """Tells one tracker what a run folder says. Notes in the folder keep what it was told, beyond this process."""

    def __init__(self, spec: Spec, run: RunFolder, name: str, tracker: Tracker) -> None:
        self._run, self._name, self._tracker = run, name, tracker
        self._notes: dict[str, dict[str, Any]] = _read_notes(run).get(name, {})
        self._open: set[str] = set()
        self._settings, self._is_sweep = spec.model_dump(), spec.sweep is not None

    def update(self) -> None:
        """Tell all that is new."""
        self._begin(RUN)
        trials = self._trials()
        news = False
        for row in self._run.metrics():
            news |= self._log(row, trials)
        for trial, entry in trials.items():
            if trial in self._open and entry["state"] in ENDED and not self._notes[trial].get("ended"):
                self._end(trial, entry["state"])
                news = True
        if news:
            self._tracker.keep()
            self._write_notes()

    def end(self, state: str) -> None:
        """Tell the rest and how the run has ended; of a finished one what came of it, too."""
        self.update()
        if state == "finished":
            last = max((row["step"] for row in self._run.metrics()), default=0)
            self._tracker.log(self._id(RUN), last, results(self._run.state()))
            for folder, name, where in files(self._run):
                with on_disk(folder, name) as path:
                    self._tracker.add_file(self._id(RUN), path, where)
        for lane in [*(self._open - {RUN}), RUN]:
            if lane == RUN or not self._notes[lane].get("ended"):
                self._end(lane, state)
        self._write_notes()
        self._tracker.close()

    def _trials(self) -> dict[str, Mapping[str, Any]]:
        if not self._is_sweep or not self._run.folder.exists(TRIALS_FILE):
            return {}
        return {entry["trial"]: entry for entry in self._run.read_json(TRIALS_FILE)}

    def _log(self, row: Mapping[str, Any], trials: Mapping[str, Mapping[str, Any]]) -> bool:
        """Tell a row unless it was told; return whether it is news."""
        lane = row["lane"] if self._is_sweep else RUN
        if row["step"] <= self._notes.get(lane, {}).get("step", 0):
            return False
        self._begin(lane, trials)
        if row["step"] <= self._notes[lane]["step"]:  # the tracker knows more than the notes
            return False
        self._tracker.log(self._id(lane), row["step"], scalars(row))
        self._notes[lane]["step"] = row["step"]
        return True

    def _begin(self, lane: str, trials: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        if lane in self._open:
            return
        note = self._notes.get(lane, {})
        id, is_new = self._tracker.begin(self._entry(lane, trials or {}), note.get("id"))
        told = 0 if is_new else note.get("step", 0)
        self._notes[lane] = {"id": id, "step": max(told, self._tracker.last_step(id) or 0)}
        self._open.add(lane)
        self._write_notes()

    def _entry(self, lane: str, trials: Mapping[str, Mapping[str, Any]]) -> Entry:
        if lane == RUN:
            return Entry(self._run.name, parameters(self._settings), "sweep" if self._is_sweep else "run")
        values = trials.get(lane, trials.get(lane.partition("-")[0], {})).get("values", {})
        return Entry(f"{self._run.name}-{lane}", parameters(values), "trial", self._id(RUN))

    def _id(self, lane: str) -> str:
        return self._notes[lane]["id"]

    def _end(self, lane: str, state: str) -> None:
        self._tracker.end(self._id(lane), state)
        self._notes[lane]["ended"] = state

    def _write_notes(self) -> None:
        # Read anew: each tracker has a mirror of its own.
        with _NOTES_LOCK:
            self._run.write_json(NOTES_FILE, {**_read_notes(self._run), self._name: self._notes})


def _read_notes(run: RunFolder) -> dict[str, dict[str, Any]]:
    return run.read_json(NOTES_FILE) if run.folder.exists(NOTES_FILE) else {}
