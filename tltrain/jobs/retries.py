"""What to do after an attempt failed: a pure decision from the causes so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tltrain.jobs.states import Cause

# (attempts that may be repeated for this cause, seconds before the first, most seconds before a later one)
BUDGETS: dict[Cause, tuple[int, float, float]] = {
    Cause.OUT_OF_MEMORY: (1, 0.0, 0.0),
    Cause.NODE_LOST: (5, 5.0, 300.0),
    Cause.PREEMPTED: (20, 15.0, 600.0),
    Cause.CLUSTER_LOST: (3, 10.0, 300.0),
}

_NEVER = {
    Cause.USER: "the same program would fail in the same way",
    Cause.DATA: "the same data would fail in the same way",
    Cause.RESOURCES: "the cluster cannot give what the spec asks for",
    Cause.STORAGE: "the storage has to be repaired first",
    Cause.TIME_LIMIT: "its time is used up",
}


@dataclass(frozen=True)
class Decision:
    """Whether to try again, after how many seconds, why, and whether with half the micro-batch."""

    retry: bool
    reason: str
    wait_s: float = 0.0
    halve_micro_batch: bool = False


def decide(causes: Sequence[Cause], *, time_left_s: float | None = None) -> Decision:
    """Decide after failures with these causes, the latest last; `time_left_s` is what is left of max_duration.

    Errors of the user and the data are never repeated; out of memory once, with half the micro-batch; lost nodes,
    preemptions and lost clusters on budgets of their own, with pauses that double.
    """
    cause, count = causes[-1], list(causes).count(causes[-1])
    if cause in _NEVER:
        return Decision(False, f"{cause.value}: {_NEVER[cause]}")
    most, first_s, longest_s = BUDGETS[cause]
    if count > most:
        used = "the retry is" if most == 1 else f"all {most} retries are"
        return Decision(False, f"{cause.value}: {used} used")
    wait_s = min(longest_s, first_s * 2 ** (count - 1))
    if time_left_s is not None and wait_s >= time_left_s:
        return Decision(False, f"{cause.value}, and max_duration ends before the next attempt would begin")
    halve = cause is Cause.OUT_OF_MEMORY
    how = "with half the micro-batch; the batch stays the same" if halve else f"in {wait_s:g} s"
    return Decision(True, f"{cause.value}: retry {count} of {most} {how}", wait_s, halve)
