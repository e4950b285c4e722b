"""Memory of processes, as Linux tells it: of one now, of a command at its most, of a whole family."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6


class Ran(NamedTuple):
    """What a command took: seconds that passed, seconds of CPU time, and its largest resident set in MB."""

    passed_s: float
    cpu_s: float
    peak_mb: float


def run(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, stdout: IO[str] | int = subprocess.DEVNULL
) -> Ran:
    """Run a command to its good end and return what it took."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=stdout)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (command, process.returncode)
    return Ran(time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3)


def resident_mb(pid: int) -> float:
    """The resident set of a process now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_MB


def shared_out_mb(pids: Iterable[int]) -> float:
    """Memory of several processes together, what they share counted once (their proportional set sizes)."""
    total = 0
    for pid in pids:
        with suppress(OSError):  # it has ended
            found = re.search(r"^Pss: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
            total += int(found.group(1)) if found else 0
    return total / 1e3
