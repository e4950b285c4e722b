"""What runs in each Ray Train worker of a sweep: it asks the broker for work, and does it, until there is no more."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

import ray

from tltrain.engine.work import Task, Ticket, Work
from tltrain.engine.worker import current_group, open_run
from tltrain.run_folder import WINNER
from tltrain.spec.schema import Spec
from tltrain.spec.space import Trial, apply
from tltrain.train.distributed import Group
from tltrain.train.lane_group import LaneGroup
from tltrain.train.measured import Record
from tltrain.train.presence import present

logger = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
"""How often ranks that wait for work hear from the first, so that no collective times out."""
SAVE_INTERVAL_S = 30.0
"""Shortest time between two saves of all lanes that train, what a group's death may cost, and between two records."""


def lane_worker(config: dict[str, Any], group: Group | None = None) -> Record:
    """Run one rank of the workers `config["workers"]`. group: by default the one that Ray Train has made.

    Returns what it measured.
    """
    if config["python_path"] not in sys.path:
        sys.path.insert(0, config["python_path"])
    group = group or current_group()
    with present(group):
        return _LaneWorker(config, group).run()


class _LaneWorker:
    def __init__(self, config: dict[str, Any], group: Group) -> None:
        self._spec = Spec.model_validate_json(config["spec"])
        self._broker, self._workers, self._group = config["broker"], config["workers"], group
        self._lanes = LaneGroup(
            self._spec,
            open_run(config),
            group,
            index=self._workers.group,
            passes=config["passes"],
            likely=[apply(self._spec, Trial("", values)) for values in config["likely"]],
            attempt=config["attempt"],
        )
        self._saved_at = time.monotonic()

    def run(self) -> Record:
        """Work until the broker says stop."""
        while (work := self._next()).task is not Task.STOP:
            self._do(work)
        measured = self._lanes.measured()
        self._lanes.close()
        return measured

    def _next(self) -> Work:
        """Return the next work, on every rank."""
        with self._lanes.waiting():
            return self._wait()

    def _wait(self) -> Work:
        asked = self._broker.next_work.remote(self._workers) if self._group.is_first else None
        while True:
            work = None
            if asked is not None and ray.wait([asked], timeout=HEARTBEAT_S)[0]:
                work = ray.get(asked)
            work = self._group.broadcast(work)
            if work is not None:
                return work

    def _do(self, work: Work) -> None:
        for trial in work.dropped:
            self._lanes.drop(trial)
        self._lanes.needed = frozenset(work.needed)
        if work.task is Task.FINISH:
            self._finish(work)
            return
        refused = self._build(work.added)
        lanes = [trial for trial in work.lanes if trial not in refused]
        if work.task is Task.SAVE:
            self._save(lanes, work.epoch)
        else:
            self._train(lanes, work.epoch)

    def _build(self, tickets: Sequence[Ticket]) -> list[str]:
        """Build lanes as long as there is memory for them; return the others, which the broker holds back."""
        for index, ticket in enumerate(tickets):
            if not self._lanes.has_room():
                limit, refused = self._lanes.num_lanes(), [ticket.trial for ticket in tickets[index:]]
                logger.info("memory for %d lanes at a time; %d more wait", limit, len(refused))
                self._tell("refuse", refused, limit)
                return refused
            spec = apply(self._spec, Trial(ticket.trial, ticket.values))
            self._lanes.add(ticket.trial, spec, ticket.start, home=ticket.home)
            if ticket.is_clone:
                self._adopt(ticket)
        return []

    def _adopt(self, ticket: Ticket) -> None:
        """Save a clone under a name of its own: its source moves on, and forgets the state that the clone came from."""
        names, hashes = self._saved([ticket.trial], ticket.start_epoch)
        self._tell("note_clone", ticket.trial, ticket.start, hashes[ticket.trial], names[ticket.trial])
        if ticket.former_home is not None:  # the last one may have been chosen by a clone that is not known yet
            self._lanes.delete_states(ticket.former_home)

    def _train(self, lanes: list[str], epoch: int) -> None:
        if not lanes:
            return
        rows, errors = self._lanes.train_epoch(lanes, epoch)
        if self._group.broadcast(time.monotonic() - self._saved_at > SAVE_INTERVAL_S):
            going_on = [row["lane"] for row in rows if not row["is_last"]]
            saved = self._saved(going_on, epoch + 1)
            self._tell("complete", rows, errors)
            self._tell("complete_save", *saved)
            self._tell("note_measured", self._lanes.measured())
            self._saved_at = time.monotonic()
        else:
            self._tell("complete", rows, errors)

    def _save(self, lanes: list[str], epoch: int) -> None:
        self._tell("complete_save", *self._saved(lanes, epoch))

    def _saved(self, lanes: list[str], epoch: int) -> tuple[dict[str, str], dict[str, str]]:
        """Save lanes; return the names of their states, and the sha256 of their weights for what is cloned of them."""
        return self._lanes.save(lanes, epoch), {trial: self._lanes.fingerprint(trial) for trial in lanes}

    def _finish(self, work: Work) -> None:
        ticket = work.added[0]
        spec = apply(self._spec, Trial(ticket.trial, ticket.values)).model_copy(update={"name": WINNER})
        self._tell("complete_finish", self._lanes.finish(spec, WINNER))

    def _tell(self, method: str, *arguments: Any) -> None:
        if self._group.is_first:
            ray.get(getattr(self._broker, method).remote(self._workers, *arguments))
