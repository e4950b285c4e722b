"""The broker as a Ray actor: trials and worker groups wait in it for each other, without polling."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tltrain.engine.broker import Broker
from tltrain.engine.work import ENDED, Standing, State, Task, Ticket, Work
from tltrain.errors import Problem, RunError

MakeTicket = Callable[[str, dict[str, Any]], Ticket]
CALLS_AT_A_TIME = 10_000  # a trial or a group that waits is a call under way


@dataclass(frozen=True)
class Reply:
    """What a trial is told about an epoch: its row, or why there is none.

    epoch: the one that was asked for, or the lane's last one where it finished before.
    """

    epoch: int
    row: dict[str, Any] | None
    is_last: bool
    error: str = ""


@dataclass(frozen=True)
class Event:
    """Something to show in the live table. `data` is the values of a registered lane, its row, or `{"error": ...}`."""

    kind: Literal["registered", "row", "finished", "failed", "dropped", "saved", "cloned"]
    trial: str
    epoch: int
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Workers:
    """Who speaks for a worker group: the workers of one attempt of it, from its start to their death."""

    group: int
    attempt: int


class BrokerActor:
    """A `Broker` that others wait in. Every method is a coroutine on one event loop, so none sees another half done."""

    def __init__(self, make_ticket: MakeTicket, **options: Any) -> None:
        """options: those of `Broker`."""
        self._broker = Broker(**options)
        self._make_ticket = make_ticket
        self._changed = asyncio.Condition()
        self._told: dict[str, int] = {}
        """Trial -> epochs that it has the rows of."""
        self._origins: dict[str, Ticket] = {}
        """Trial -> the ticket it was registered with last: a lane's own ticket moves on with every save."""
        self._left_at: dict[str, int] = {}
        """Clone -> epochs that its trial had rows of before."""
        self._events: list[Event] = []
        self._first_event = 0
        """Number of the first event that is kept."""
        self._halted = ""
        self._measured: dict[int, dict[str, Any]] = {}
        self._attempts: Counter[int] = Counter()
        """Worker group -> how often it was started or given up."""
        self._present: set[int] = set()
        """Worker groups that have asked for work since they were started last."""

    # What the driver asks.

    async def register(self, tickets: Sequence[Ticket]) -> None:
        """Add lanes, or put them back to another start. After a halt, work begins anew with them."""
        async with self._changed:
            self._halted = ""
            for ticket in tickets:
                self._register(ticket)
            self._changed.notify_all()

    async def allow(self, trial: str, epoch: int) -> None:
        """Let the lane of `trial` train up to `epoch` (1-based), though its trial does not wait for it yet."""
        async with self._changed:
            self._broker.request(trial, epoch)
            self._changed.notify_all()

    async def drop(self, trial: str) -> None:
        """A trial has ended, for whatever reason: its lane trains no further and may be forgotten."""
        async with self._changed:
            if self._broker.is_known(trial):
                self._drop(trial)
                self._changed.notify_all()

    async def halt(self, reason: str) -> None:
        """End all lanes now and let every trial that waits go. Groups stay until `close`."""
        async with self._changed:
            self._halted = reason
            for trial in self._broker.standings():
                self._drop(trial)
            self._changed.notify_all()

    async def finish(self, ticket: Ticket) -> dict[str, Any]:
        """Have a group train `ticket` as a run of its own, and return its summary."""
        async with self._changed:
            self._broker.request_finish(ticket)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._broker.summary is not None)
            assert self._broker.summary is not None
            return self._broker.summary

    async def close(self) -> None:
        """No more lanes will come: groups end when nothing is left to train."""
        async with self._changed:
            self._broker.close()
            self._changed.notify_all()

    async def states(self) -> dict[str, str]:
        """Return trial -> state, for people."""
        return self._broker.states()

    async def standings(self) -> dict[str, Standing]:
        """Return trial -> how far its lane has come."""
        return self._broker.standings()

    async def events(self, since: int = 0) -> list[Event]:
        """Return what happened from event number `since` on; the next call's `since` is that plus their number.

        Who asks has what came before, which is forgotten.
        """
        del self._events[: max(0, since - self._first_event)]
        self._first_event = max(self._first_event, since)
        return list(self._events)

    async def measured(self) -> list[dict[str, Any]]:
        """Return what each group has said last that it measured."""
        return list(self._measured.values())

    # What a trial asks.

    async def attach(self, trial: str, values: dict[str, Any]) -> int:
        """Register the lane of `trial` unless it is known, and return how many epochs the trial has rows of.

        A finished lane's last row does not count: a trial comes back for it where the process that was told has died.
        """
        async with self._changed:
            if not self._broker.is_known(trial):
                self._register(self._make_ticket(trial, values))
                self._changed.notify_all()
            standing = self._broker.standing(trial)
            last = standing.epoch - 1 if standing.state is State.FINISHED else self._told[trial]
            return min(self._told[trial], last)

    async def clone(self, trial: str, values: dict[str, Any], source: str, state: str, epoch: int) -> int:
        """Put the lane of `trial` to the `state` saved of `source` at `epoch`, and return the epochs it has rows of.

        A lane that only waited for its trial to come back is left as it is.
        """
        async with self._changed:
            ticket = dataclasses.replace(self._make_ticket(trial, values), start=state, start_epoch=epoch)
            if source != trial and self._origins[trial] != ticket:
                self._left_at[trial] = self._told[trial]
                self._register(ticket)
                self._changed.notify_all()
            return self._told[trial]

    async def request_row(self, trial: str, epoch: int) -> Reply:
        """Wait for the row of `epoch` (1-based), or for the end of the lane: the last row then, or why it ended."""
        async with self._changed:
            self._broker.request(trial, epoch)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._has_reply(trial, epoch))
            standing = self._broker.standing(trial)
            if standing.state is State.FINISHED:
                epoch = min(epoch, standing.epoch)
            row = self._broker.row(trial, epoch)
            if row is None or "error" in row:
                return Reply(epoch, None, True, standing.error or self._halted or "the lane was dropped")
            self._told[trial] = epoch
            return Reply(epoch, row, is_last=standing.state is State.FINISHED and epoch == standing.epoch)

    def _has_reply(self, trial: str, epoch: int) -> bool:
        return self._broker.row(trial, epoch) is not None or self._broker.standing(trial).state in ENDED

    async def request_save(self, trial: str) -> str | None:
        """Wait until the lane's state is saved and return the state's name; None where the lane ended instead."""
        async with self._changed:
            self._broker.request_save(trial)
            self._changed.notify_all()
            await self._changed.wait_for(
                lambda: self._broker.saved(trial) is not None or self._broker.standing(trial).state in ENDED
            )
            return self._broker.saved(trial)

    # What those ask that watch worker groups.

    async def begin(self, group: int) -> Workers:
        """Begin an attempt of a worker group, and return who speaks for it from now on.

        Its lanes are built anew. Who spoke for it before is given no work and not heard any more: a call that waits
        here outlives the process that made it, and a process may outlive the network that its node was seen by.
        """
        async with self._changed:
            self._attempts[group] += 1
            self._present.discard(group)
            self._broker.restart(group)
            self._changed.notify_all()
            return Workers(group, self._attempts[group])

    async def retire(self, group: int) -> None:
        """A worker group has died or does not start: the others take its lanes until it begins again.

        Who spoke for it is not heard any more.
        """
        async with self._changed:
            self._attempts[group] += 1
            self._present.discard(group)
            self._broker.retire(group)
            self._changed.notify_all()

    async def has_workers(self) -> bool:
        """Whether the workers of any group have come up."""
        return bool(self._present)

    async def claim(self) -> int | None:
        """Wait for a group that has work and that nobody runs, where lanes are isolated; None after `close`."""
        async with self._changed:
            while (group := self._broker.claim()) is None and not self._broker.is_closing:
                await self._changed.wait()
            return group

    async def halve_lanes(self) -> int:
        """A group ran out of memory: fewer lanes at a time from now on. Returns how many; 0 where one was too many."""
        return self._broker.halve_lanes()

    # What the workers of a group ask.

    async def next_work(self, workers: Workers) -> Work:
        """Wait for the next work of a group. Raises RunError where it was started again meanwhile."""
        async with self._changed:
            while True:
                self._check(workers)
                self._present.add(workers.group)
                if (work := self._broker.take(workers.group)) is not None:
                    if work.task is Task.STOP:
                        self._present.discard(workers.group)
                    return work
                await self._changed.wait()

    async def complete(self, workers: Workers, rows: Sequence[Mapping[str, Any]], errors: Mapping[str, str]) -> None:
        """A group has trained an epoch: `rows` of the lanes that went well, `errors` of those that failed."""
        async with self._heard(workers):
            before = self._broker.standings()
            self._broker.complete(rows, errors)
            for row in rows:
                trial = row["lane"]
                epoch = self._broker.standing(trial).epoch
                if epoch > before[trial].epoch:
                    self._events.append(Event("row", trial, epoch, dict(row)))
                    if self._broker.standing(trial).state is State.FINISHED:
                        self._events.append(Event("finished", trial, epoch))
            for trial, error in errors.items():
                if self._broker.standing(trial).state is State.FAILED:
                    self._events.append(Event("failed", trial, before[trial].epoch, {"error": error}))

    async def complete_save(self, workers: Workers, names: Mapping[str, str], fingerprints: Mapping[str, str]) -> None:
        """A group has saved lanes: trial -> name of its state, and sha256 of its weights where it was asked to."""
        async with self._heard(workers):
            self._broker.complete_save(names)
            for trial, name in names.items():
                data = {"state": name, "sha256": fingerprints.get(trial)}
                self._events.append(Event("saved", trial, self._broker.standing(trial).epoch, data))

    async def note_clone(self, workers: Workers, trial: str, state: str, fingerprint: str, name: str) -> None:
        """A group has built the lane of `trial` from the `state` of another, and saved it under a name of its own.

        fingerprint: sha256 of its weights.
        """
        async with self._heard(workers):
            self._broker.adopt(trial, state, name)
            epoch = self._broker.standing(trial).epoch
            data = {"state": state, "sha256": fingerprint, "left_at": self._left_at.get(trial)}
            self._events.append(Event("cloned", trial, epoch, data))
            self._events.append(Event("saved", trial, epoch, {"state": name, "sha256": fingerprint}))

    async def note_measured(self, workers: Workers, record: dict[str, Any]) -> None:
        """A group has measured this since its start."""
        async with self._heard(workers):
            self._measured[workers.group] = record

    async def complete_finish(self, workers: Workers, summary: Mapping[str, Any]) -> None:
        """A group has trained a run of its own."""
        async with self._heard(workers):
            self._broker.complete_finish(summary)

    async def refuse(self, workers: Workers, trials: Sequence[str], limit: int) -> None:
        """A group has no memory for more than `limit` lanes; it has not built those of `trials`."""
        async with self._heard(workers):
            self._broker.refuse(trials, limit)

    @contextlib.asynccontextmanager
    async def _heard(self, workers: Workers) -> AsyncIterator[None]:
        async with self._changed:
            self._check(workers)
            yield
            self._changed.notify_all()

    def _check(self, workers: Workers) -> None:
        """Raise RunError for the workers of an earlier attempt."""
        if (now := self._attempts[workers.group]) != workers.attempt:
            what = f"another attempt has taken over: workers were started again ({now}) after these ({workers.attempt})"
            raise RunError(Problem(what, "Nothing: these are left behind", f"worker group {workers.group + 1}"))

    def _register(self, ticket: Ticket) -> None:
        self._broker.register(ticket)
        self._told[ticket.trial], self._origins[ticket.trial] = ticket.start_epoch, ticket
        self._events.append(Event("registered", ticket.trial, ticket.start_epoch, dict(ticket.values)))
        if self._halted:
            self._drop(ticket.trial)

    def _drop(self, trial: str) -> None:
        standing = self._broker.standing(trial)
        self._broker.drop(trial)
        if standing.state not in ENDED:
            self._events.append(Event("dropped", trial, standing.epoch))


def start_broker(
    make_ticket: MakeTicket, *, num_groups: int, run_ahead: int, max_lanes: int, is_isolated: bool = False
) -> Any:
    """Start the broker's actor on this process's node and return its handle. It takes no CPU.

    make_ticket: trial and values -> the ticket of a lane from the pretrained network. It is called in the actor, for
    lanes whose values only a searcher or a scheduler knows.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_concurrency": CALLS_AT_A_TIME, "scheduling_strategy": here}
    actor = ray.remote(BrokerActor).options(**options)
    return actor.remote(
        make_ticket, num_groups=num_groups, run_ahead=run_ahead, max_lanes=max_lanes, is_isolated=is_isolated
    )
