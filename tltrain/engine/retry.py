"""What to do after a worker group failed: a pure decision from typed causes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from tltrain.errors import LostError, TltrainError


class Cause(Enum):
    """Why an attempt failed."""

    USER = "an error of the spec, the data or the program"
    OUT_OF_MEMORY = "out of memory"
    LOST = "a worker or a node was lost"


@dataclass(frozen=True)
class Decision:
    """Whether to try again, after how many seconds, and why."""

    retry: bool
    wait_s: float
    reason: str


def classify(failures: Sequence[BaseException]) -> Cause:
    """Return the cause behind the workers' `failures`.

    One rank's own error makes the other ranks fail in their collectives, so an error of the user's decides, then
    memory; what is left, and broken collectives, mean that somebody was lost.
    """
    names = [type(failure).__name__ for failure in failures]
    if any(isinstance(failure, TltrainError) and not isinstance(failure, LostError) for failure in failures):
        return Cause.USER
    if any(name == "OutOfMemoryError" for name in names):
        return Cause.OUT_OF_MEMORY
    if all(_is_loss(failure) for failure in failures):
        return Cause.LOST
    return Cause.USER


LOSSES = (
    "RayActorError",
    "ActorDiedError",
    "ActorUnavailableError",
    "NodeDiedError",
    "WorkerCrashedError",
    "WorkerHungError",
    "WorkerHealthCheckTimeoutError",
    "WorkerHealthCheckFailedError",
    "WorkerGroupStartupFailedError",
    "WorkerGroupStartupTimeoutError",
    "PreemptionError",
    "DistBackendError",
    "DistNetworkError",
    "DistStoreError",
)
BROKEN_COLLECTIVES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "gloo",
    "NCCL",
    "Timed out waiting",
)


def describe(failures: Mapping[int, BaseException]) -> str:
    """Name the ranks that were lost, of a group's failures by rank; those whose collectives broke only lost another."""
    lost = {rank: failure for rank, failure in failures.items() if not _is_broken_collective(failure)}
    return "; ".join(f"rank {rank}: {_first_line(failure)}" for rank, failure in sorted((lost or failures).items()))


def _first_line(failure: BaseException) -> str:
    return (str(failure).strip() or type(failure).__name__).splitlines()[0]


def _is_loss(failure: BaseException) -> bool:
    if isinstance(failure, LostError) or any(kind.__name__ in LOSSES for kind in type(failure).__mro__):
        return True
    return _is_broken_collective(failure)


def _is_broken_collective(failure: BaseException) -> bool:
    return isinstance(failure, RuntimeError) and any(words in str(failure) for words in BROKEN_COLLECTIVES)


def decide(cause: Cause, *, failures_before: int, max_failures: int) -> Decision:
    """Return whether to start the worker group again. Only losses are retried, with a growing pause."""
    if cause is not Cause.LOST:
        return Decision(False, 0.0, f"{cause.value}: trying again would not help")
    if failures_before >= max_failures:
        return Decision(
            False, 0.0, f"{cause.value}, and all {max_failures} restarts of resources.max_failures are used"
        )
    wait_s = min(30.0, 0.5 * 2**failures_before)
    return Decision(True, wait_s, f"{cause.value}; restart {failures_before + 1} of {max_failures} in {wait_s:g} s")
