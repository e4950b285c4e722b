"""What this machine has, looked up in a moment and without torch: GPUs, shared memory, open files."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
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
