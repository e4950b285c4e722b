"""The states of a job and the causes of a failure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(str, Enum):
    """Where a job is."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    UNKNOWN = "UNKNOWN"  # the cluster forgot it

    @property
    def is_active(self) -> bool:
        """Whether the job may still change by itself."""
        return self in (State.QUEUED, State.STARTING, State.RUNNING)


class Cause(str, Enum):
    """Why an attempt failed. A run's own errors name theirs (`tltrain.errors.TltrainError.cause`)."""

    USER = "user code"
    DATA = "data"
    RESOURCES = "resources"
    STORAGE = "storage"
    OUT_OF_MEMORY = "out of memory"
    NODE_LOST = "node lost"
    PREEMPTED = "preempted"
    CLUSTER_LOST = "cluster lost"
    TIME_LIMIT = "time limit"


@dataclass(frozen=True)
class Verdict:
    """A job's state, the cause where it failed, and one line that says why it is so."""

    state: State
    reason: str = ""
    cause: Cause | None = None

    def __str__(self) -> str:
        cause = f" ({self.cause.value})" if self.cause else ""
        return f"{self.state.value}{cause}{f': {self.reason}' if self.reason else ''}"
