"""A trial as Ray Tune sees it: light, without torch, it only passes on the rows of its lane.

Its process is one of a few that all trials take in turns, so nothing of a trial lives here: lanes live in the broker
and in the worker groups, and go on while no process attends to their trial.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray import tune

from tltrain.engine.broker_actor import Reply

STATE_FILE = "state.json"
WORST = 1e9


def worst(mode: str) -> float:
    """Return the metric of a failed trial: worse than any, yet finite, since schedulers take means and percentiles."""
    return -WORST if mode == "max" else WORST


class LaneTrial(tune.Trainable):
    """Attends to one lane at a time: `step` waits in the broker for the lane's next epochs.

    A lane that fails ends its trial as a result with the worst metric, not as an error: trying again would not help,
    and a searcher learns to stay away.
    """

    def setup(
        self,
        config: dict[str, Any],
        broker: Any = None,
        metric: str = "",
        mode: str = "max",
        stride: int = 1,
        folder: str | None = None,
    ) -> None:
        """Take up the first trial. `broker` is the actor; `metric` is what schedulers and searchers look at.

        stride: epochs from one result to the next, if the lane lasts that long. folder: for temporary files, such as
        Ray Tune makes for each saved state and leaves behind where it is killed.
        """
        tempfile.tempdir = folder
        self._broker, self._metric, self._mode, self._stride = broker, metric, mode, stride
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial, or the same one where it was left."""
        self._values = new_config["lane"]["values"]
        self._epoch: int = ray.get(self._broker.attach.remote(self.trial_name, self._values))
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the row of `stride` epochs on and return what schedulers and searchers need of it."""
        reply: Reply = ray.get(self._broker.request_row.remote(self.trial_name, self._epoch + self._stride))
        self._epoch = reply.epoch
        value = math.nan if reply.row is None else reply.row[self._metric]
        return {
            "epoch": self._epoch,
            self._metric: value if math.isfinite(value) else worst(self._mode),
            "done": reply.is_last,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Have the lane's state saved, and write down under which name. Only a scheduler that clones asks for it."""
        state = ray.get(self._broker.request_save.remote(self.trial_name))
        if state is None:
            raise RuntimeError(f"the lane of {self.trial_name} ended before it was saved")
        note = {"state": state, "trial": self.trial_name, "epoch": self._epoch}
        Path(checkpoint_dir, STATE_FILE).write_text(json.dumps(note))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from another trial's lane: its weights and optimiser, with this trial's values."""
        note = json.loads(Path(checkpoint, STATE_FILE).read_text())
        self._epoch = ray.get(
            self._broker.clone.remote(self.trial_name, self._values, note["trial"], note["state"], note["epoch"])
        )
