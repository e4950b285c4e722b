"""The winner of a sweep as a run folder of its own: begun, told from an earlier winner's, finished."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tltrain.run_folder import WINNER, RunFolder
from tltrain.spec.load import differences, dump_yaml, parse_spec
from tltrain.spec.schema import Spec
from tltrain.spec.space import Trial, apply

COPIED = ("evaluation.json", "predictions.parquet", "thumbnails.parquet")
"""What people look for first stands in the sweep's own folder as well."""
SUMMARY = ("best", "evaluation")
SAME_RESULT = ("resources", "cache", "checkpoint", "storage", "track", "data.num_loader_workers", "data.root")


def begin_winner(spec: Spec, sweep: RunFolder, trial: Trial) -> dict[str, Any] | None:
    """Make the winner's folder ready for `trial` and return its summary where it is finished already, else None.

    What an earlier winner has left is deleted first. The spec is written before anything is trained and tells whose
    the folder is, so a deletion that was cut short is taken up again.
    """
    own = apply(spec, trial).model_copy(update={"name": WINNER, "storage": sweep.uri})
    winner = RunFolder(sweep.folder.child(WINNER))
    if _is_of(winner, own):
        state = winner.state()
        return {name: state[name] for name in SUMMARY} if state.get("state") == "finished" else None
    sweep.folder.delete(WINNER)
    winner.write_spec(dump_yaml(own))
    winner.update(name=WINNER, state="running", started_at=time.time(), trial=trial.name)
    return None


def _is_of(winner: RunFolder, own: Spec) -> bool:
    if not winner.folder.exists("spec.yaml"):
        return False
    before = parse_spec(winner.spec_text(), where=f"{winner.uri}/spec.yaml", base=Path.cwd()).spec
    return all(key.startswith(SAME_RESULT) for key, _, _ in differences(before, own))


def end_winner(sweep: RunFolder, summary: Mapping[str, Any]) -> None:
    """Copy what people look for first into the sweep's folder, and note that the winner is trained.

    In this order: where it is noted, nothing is left to do.
    """
    winner, state = RunFolder(sweep.folder.child(WINNER)), sweep.state()
    for name in COPIED:
        if winner.folder.exists(name):
            sweep.folder.write_bytes(name, winner.folder.read_bytes(name))
    shared = {name: state[name] for name in ("classes", "versions") if name in state}
    winner.update(state="finished", finished_at=time.time(), **shared, **summary)
