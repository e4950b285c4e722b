"""The worker groups of a sweep: started, started again after a loss, with fewer lanes where memory ran out."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from tltrain.engine.alone import WorkerHungError, run_alone, start_process
from tltrain.engine.cluster import ask_autoscaler, live_nodes, wait_for_room_again
from tltrain.engine.fit import GROUP_FAILURES, build_trainer, retry_or_raise, unwrap
from tltrain.engine.lane_worker import lane_worker
from tltrain.engine.line import ROOM_WITHIN_S, Line, NoRoomError, has_no_room
from tltrain.engine.plan import Request, capacity
from tltrain.engine.retry import Cause, classify
from tltrain.errors import LostError, OutOfMemoryError
from tltrain.lease import begin_workers
from tltrain.progress import take_waits
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.train.measured import Record, merged

logger = logging.getLogger(__name__)

SECOND_PASSES = 2
"""Guess of how often the same images are gone through again by lanes that start later."""
SETTLE_S = 5.0
"""How long the cluster may take to see that a node is gone, or that another has come."""
LOOK_S = 5.0
"""How often a group that is one too many looks for a node."""


class WorkerGroups:
    """So many worker groups that ask one broker for work, each watched by a thread of this process."""

    def __init__(
        self,
        spec: Spec,
        run: RunFolder,
        request: Request,
        broker: Any,
        *,
        count: int,
        likely: Sequence[dict[str, Any]],
        started: Sequence[Any] = (),
    ) -> None:
        """likely: sets of values of lanes to come, whose taps the groups of a node compute together beforehand.

        started: what `prestart` gave.
        """
        assert spec.sweep is not None
        self._spec, self._run, self._request, self._broker = spec, run, request, broker
        self._count, self._active = count, count
        self._likely = likely if count > 1 else []
        self._attempt = str(time.time_ns())
        self._is_isolated = spec.sweep.isolation == "process"
        self._started = list(started[:count])
        for process in started[count:]:
            ray.kill(process)
        self._futures: list[concurrent.futures.Future[Record]] = []
        self._waiting, self._ended = threading.Lock(), threading.Event()
        self._counting, self._places = threading.Lock(), threading.Semaphore(count)
        self._line, self._has_waited = Line(spec.resources, request, run), threading.Event()
        self.has_failed = False
        """Whether a group has ended otherwise than by having nothing more to do."""
        self._told: set[int] = set()
        """Groups of which it has been said that they wait for room."""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run all groups during a `with` block; at its end the broker is closed and they end."""
        watch = self._run_claimed if self._is_isolated else self._run_group
        executor = concurrent.futures.ThreadPoolExecutor(self._count, thread_name_prefix="group")
        with self._started_early(), executor:
            self._futures = [executor.submit(watch, index) for index in range(self._count)]
            try:
                yield
            finally:
                self._ended.set()
                ray.get(self._broker.halt.remote("the sweep has ended"))
                ray.get(self._broker.close.remote())

    @contextlib.contextmanager
    def _started_early(self) -> Iterator[None]:
        """End the processes that no group has come to when a `with` block ends, as where the broker is lost before."""
        try:
            yield
        finally:
            while self._started:
                ray.kill(self._started.pop())

    def look(self) -> None:
        """Raise what a group has ended with; tell whether all wait for room, or raise ResourceError if for too long."""
        for future in self._futures:
            if future.done() and future.exception() is not None:
                future.result()
        if self._has_waited.is_set():
            if ray.get(self._broker.has_workers.remote()):
                self._has_waited.clear()
                self._line.leave()
            else:
                self._line.wait()

    def measured(self) -> Record:
        """Return what all groups measured, once they have ended."""
        return merged(future.result() for future in self._futures)

    def _run_claimed(self, index: int) -> Record:
        """Give one trial after another a worker group of its own, until there are no more.

        No more groups are there at a time than the cluster holds, and each trains only what its trial waits for, so
        none waits for resources that another holds.
        """
        records, folder = list[Record](), self._run.folder.child("groups")
        while True:
            group: int | None = ray.get(self._broker.claim.remote())
            if group is None:
                return merged(records)
            if not self._take_place():
                continue  # to be told that there is nothing more
            try:
                records.append(self._run_group(group))
            finally:
                self._places.release()
            for name in folder.names():  # each has a copy of the pretrained network
                if name.startswith(f"{group}-"):
                    folder.delete(name)

    def _run_group(self, index: int) -> Record:
        """Keep one worker group going until the broker ends it, starting it again where it is lost or has no room."""
        failures = 0
        while True:
            try:
                return self._run_workers(index, f"group-{index}-{failures}-{time.time_ns()}")
            except GROUP_FAILURES as error:
                self.has_failed = True
                if has_no_room(unwrap(error)):
                    self._leave_to_others(index)
                elif self._has_fewer_lanes(error):
                    continue
                else:
                    waits = take_waits(self._run.folder, str(index))
                    retry_or_raise(error, failures, self._spec.resources.max_failures, waits)
                    failures += 1
                if self._is_one_too_many() and not self._waits_for_node(index):
                    return {}
                self._wait_for_room()
                if self._ended.is_set():
                    return {}

    def _leave_to_others(self, index: int) -> None:
        """Let the other groups train the lanes of one that has no room, until it has."""
        self._has_waited.set()
        if self._is_isolated or self._ended.is_set():
            return
        if index not in self._told and self._count > 1:
            logger.info("there is no room yet for worker group %d; the others take its lanes until there is", index + 1)
            self._told.add(index)
        ray.get(self._broker.retire.remote(index))

    def _waits_for_node(self, index: int) -> bool:
        """Wait until there is a node again for a group that is one too many, or another trial's workers have ended.

        Its lanes go to the others meanwhile. Return False where the sweep has ended instead.
        """
        if self._is_isolated:
            logger.warning("no node is left for a trial's workers; it waits for one, or until another trial has ended")
            return self._take_place()  # beside its own, which is lost with the node
        logger.warning("no node is left for worker group %d; the others take its lanes until there is one", index + 1)
        ray.get(self._broker.retire.remote(index))
        while not self._ended.wait(LOOK_S):
            if self._has_grown():
                logger.info("there is a node for worker group %d again; it takes its share of the lanes", index + 1)
                return True
        return False

    def _take_place(self) -> bool:
        """Wait for a place for a trial's workers, one that is left or one on a node that has come; False at the end."""
        while not self._places.acquire(timeout=LOOK_S):
            if self._ended.is_set():
                return False
            if self._has_grown():
                return True
        return True

    def _wait_for_room(self) -> None:
        """Wait for a node to come back: a start for which there is no room would end as another loss."""
        with self._waiting:
            try:
                wait_for_room_again(self._spec.resources, self._run, self._ended)
            except LostError:
                if not self._ended.is_set():
                    raise

    def _is_one_too_many(self) -> bool:
        """Whether the cluster holds fewer groups than there are, and goes on doing so; the last one is never too many.

        If so there is one group less from then on.
        """
        if self._active == 1 or len(ray.nodes()) == 1:
            return False
        self._ended.wait(SETTLE_S)
        with self._counting:
            if self._active == 1 or self._has_room():
                return False
            self._active -= 1
            return True

    def _has_grown(self) -> bool:
        """Whether the cluster holds one more of the groups that there were; if so it is there from then on.

        Else the cluster is asked to grow, again each time: another group may have asked for less meanwhile.
        """
        with self._counting:
            if self._active == self._count:
                return False
            if self._has_room(1):
                self._active += 1
                return True
        ask_autoscaler(self._request, self._count)
        return False

    def _has_room(self, more: int = 0) -> bool:
        """Whether the nodes that are alive hold all groups at once, and so many more."""
        held = sum(capacity(self._request, node) for node in live_nodes())
        return held >= (self._active + more) * self._request.min_workers

    def _run_workers(self, index: int, name: str) -> Record:
        make_config = functools.partial(self._make_config, index)
        if self._request.max_workers == 1:
            process = self._started.pop() if self._started else start_process(self._request)
            look = self._watch_start(index)
            return run_alone(lane_worker, make_config, self._spec, self._run, process, look=look)
        trainer = build_trainer(lane_worker, make_config(), self._spec, self._run, self._request, name=name)
        return trainer.fit().return_value or {}

    def _make_config(self, index: int) -> dict[str, Any]:
        return {
            "broker": self._broker,
            "workers": ray.get(self._broker.begin.remote(index)),
            "passes": SECOND_PASSES * self._spec.train.epochs,
            "likely": self._likely,
            "attempt": self._attempt,
            "lease": begin_workers(self._run.folder, str(index)),
        }

    def _watch_start(self, index: int) -> Callable[[bool], None]:
        """Return what is told every second, while a process starts, whether it has a place."""
        began = time.monotonic()

        def look(is_placed: bool) -> None:
            if self._ended.is_set():
                raise NoRoomError("the sweep has ended before a worker had started")
            if not self._has_room():
                raise WorkerHungError("a worker has no room any more")
            if not is_placed and time.monotonic() - began > ROOM_WITHIN_S:
                self._leave_to_others(index)

        return look

    def _has_fewer_lanes(self, error: BaseException) -> bool:
        """Halve the lanes that train at a time where memory ran out; return whether that helps."""
        if classify(unwrap(error)) is not Cause.OUT_OF_MEMORY:
            return False
        lanes = ray.get(self._broker.halve_lanes.remote())
        if lanes == 0:
            raise OutOfMemoryError(
                "a single lane does not fit the memory", "Double train.accumulation_steps: the result stays the same"
            ) from error
        logger.warning("out of memory; going on with at most %d lanes at a time", lanes)
        return True
