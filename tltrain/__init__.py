"""Distributed transfer learning on Ray: fine-tune, search and evaluate pretrained vision models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tltrain.api import Job, Result, Spec, load_spec, submit
    from tltrain.run import run_spec as run

__all__ = ["Job", "Result", "Spec", "load_spec", "run", "submit"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is first asked for: `import tltrain` alone costs nothing."""
    if name == "run":  # also a module, and one that can be called
        return importlib.import_module("tltrain.run")
    if name in __all__:
        return getattr(importlib.import_module("tltrain.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
