"""W&B: a run is a run there; the trials of a sweep are runs of one group, with the sweep's own run among them.

WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE, WANDB_DIR and WANDB_API_KEY are read as W&B does.
"""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tltrain.storage import Folder
from tltrain.track.entries import Entry

PROJECT = "tltrain"
"""Name of the project where the environment names none."""
EXIT_CODES = {"finished": 0, "stopped": 0, "failed": 1, "interrupted": 130}


class WandB:
    """Entries of a W&B project. Raises ImportError without wandb."""

    def __init__(self, run: Folder) -> None:
        self._module: Any = importlib.import_module("wandb")
        self._dir = os.environ.get("WANDB_DIR") or (None if run.local_path is None else str(run.local_path))
        self._runs: dict[str, Any] = {}
        mode = self._module.setup().settings.mode
        if mode not in ("offline", "disabled") and not self._module.login(prompt=False):
            raise RuntimeError("no API key. Set WANDB_API_KEY, or WANDB_MODE=offline to send it later")

    def begin(self, entry: Entry, known: str | None) -> tuple[str, bool]:
        """Go on with a run, or begin one."""
        id = known or secrets.token_hex(4)
        self._runs[id] = self._module.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=id,
            name=entry.title,
            group=entry.parent or (id if entry.kind == "sweep" else None),
            job_type=entry.kind,
            config=dict(entry.parameters),
            resume="allow",
            reinit="create_new",
            dir=self._dir,
            settings=self._module.Settings(console="off", silent=True),
        )
        return id, known is None

    def last_step(self, id: str) -> int | None:
        """A run that goes on knows its last step where there is a server."""
        step = self._runs[id].step
        return step - 1 if step else None

    def log(self, id: str, step: int, values: Mapping[str, float]) -> None:
        """Queue metrics."""
        self._runs[id].log(dict(values), step=step, commit=True)

    def add_file(self, id: str, path: Path, folder: str) -> None:
        """Keep a copy with the run: the model as an artifact of type `model`, other files as they are."""
        if folder != "model":
            self._runs[id].save(str(path), base_path=str(path.parent), policy="now")
            return
        artifact = self._module.Artifact(f"model-{id}-{path.stem}{path.suffix.replace('.', '-')}", type="model")
        artifact.add_file(str(path))
        self._runs[id].log_artifact(artifact)

    def keep(self) -> None:
        """Its files, or its server, have it."""

    def end(self, id: str, state: str) -> None:
        """Send the rest and end the run."""
        self._runs.pop(id).finish(exit_code=EXIT_CODES[state])

    def close(self) -> None:
        """Every run has been ended."""
