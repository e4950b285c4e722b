"""Python code that a spec names, imported where the spec allows it; its own errors are told with their line."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tltrain.errors import Problem, SpecError


def imported(reference: str, key: str) -> Callable[..., Any]:
    """Return the function `package.module:function`; modules in the current directory are found too.

    key: the key of the spec that names it. Raises SpecError where it cannot be imported or is no function.
    """
    module_name, _, function_name = reference.partition(":")
    if not module_name or not function_name.isidentifier():
        raise SpecError(Problem(f"{reference!r} is no function", "Write it as package.module:function", key=key))
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's own code
        action = "Install it, or start tltrain in the folder where it is"
        raise SpecError(Problem(f"importing {module_name} failed: {last_place(error)}", action, key=key)) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value)]
        nearest = difflib.get_close_matches(function_name, names, n=1)
        meant = f"Did you mean {nearest[0]}?" if nearest else ""
        raise SpecError(Problem(f"{module_name} has no function {function_name!r}", meant, key=key))
    return function


def last_place(error: Exception) -> str:
    """Return the error and the line of code that it came from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
