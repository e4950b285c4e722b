"""Writes docs/jobs-transcript.md, a session on a local cluster, in minutes: `python docs/make_jobs_transcript.py`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PROGRAM = Path(sys.executable).parent / "tltrain"
LIMIT_S = 600
INTRODUCTION = """\
# A session on a local cluster

Every command was run, and what it printed stands below it, by `python docs/make_jobs_transcript.py`. The folder of runs
is a temporary one there, shown as `RUNS`. [Jobs](jobs.md) explains the commands.
"""


class Session:
    """Runs commands in the project's folder, with job records and runs of its own, and writes them down."""

    def __init__(self, folder: Path) -> None:
        self.runs = folder / "runs"
        homes = {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "DATA", "CONFIG", "CACHE")}
        self._environment = {**os.environ, **homes, "COLUMNS": "80", "NO_COLOR": "1"}
        self.text = INTRODUCTION

    def say(self, words: str) -> None:
        """Add a line of explanation."""
        self.text += f"\n{words}\n"

    def run(self, *words: str, may_fail: bool = False) -> str:
        """Run `tltrain` with `words`, write down the command and its output, and return the output."""
        done = self._call(*words)
        assert may_fail or done.returncode == 0, done.stdout
        shown = " ".join(words).replace(str(self.runs), "RUNS")
        output = done.stdout.replace(str(self.runs), "RUNS").rstrip()
        self.text += f"\n```\n$ tltrain {shown}\n{output}\n```\n"
        return done.stdout

    def wait_for(self, job: str, pattern: str) -> None:
        """Wait until the status of `job` matches; what is asked meanwhile is not written down."""
        deadline = time.monotonic() + LIMIT_S
        while not re.search(pattern, self._call("status", job).stdout):
            assert time.monotonic() < deadline, f"{job} never came to {pattern}"
            time.sleep(2)

    def _call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(PROGRAM), *words],
            cwd=PROJECT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )


def submitted(output: str) -> str:
    """Return the id in what `submit -d` has printed."""
    found = re.search(r"^(\S+) submitted to", output, re.M)
    assert found, output
    return found[1]


def record(session: Session) -> None:
    """Go through a sweep from its submission to its end, then stop a job and run it again."""
    storage = f"storage={session.runs}"
    session.run("cluster", "up", "local")
    session.run("cluster", "status", "local")
    session.say("The quickstart, a sweep, as a job. `-d` returns at once; `logs -f` follows.")
    sweep = submitted(session.run("submit", "jobs/quickstart.yaml", "--cluster", "local", "-d", "--set", storage))
    session.run("status", sweep)
    session.run("logs", "-f", sweep)
    session.run("status", sweep)
    session.say("A long run, stopped on its way. `retry` goes on from its newest checkpoint.")
    long = ("--set", "train.epochs=40", "--set", storage)
    job = submitted(session.run("submit", "jobs/fashion-lite0.yaml", "--cluster", "local", "-d", *long))
    session.wait_for(job, "RUNNING")
    time.sleep(30)
    session.run("jobs")
    session.run("stop", job)
    session.run("status", job, may_fail=True)
    session.run("retry", job, "-d")
    session.wait_for(job, "RUNNING")
    session.run("stop", job)
    session.run("jobs", "-a")
    session.run("runs", str(session.runs))
    session.run("cluster", "down", "local")


def main() -> None:
    """Record the session; the cluster is ended whatever happens."""
    with tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True) as folder:
        session = Session(Path(folder))
        try:
            record(session)
        finally:
            session._call("cluster", "down", "local")
        (PROJECT / "docs" / "jobs-transcript.md").write_text(session.text)


if __name__ == "__main__":
    main()
