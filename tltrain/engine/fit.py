"""Ray Train: run the training floor on a worker group, and start it again when workers or nodes are lost."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import ray.train
import ray.train.torch
from ray.exceptions import RayError, RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from tltrain import stopping
from tltrain.engine.alone import WorkerHungError
from tltrain.engine.cluster import connected, wait_for_room, wait_for_room_again
from tltrain.engine.left_on_nodes import delete_on_nodes
from tltrain.engine.line import Line, NoRoomError, has_no_room, have_places
from tltrain.engine.plan import Request
from tltrain.engine.preflight import preflight
from tltrain.engine.retry import Cause, classify, decide, describe
from tltrain.engine.stop_request import GRACE_S, ask_to_stop, forget
from tltrain.engine.worker import train_worker
from tltrain.errors import LostError, OutOfMemoryError, PreemptedError, RunError, TltrainError
from tltrain.lease import begin_workers
from tltrain.progress import Wait, take_waits
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec

try:
    from tltrain.engine.cleaner import Trainer
except ImportError:  # a Ray that is made differently inside: its own cleaner has to do
    from ray.train.torch import TorchTrainer as Trainer

logger = logging.getLogger(__name__)

RAY_FOLDER = "ray"
GROUP_FAILURES = (TrainingFailedError, RayError, WorkerHungError, NoRoomError)
"""What a worker group may end with."""
ROOM_AT_ONCE_S = 5.0
"""How long Ray may take to give free room to workers."""


def fit(spec: Spec, run: RunFolder, *, poll: Callable[[], None]) -> dict[str, Any]:
    """Train `spec` in `run` on the cluster and return the summary. `poll` is called a few times a second meanwhile.

    Raises ResourceError where the cluster cannot hold the request, or others have used what it needs for too long, the
    worker's own TltrainError, or RunError.
    """
    with connected():
        failures = 0
        request = preflight(spec, run, wait_for_room(spec.resources, run))
        line = Line(spec.resources, request, run)
        while True:
            attempts = run.state().get("attempts", 0)
            run.update(attempts=attempts if line.is_waiting else attempts + 1, workers=request.max_workers)
            try:
                summary = _attempt(spec, run, request, poll, line)
                if failures:
                    delete_on_nodes(run)
                run.folder.delete(RAY_FOLDER)
                return summary
            except GROUP_FAILURES as error:  # Ray's own errors as well: its controller is lost with its node
                if has_no_room(unwrap(error)):
                    line.wait()
                else:
                    line.leave()
                    retry_or_raise(error, failures, spec.resources.max_failures, take_waits(run.folder))
                    failures += 1
            request = wait_for_room_again(spec.resources, run)


def _attempt(spec: Spec, run: RunFolder, request: Request, poll: Callable[[], None], line: Line) -> dict[str, Any]:
    """Run one worker group to its end in a thread, so that this one stays free for `poll` and for Ctrl-C."""
    name = f"attempt-{run.state()['attempts']}-{time.time_ns()}"
    stop_key = f"tltrain/stop/{run.uri}/{name}"
    config = {"lease": begin_workers(run.folder, ""), "stop_key": stop_key}
    trainer = build_trainer(train_worker, config, spec, run, request, name=name)
    future = in_background(trainer.fit)
    look = _watch_for_room(line)
    with stopping.deferred():
        while not future.done() and not stopping.wished():
            concurrent.futures.wait([future], timeout=0.2)
            look()
            poll()
        if stopping.wished():
            _stop(future, stop_key)
    summary = future.result().return_value
    assert summary is not None, "a worker group that ends well returns a summary"
    return summary


def _watch_for_room(line: Line) -> Callable[[], None]:
    """Return what tells whether workers that are starting wait for a place; it is called a few times a second."""
    asked_at, are_placed = None, False

    def look() -> None:
        nonlocal asked_at, are_placed
        found = None if are_placed else have_places()
        if found:
            are_placed = True
            line.leave()
        elif found is False:
            asked_at = asked_at or time.monotonic()
            if time.monotonic() - asked_at > ROOM_AT_ONCE_S:
                line.wait()

    return look


def _stop(future: concurrent.futures.Future[Any], stop_key: str) -> NoReturn:
    """Have the workers write a checkpoint and end, in the time that there is; then end as the signal asks for."""
    ask_to_stop(stop_key, stopping.wished())
    concurrent.futures.wait([future], timeout=GRACE_S)
    forget(stop_key)
    if not future.done():
        logger.warning("the workers have not ended within %g s, and are left behind", GRACE_S)
    stopping.end(stopping.wished())


def in_background(function: Callable[[], Any]) -> concurrent.futures.Future[Any]:
    """Call `function` in a thread that nobody waits for: after Ctrl-C, leaving the cluster ends what it does."""
    executor = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray-train")
    future = executor.submit(function)
    executor.shutdown(wait=False)
    return future


def build_trainer(
    worker: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    spec: Spec,
    run: RunFolder,
    request: Request,
    *,
    name: str,
) -> ray.train.torch.TorchTrainer:
    """Return a trainer whose workers call `worker` with `config`, the spec, the run's address and this folder."""
    workers = (request.min_workers, request.max_workers) if request.is_elastic else request.max_workers
    resources = {"CPU": request.cpus_per_worker} | ({"GPU": request.gpus_per_worker} if request.gpus_per_worker else {})
    # Ray's own notes stand in the run folder, which all nodes must reach anyway.
    filesystem, path = run.folder.child(RAY_FOLDER).arrow
    return Trainer(
        worker,
        train_loop_config={"spec": spec.model_dump_json(), "run": run.uri, "python_path": os.getcwd(), **config},
        torch_config=ray.train.torch.TorchConfig(timeout_s=round(spec.resources.collective_timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=request.gpus_per_worker > 0,
            resources_per_worker=resources,
            placement_strategy=request.placement.upper(),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            # Restarts are decided here, by cause; Ray would also repeat errors of the user.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )


def retry_or_raise(error: BaseException, failures_before: int, max_failures: int, waits: Sequence[Wait] = ()) -> None:
    """Wait for the next attempt, or raise what the user should see. waits: what the workers waited for at the end."""
    failures = unwrap(error)
    cause = classify(failures)
    decision = decide(cause, failures_before=failures_before, max_failures=max_failures)
    waited = "".join(f"; it had waited for {wait.what}" for wait in waits)
    if decision.retry:
        names = describe(_by_rank(error))
        logger.warning("%s%s%s", decision.reason, f" ({names})" if names else "", waited)
        time.sleep(decision.wait_s)
        return
    for failure in sorted(failures, key=lambda each: isinstance(each, LostError)):
        if isinstance(failure, TltrainError):
            raise failure from None
    if cause is Cause.OUT_OF_MEMORY:
        raise OutOfMemoryError(
            "a GPU ran out of memory", "Double train.accumulation_steps: the result stays the same"
        ) from error
    raise _error_type(cause, failures)(
        f"{decision.reason}{waited}.\n{error}", "Run the same command again to go on from the newest checkpoint"
    ) from error


def _error_type(cause: Cause, failures: Sequence[BaseException]) -> type[RunError]:
    """Return the error that says whether the run is worth starting again."""
    if cause is not Cause.LOST:
        return RunError
    return PreemptedError if any(type(failure).__name__ == "PreemptionError" for failure in failures) else LostError


def unwrap(error: BaseException) -> list[BaseException]:
    """Return the exceptions behind Ray's: one per failed worker, or the controller's."""
    if isinstance(error, RayTaskError):
        return [error.cause]
    failures = list(_by_rank(error).values())
    controller_failure = getattr(error, "controller_failure", None)
    if controller_failure is not None:
        failures.append(_inner(controller_failure))
    return failures or [error]


def _by_rank(error: BaseException) -> dict[int, BaseException]:
    """Return the exceptions of the workers behind Ray's."""
    return {rank: _inner(failure) for rank, failure in getattr(error, "worker_failures", {}).items()}


def _inner(failure: BaseException) -> BaseException:
    for attribute in ("_base_exc", "health_check_failure"):
        inner = getattr(failure, attribute, None)
        if isinstance(inner, BaseException):
            return inner
    return failure
