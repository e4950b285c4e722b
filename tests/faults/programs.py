"""Runs of the real program that tell how far they are, so that they can be struck in the middle."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import tiny_spec

from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml
from tltrain.spec.schema import Spec

MODULE = '''
"""A network whose ranks write down each step that they have taken, with their process, and take their time."""
import os, time
from pathlib import Path
import torchvision
from tltrain.train.lane import Lane

update = Lane.update

def told_update(lane, step):
    update(lane, step)
    with open(Path({folder!r}) / f"steps-{{lane.group.rank}}", "a") as file:
        file.write(f"{{os.getpid()}} {{step + 1}}\\n")
    time.sleep({pause_s})

Lane.update = told_update

def build(num_classes):
    return torchvision.models.shufflenet_v2_x0_5(num_classes=num_classes)
'''
TIMES = ("train_images_per_s", "epoch_s")


class Program:
    """One run of its own in `folder`, to be started, struck and started again."""

    def __init__(self, folder: Path, changes: dict[str, Any] | None = None, *, pause_s: float = 0.1) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.module = folder, f"told_{folder.name.replace('-', '_')}"
        (folder / f"{self.module}.py").write_text(MODULE.format(folder=str(folder), pause_s=pause_s))
        own = {
            "allow_code": True,
            "model": {"factory": f"{self.module}:build", "weights": "random", "freeze_depth": 2},
            "checkpoint.every_epochs": 100,
            "train.epochs": 4,
        }
        self.spec: Spec = tiny_spec(folder, own | (changes or {}), name="run")
        self.path = folder / "run.yaml"
        self.path.write_text(dump_yaml(self.spec))

    @property
    def run(self) -> RunFolder:
        return RunFolder.at(self.spec.storage, self.spec.name)

    def start(
        self, *options: str, launcher: tuple[str, ...] = (), on: tuple[str, ...] = (), **settings: str
    ) -> subprocess.Popen[str]:
        """Start the program in a session of its own, by torchrun where `launcher` gives its options.

        on: a program and its options that runs it elsewhere. settings: more environment variables.
        """
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment = own | {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"} | settings
        by = ["-m", "torch.distributed.run", *launcher] if launcher else []
        command = [*on, sys.executable, *by, "-m", "tltrain.run", str(self.path), *options]
        files = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=environment, start_new_session=True, **files)  # pyright: ignore

    def steps(self, rank: int = 0) -> list[int]:
        """The steps that a rank has taken, in order, over all attempts."""
        return [int(line.split()[1]) for line in self._lines(rank)]

    def pid(self, rank: int) -> int:
        """The process of a rank."""
        return int(self._lines(rank)[-1].split()[0])

    def _lines(self, rank: int) -> list[str]:
        path = self.folder / f"steps-{rank}"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for_step(self, step: int, rank: int = 0) -> None:
        """Return once a rank has taken so many steps."""
        wait_until(lambda: len(self.steps(rank)) >= step)

    def digest(self) -> str:
        """sha256 of the model."""
        assert self.run.model.local_path is not None
        return hashlib.sha256((self.run.model.local_path / "model.safetensors").read_bytes()).hexdigest()

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics without times."""
        return [{key: value for key, value in row.items() if key not in TIMES} for row in self.run.metrics()]


def wait_until(condition: Callable[[], bool], *, limit_s: float = 180) -> None:
    """Return once `condition` holds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def ended(process: subprocess.Popen[str], *, limit_s: float = 180) -> tuple[int, str]:
    """Return the exit code and what was printed, once a program has ended."""
    try:
        shown, _ = process.communicate(timeout=limit_s)
    finally:
        process.kill()
        process.wait()
    return process.returncode, shown
