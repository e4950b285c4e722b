"""What a process learns from around it: its job, where its secrets are to be read, how many cores it has."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from tltrain.errors import Problem, ResourceError

JOB_VARIABLE = "TLTRAIN_JOB"
"""Names the submission that a process belongs to."""
SECRETS_VARIABLE = "TLTRAIN_SECRETS"
"""JSON: environment variable -> `env:NAME` or `file:/PATH`, where its value stands on the cluster's machines."""


def take_secrets() -> None:
    """Set the environment variables that a job's secrets are read from, on whatever machine this process is.

    Only references travel with a job; the values are never shown. Raises ResourceError with all problems.
    """
    problems = []
    for variable, reference in json.loads(os.environ.get(SECRETS_VARIABLE) or "{}").items():
        value = _value(reference)
        if value:
            os.environ[variable] = value
        else:
            what = f"the secret {variable} is not to be had at {reference} on {socket.gethostname()}"
            problems.append(Problem(what, "Put it there on every machine, or correct `secrets` in the cluster file"))
    if problems:
        raise ResourceError(problems)


def _value(reference: str) -> str | None:
    source, _, name = reference.partition(":")
    if source == "env":
        return os.environ.get(name)
    try:
        return Path(name).expanduser().read_text("utf-8").strip()
    except (OSError, ValueError):  # ValueError: it is no text
        return None


def num_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
