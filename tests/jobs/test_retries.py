"""Retries by cause: a pure decision."""

from __future__ import annotations

import pytest

from tltrain import errors
from tltrain.jobs.retries import BUDGETS, decide
from tltrain.jobs.states import Cause

NEVER = [Cause.USER, Cause.DATA, Cause.RESOURCES, Cause.STORAGE, Cause.TIME_LIMIT]


def error_classes(base: type[errors.TltrainError] = errors.TltrainError) -> list[type[errors.TltrainError]]:
    return [base, *(below for cls in base.__subclasses__() for below in error_classes(cls))]


@pytest.mark.parametrize("cause", NEVER)
def test_what_would_fail_again_is_never_repeated(cause: Cause) -> None:
    assert not decide([cause]).retry
    assert not decide([Cause.NODE_LOST, cause]).retry


def test_every_cause_has_a_policy() -> None:
    assert {*NEVER, *BUDGETS} == set(Cause)


def test_every_error_names_a_known_cause() -> None:
    assert {cls.cause for cls in error_classes()} <= {cause.value for cause in Cause}


def test_out_of_memory_is_repeated_once_with_half_the_micro_batch() -> None:
    first, second = decide([Cause.OUT_OF_MEMORY]), decide([Cause.OUT_OF_MEMORY] * 2)

    assert (first.retry, first.halve_micro_batch, first.wait_s) == (True, True, 0.0)
    assert "half the micro-batch" in first.reason
    assert not second.retry


@pytest.mark.parametrize("cause", [Cause.NODE_LOST, Cause.PREEMPTED, Cause.CLUSTER_LOST])
def test_losses_have_budgets_of_their_own_and_growing_pauses(cause: Cause) -> None:
    most, first_s, longest_s = BUDGETS[cause]
    others = [other for other in BUDGETS if other is not cause] * 10

    decisions = [decide([*others, *[cause] * count]) for count in range(1, most + 2)]

    assert [decision.retry for decision in decisions] == [True] * most + [False]
    waits = [decision.wait_s for decision in decisions[:most]]
    assert waits == sorted(waits)
    assert waits[0] == first_s
    assert max(waits) <= longest_s
    assert not any(decision.halve_micro_batch for decision in decisions)


def test_nothing_is_repeated_past_max_duration() -> None:
    assert decide([Cause.NODE_LOST], time_left_s=60.0).retry
    ended = decide([Cause.NODE_LOST], time_left_s=1.0)
    assert not ended.retry
    assert "max_duration" in ended.reason
