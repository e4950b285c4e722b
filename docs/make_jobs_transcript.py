"""Writes docs/jobs-transcript.md, a session on a local cluster, in minutes: `python docs/make_jobs_transcript.py`."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path

from transcript import Session

PROJECT = Path(__file__).resolve().parent.parent
LIMIT_S = 600
INTRODUCTION = """\
# A session on a local cluster

Every command was run, and what it printed stands below it, by `python docs/make_jobs_transcript.py`. The folder of runs
is a temporary one there, shown as `RUNS`. [Jobs](jobs.md) explains the commands.
"""


class Jobs(Session):
    """Runs `tltrain` in the project's folder."""

    def __init__(self, folder: Path) -> None:
        self.runs = folder / "runs"
        super().__init__(PROJECT, folder, {str(self.runs): "RUNS", f"{PROJECT}/": ""}, path=Path(sys.executable).parent)

    def epochs(self, run: str) -> int:
        """Return how many epochs a run has trained."""
        metrics = self.runs / run / "metrics.jsonl"
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    def wait_for_epochs(self, run: str, count: int) -> None:
        """Wait until a run has trained so many epochs."""
        deadline = time.monotonic() + LIMIT_S
        while self.epochs(run) < count:
            assert time.monotonic() < deadline, f"{run} never came to {count} epochs"
            time.sleep(0.5)


def submitted(output: str) -> str:
    """Return the id in what `submit -d` has printed."""
    found = re.search(r"^(\S+) submitted to", output, re.M)
    assert found, output
    return found[1]


def record(session: Jobs) -> None:
    """Go through a sweep from its submission to its end, then stop a job and run it again."""
    storage = f"storage={session.runs}"
    session.run("tltrain", "cluster", "up", "local")
    session.run("tltrain", "cluster", "status", "local")
    session.say("The quickstart, a sweep, as a job. `-d` returns at once; `logs -f` follows.")
    sweep = submitted(
        session.run("tltrain", "submit", "jobs/quickstart.yaml", "--cluster", "local", "-d", "--set", storage)
    )
    session.run("tltrain", "status", sweep)
    session.run("tltrain", "logs", "-f", sweep)
    session.run("tltrain", "status", sweep)
    session.say("A long run, stopped on its way. `retry` goes on from its newest checkpoint.")
    long = ("--set", "train.epochs=40", "--set", storage)
    job = submitted(session.run("tltrain", "submit", "jobs/fashion-lite0.yaml", "--cluster", "local", "-d", *long))
    session.wait_for_epochs("fashion-lite0", 3)
    session.run("tltrain", "jobs")
    session.run("tltrain", "stop", job)
    session.run("tltrain", "status", job)
    before = session.epochs("fashion-lite0")
    session.run("tltrain", "retry", job, "-d")
    session.wait_for_epochs("fashion-lite0", before + 2)
    session.run("tltrain", "logs", job)
    session.run("tltrain", "stop", job)
    session.run("tltrain", "jobs", "-a")
    session.run("tltrain", "runs", str(session.runs))
    session.run("tltrain", "cluster", "down", "local")


def main() -> None:
    """Record the session; the cluster is ended whatever happens."""
    with tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True) as folder:
        session = Jobs(Path(folder))
        try:
            record(session)
        finally:
            session.quietly("tltrain", "cluster", "down", "local")
        (PROJECT / "docs" / "jobs-transcript.md").write_text(INTRODUCTION + session.text)


if __name__ == "__main__":
    main()
