"""A user's home of its own, in which the program runs as a process of its own: for tests on real clusters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tltrain.jobs.local_state import without_ray

WAIT_S = 120.0


@dataclass(frozen=True)
class OwnHome:
    """A home in `folder`, which is also the current directory of what runs in it."""

    folder: Path

    def cluster_file(self, name: str, text: str) -> Path:
        """Write a cluster file of this name, and return the folder it is in."""
        folder = self.folder / "config" / "tltrain" / "cluster"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
        return folder

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `tltrain ARGUMENTS`."""
        homes = {f"XDG_{kind}_HOME": str(self.folder / kind.lower()) for kind in ("DATA", "CONFIG", "STATE")}
        command = [sys.executable, "-m", "tltrain", *arguments]
        return subprocess.Popen(
            command,
            env=without_ray(os.environ) | homes,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Run `tltrain ARGUMENTS` to its end; returns what it wrote to stdout and stderr."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=240)
        assert process.returncode == code, f"{arguments}: {process.returncode}\n{out}\n{err}"
        return out, err

    def job(self, own_id: str) -> dict[str, Any]:
        """What `tltrain status` says about a job."""
        return json.loads(self.run("status", own_id, "--json")[0])

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, what
            time.sleep(0.3)


def id_in(err: str) -> str:
    """The id of the job that `tltrain submit` named."""
    return next(line for line in err.splitlines() if "submitted to" in line).split()[0]
