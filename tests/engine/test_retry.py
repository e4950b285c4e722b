"""Which failures are tried again: a table of causes and budgets."""

from __future__ import annotations

import pytest
import torch
from ray.exceptions import ActorDiedError, WorkerCrashedError

from tltrain.engine.retry import Cause, classify, decide, describe
from tltrain.errors import DataError, LostError

BROKEN = RuntimeError("[gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:4242")


@pytest.mark.parametrize(
    ("failures", "cause"),
    [
        ([ActorDiedError()], Cause.LOST),
        ([WorkerCrashedError(), BROKEN], Cause.LOST),
        ([BROKEN], Cause.LOST),
        ([BROKEN, DataError("a broken image")], Cause.USER),
        ([ActorDiedError(), DataError("a broken image")], Cause.USER),
        ([torch.OutOfMemoryError("CUDA out of memory"), BROKEN], Cause.OUT_OF_MEMORY),
        ([LostError("rank 1 did not arrive"), BROKEN], Cause.LOST),
        ([LostError("rank 1 did not arrive"), DataError("a broken image")], Cause.USER),
        ([ValueError("a bug")], Cause.USER),
        ([ValueError("a bug"), BROKEN], Cause.USER),
    ],
)
def test_cause_of_failures(failures: list[BaseException], cause: Cause) -> None:
    assert classify(failures) is cause


def test_the_ranks_that_were_lost_are_named_and_not_those_that_lost_them() -> None:
    stopped = TimeoutError("it does not answer\nfor 45 s")
    assert describe({0: BROKEN, 1: stopped}) == "rank 1: it does not answer"
    assert describe({0: BROKEN}).startswith("rank 0: [gloo")
    assert describe({}) == ""


def test_losses_are_retried_until_the_budget_is_used() -> None:
    decisions = [decide(Cause.LOST, failures_before=count, max_failures=2) for count in range(3)]
    assert [decision.retry for decision in decisions] == [True, True, False]
    assert decisions[0].wait_s < decisions[1].wait_s


@pytest.mark.parametrize("cause", [Cause.USER, Cause.OUT_OF_MEMORY])
def test_what_would_fail_again_is_never_retried(cause: Cause) -> None:
    assert not decide(cause, failures_before=0, max_failures=100).retry
