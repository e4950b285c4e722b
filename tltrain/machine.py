"""What this machine has, looked up in a moment and without torch: GPUs, shared memory, open files."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_DRIVER = Path("/proc/driver/nvidia/gpus")


def num_gpus() -> int:
    """Return how many NVIDIA GPUs this process may use, by CUDA_VISIBLE_DEVICES or by what the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return names.index("-1") if "-1" in names else len([name for name in names if name])
    return _installed_gpus()


def _installed_gpus() -> int:
    if _DRIVER.is_dir():
        return len(list(_DRIVER.iterdir()))
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def shared_memory() -> tuple[int, int] | None:
    """Return bytes in all and free bytes of the file system for shared memory; None where there is none."""
    if not SHARED_MEMORY.is_dir():
        return None
    usage = shutil.disk_usage(SHARED_MEMORY)
    return usage.total, usage.free


def open_file_limits() -> tuple[int, int]:
    """Return how many files a process may have open, and how far it may raise that (-1: as far as it likes)."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def devices_text(num_cpus: int, gpus: Sequence[str], num_nodes: int = 1) -> str:
    """Return CPU cores, the GPUs of these names, and the number of nodes where there are several, as one line."""
    counted = [f"{count} x {name}" for name, count in Counter(gpus).items()] or ["no GPU"]
    nodes = [] if num_nodes == 1 else [f"on {num_nodes} nodes"]
    return ", ".join([*counted, f"{num_cpus} CPU core{'' if num_cpus == 1 else 's'}", *nodes])
