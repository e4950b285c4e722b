"""What has to be true of a sweep's folder, whatever was broken while it ran."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ranks

from tltrain.disk import TEMPORARY
from tltrain.lease import read_lease
from tltrain.report.sweep import TRIALS_FILE
from tltrain.run_folder import WINNER, RunFolder
from tltrain.spec.load import dump_yaml
from tltrain.spec.schema import Spec
from tltrain.spec.space import Trial, apply
from tltrain.train.checkpoint import COMMIT
from tltrain.train.distributed import Group
from tltrain.train.session import fine_tune

VALUES_WITH_TIMES = ("train_images_per_s", "epoch_s")
NOT_COMPARED = ("metrics.jsonl", "timings.json", "run.json", "spec.yaml")
"""They hold times, or the folder's own place."""
ENDED = ("finished", "stopped")
RESULTS = ("report.html", "trials.parquet", "sharing.json", "evaluation.json", "predictions.parquet")
SLACK_S = 1.0
"""Time between an epoch's begin in a worker and the note about the lane's end that crossed it."""


@dataclass(frozen=True)
class Reference:
    """What a clean sweep left: rows by (lane, epoch) and trials, without times, and sha256 of the winner's files."""

    rows: Mapping[tuple[str, int], dict[str, Any]]
    trials: Mapping[str, dict[str, Any]]
    winner: Mapping[str, str]
    confirmed: Any

    @classmethod
    def of(cls, run: RunFolder) -> Reference:
        """Return what stands in the folder of a sweep that nothing has happened to."""
        return cls(_rows(run), _trials(run), files(run), _confirmed(run))


def _skipped(entry: Mapping[str, Any]) -> set[int]:
    """Return the epochs that a trial never trained, since it went on from a later state of another."""
    return {epoch for clone in entry.get("clones", []) for epoch in range(clone["left_at"] + 1, clone["epoch"] + 1)}


def whole(run: RunFolder, spec: Spec) -> Iterator[str]:
    """Say what is missing, doubled or left over in the folder of a sweep that has ended."""
    entries, known = run.read_json(TRIALS_FILE), Counter((row["lane"], row["epoch"]) for row in run.metrics())
    yield from (f"{lane} has epoch {epoch} {n} times" for (lane, epoch), n in known.items() if n > 1)
    names = [entry["trial"] for entry in entries]
    yield from (f"{name} stands {n} times in {TRIALS_FILE}" for name, n in Counter(names).items() if n > 1)
    for entry in entries:
        epochs = [epoch for lane, epoch in sorted(known) if lane == entry["trial"]]
        to_train, skipped = set(range(1, entry["epochs"] + 1)), _skipped(entry)
        if entry["state"] not in ENDED or not to_train - skipped <= set(epochs) <= to_train:
            yield f"{entry['trial']} is {entry['state']} after {entry['epochs']} epochs, its rows are those of {epochs}"
        if entry["state"] == "finished" and entry["epochs"] != apply_to(spec, entry).train.epochs:
            yield f"{entry['trial']} is finished after {entry['epochs']} epochs"
    strangers = {lane.partition("-")[0] for lane, _ in known} - set(names)
    yield from (f"{lane} is no trial and has rows" for lane in sorted(strangers))
    if run.state()["state"] != "finished" or RunFolder.open(f"{run.uri}/{WINNER}").state()["state"] != "finished":
        yield "the sweep or its winner is not finished"
    yield from (f"{name} is missing" for name in RESULTS if not run.folder.exists(name))


def left_over(run: RunFolder) -> Iterator[str]:
    """Name what a process that died has left in the folder, and nobody has taken away."""
    root = run.folder.local_path
    assert root is not None
    yield from (f"{path.relative_to(root)} is left" for path in root.rglob("*") if TEMPORARY.fullmatch(path.name))
    for kind in ("groups/*/pretrained", f"{WINNER}/checkpoints", f"{WINNER}/pretrained"):
        halves = [path for path in root.glob(f"{kind}/*") if path.is_dir() and not (path / COMMIT).exists()]
        yield from (f"{path.relative_to(root)} is half a checkpoint" for path in halves)
    lease = read_lease(run.folder)
    if lease is None or lease.is_live:
        yield "the lease is held"
    yield from (f"{name}/ is left" for name in ("ray", "progress", "lanes") if run.folder.exists(name))


def trained_again(log: Path, finished_at: Mapping[str, float]) -> Iterator[str]:
    """Name trials that trained after trials.json had said that they were finished. log: what `_log_training` wrote."""
    lines = map(json.loads, log.read_text().splitlines())
    latest = {lane: line["at"] for line in lines for lane in line["lanes"]}
    late = [lane for lane, at in sorted(latest.items()) if at > finished_at.get(lane, at) + SLACK_S]
    yield from (f"{lane} was finished and has trained again" for lane in late)


def equal(run: RunFolder, clean: Reference) -> Iterator[str]:
    """Say what differs from a clean sweep that decides nothing by time: rows, trials, confirmation, winner."""
    yield from equal_rows(run, clean)
    if _rows(run).keys() != clean.rows.keys():
        yield "metrics.jsonl has not the rows of a clean sweep"
    if _trials(run) != clean.trials:
        yield f"{TRIALS_FILE} differs"
    if _confirmed(run) != clean.confirmed:
        yield "confirm.json differs"
    found = files(run)
    yield from (f"{name} is missing" for name in sorted(clean.winner.keys() - found.keys()))
    yield from (f"{name} was left behind" for name in sorted(found.keys() - clean.winner.keys()))
    yield from (f"{name} differs" for name in sorted(clean.winner) if found.get(name, "") != clean.winner[name])


def equal_rows(run: RunFolder, clean: Reference) -> Iterator[str]:
    """Say which rows differ from those of a clean sweep that came as far."""
    differing = [at for at, row in _rows(run).items() if clean.rows.get(at) != row]
    yield from (f"{lane} differs in epoch {epoch}" for lane, epoch in differing)


def equal_winner(run: RunFolder, spec: Spec, alone: Path) -> Iterator[str]:
    """Say whether the winner is the best trial, and its model that of its values trained without Ray in `alone`."""
    assert spec.sweep is not None
    entries = {entry["trial"]: entry for entry in run.read_json(TRIALS_FILE)}
    winner = entries[run.state()["winner"]]
    best = max(entry["best"]["top1"] for entry in entries.values())
    if winner["best"]["top1"] != best:
        yield f"{winner['trial']} won with {winner['best']['top1']}, and the best has {best}"
    own = apply_to(spec, winner).model_copy(update={"name": "alone", "storage": str(alone)})
    own = own.model_copy(update={"name": f"alone-{hashlib.sha256(dump_yaml(own).encode()).hexdigest()[:8]}"})
    kept = RunFolder.at(own.storage, own.name)
    if not kept.exists():
        ranks.run(1, _train_alone, own)
    if _model(kept) != _model(RunFolder.open(f"{run.uri}/{WINNER}")):
        yield f"the model of {winner['trial']} is not that of its values trained alone"


def cloned(run: RunFolder) -> Iterator[str]:
    """Say which clone did not start from the weights of a trial of the sweep."""
    entries = {entry["trial"]: entry for entry in run.read_json(TRIALS_FILE)}
    for name, entry in entries.items():
        for clone in entry.get("clones", []):
            if clone["source"] == name or clone["source"] not in entries:
                yield f"{name} is a clone of {clone['source']}"
            if clone["sha256"] is None or clone["sha256"] != clone["source_sha256"]:
                yield f"{name} did not start with the weights of {clone['source']}: {clone}"


def apply_to(spec: Spec, entry: Mapping[str, Any]) -> Spec:
    """Return the spec of a trial as `trials.json` has it."""
    return apply(spec, Trial(entry["trial"], entry["values"]))


def files(run: RunFolder) -> dict[str, str]:
    """Return path -> sha256 of all that the winner's folder holds, but for files with times in them."""
    root = run.folder.local_path
    assert root is not None
    paths = [path for path in sorted((root / WINNER).rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): _digest(path) for path in paths}


def _digest(path: Path) -> str:
    return "" if path.name in NOT_COMPARED else hashlib.sha256(path.read_bytes()).hexdigest()


def _rows(run: RunFolder) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["lane"], row["epoch"]): _without(row, VALUES_WITH_TIMES) for row in run.metrics()}


def _trials(run: RunFolder) -> dict[str, dict[str, Any]]:
    return {entry["trial"]: _without(entry, ("seconds",)) for entry in run.read_json(TRIALS_FILE)}


def _without(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _confirmed(run: RunFolder) -> Any:
    return run.read_json("confirm.json") if run.folder.exists("confirm.json") else None


def _model(run: RunFolder) -> str:
    return hashlib.sha256(run.model.read_bytes("model.safetensors")).hexdigest()


def _train_alone(group: Group, spec: Spec) -> None:
    run = RunFolder.at(spec.storage, spec.name)
    run.write_json("run.json", {"format": 1})
    fine_tune(spec, run, group)
