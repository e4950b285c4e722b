"""Runs one arm as a process of its own and takes its time, its memory and what it leaves on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .outcomes import TABLES, Trial, read_trials

PROJECT_DIR = Path(__file__).resolve().parent.parent.parent
BENCHMARKS_DIR = PROJECT_DIR / "benchmarks"
COMMANDS = {
    "A": ["sweep_arms.documented"],
    "B": ["sweep_arms.tuned"],
    "D": ["sweep_arms.plain"],
    "E": ["tltrain", "run"],
}
_PROC = Path("/proc")
_SAMPLE_EVERY_S = 1.0


@dataclass(frozen=True)
class Ran:
    """What one run of one arm gave."""

    table_s: float
    """From the start of the process until the ranked table was on disk."""
    exit_s: float
    """From the start of the process to its end."""
    peak_memory_mb: float | None
    """Private memory of all its processes plus the largest shared one, sampled once a second. Linux only."""
    written_mb: float
    """Files it left, without Ray's logs."""
    trials: list[Trial]


def run_arm(arm: str, spec: Path, run_dir: Path, folder: Path) -> Ran:
    """Run `arm` on `spec`, which puts its results into `run_dir`. Ends the benchmark where the arm fails.

    `folder` is empty; it becomes the home folder, so that nothing is found that an earlier run has kept.
    """
    home, temporary, log = folder / "home", folder / "t", folder / "log.txt"
    home.mkdir()
    temporary.mkdir()
    command = [sys.executable, "-m", *COMMANDS[arm], str(spec)]
    # The processes that Ray starts have to find the arms too.
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS_DIR), "HOME": str(home), "TMPDIR": str(temporary)}
    started_at = time.time()
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=PROJECT_DIR, env=environment, stdout=output, stderr=subprocess.STDOUT)
        peak = _watch(process)
    exit_s = time.time() - started_at
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-6000:]}")
    table_s = (run_dir / TABLES[arm]).stat().st_mtime - started_at
    written = (_size(home) + _size(run_dir)) / 1e6
    ran = Ran(table_s, exit_s, peak / 1e6 if peak else None, written, read_trials(arm, run_dir))
    shutil.rmtree(temporary, ignore_errors=True)
    return ran


def _watch(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process; return the largest memory seen in bytes, 0 where it cannot be seen."""
    peak = 0
    while True:
        try:
            process.wait(timeout=_SAMPLE_EVERY_S)
            return peak
        except subprocess.TimeoutExpired:
            peak = max(peak, _memory(process.pid)) if _PROC.is_dir() else 0


def _memory(root: int) -> int:
    """Return the private memory of a process and its descendants plus the largest shared one, in bytes."""
    figures = [_resident(pid) for pid in _descendants(root)]
    return sum(private for private, _ in figures) + max((shared for _, shared in figures), default=0)


def _descendants(root: int) -> list[int]:
    parents = {int(path.name): _parent(path) for path in _PROC.iterdir() if path.name.isdigit()}
    found = [root]
    for pid in found:  # grows while it is walked
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended meanwhile
        return -1


def _resident(pid: int) -> tuple[int, int]:
    """Return private and shared resident bytes; files that are only mapped do not count."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:  # it has ended meanwhile
        return 0, 0
    fields: dict[str, Sequence[str]] = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return tuple(int(fields[name][0]) * 1024 if name in fields else 0 for name in ("RssAnon", "RssShmem"))  # pyright: ignore[reportReturnType]


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
