"""The versions that decide how numbers come out. Torchvision is not imported for its own: that takes seconds."""

from __future__ import annotations

import importlib.metadata
import platform

import torch


def versions() -> dict[str, str]:
    """Return the versions of Python, torch (with its build, such as +cu130) and torchvision."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": importlib.metadata.version("torchvision"),
    }
