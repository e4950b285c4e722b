"""The broker: which lanes train next on which worker group. A state machine; trials and groups talk to it by turns.

A trial registers its lane and asks for its epochs one by one. A worker group asks for work, and gets the lanes that
are at the same epoch of the same batches, so that they share decoding and the frozen stages. Nothing here knows Ray.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tltrain.engine.work import ENDED, Standing, State, Task, Ticket, Work


@dataclass
class _Lane:
    ticket: Ticket
    group: int
    allowed: int
    """Epochs that may be trained without another request."""
    epoch: int
    """Epochs that are trained."""
    state: State = State.WAITING
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    error: str = ""
    is_built: bool = False
    wants_save: bool = False
    is_parking: bool = False
    """Its state is being saved so that its group may forget it for now."""
    saved_as: str | None = None
    moves_to: int | None = None
    """Group that it goes to once it is saved."""

    @property
    def load(self) -> float:
        """What is left to train of it."""
        return self.ticket.cost * (self.ticket.epochs - self.epoch)

    @property
    def target(self) -> int:
        """The group that trains it, or will once it has been moved."""
        return self.group if self.moves_to is None else self.moves_to

    @property
    def is_abreast(self) -> bool:
        """Whether it is as far as its trial knows it to be; not so while it catches up after a group's death."""
        return self.epoch >= max(self.rows, default=0)

    @property
    def is_ready(self) -> bool:
        """Whether it may train an epoch now."""
        return self.state is State.WAITING and self.epoch < self.allowed

    def go_back(self) -> None:
        """Forget all that was trained since the newest saved state, which the lane's ticket starts from."""
        self.is_built, self.is_parking, self.state, self.epoch = False, False, State.WAITING, self.ticket.start_epoch
        self.move()

    def move(self) -> None:
        """Belong to the group that it goes to, if it goes to another."""
        self.group, self.moves_to = self.target, None


class Broker:
    """Lanes, their groups and their turns.

    run_ahead: epochs a lane may train before its trial has asked for them: all of them where nothing ever stops a
    trial early, the scheduler's grace period where something does. is_isolated: every lane is a group of its own,
    which somebody claims, runs and ends; group 0 is then that of the run of its own.
    """

    def __init__(self, *, num_groups: int, run_ahead: int, max_lanes: int, is_isolated: bool = False) -> None:
        self.max_lanes = max_lanes
        self._is_isolated = is_isolated
        self._claimed: set[int] = set()
        self._groups, self._run_ahead = list(range(num_groups)), run_ahead
        self._returning: set[int] = set()
        self._lanes: dict[str, _Lane] = {}
        self._to_drop: dict[int, list[str]] = defaultdict(list)
        self.is_closing = False
        self._to_finish: Ticket | None = None
        self.summary: dict[str, Any] | None = None

    def register(self, ticket: Ticket) -> None:
        """Add a lane, or put it back to another start (a clone of another trial's lane)."""
        before = self._lanes.get(ticket.trial)
        if before is not None:
            ticket = dataclasses.replace(ticket, generation=before.ticket.generation + 1)
            if before.is_built:
                self._to_drop[before.group].append(ticket.trial)
        group = self._new_group() if before is None else before.target
        allowed = ticket.start_epoch + self._run_ahead
        self._lanes[ticket.trial] = _Lane(ticket, group, allowed, ticket.start_epoch)

    def _new_group(self) -> int:
        return len(self._lanes) + 1 if self._is_isolated else self._least_loaded()

    def claim(self) -> int | None:
        """Return a group that has work and that nobody has claimed, None where there is none now."""
        waiting = [0] if self._to_finish is not None else []
        waiting += [lane.group for lane in self._lanes.values() if lane.is_ready]
        group = next((group for group in waiting if group not in self._claimed), None)
        if group is not None:
            self._claimed.add(group)
        return group

    def _least_loaded(self) -> int:
        loads = self._loads()
        return min(loads, key=lambda group: (loads[group], group))

    def _loads(self) -> dict[int, float]:
        """Return group -> what is left to train on it."""
        loads = dict.fromkeys(self._groups, 0.0)
        for lane in self._lanes.values():
            if lane.state not in ENDED and lane.target in loads:
                loads[lane.target] += lane.load
        return loads

    def is_known(self, trial: str) -> bool:
        """Whether a lane of this name was registered."""
        return trial in self._lanes

    def request(self, trial: str, epoch: int) -> None:
        """A trial asks for `epoch` (1-based): its lane may train that far."""
        lane = self._lanes[trial]
        lane.allowed = max(lane.allowed, epoch)

    def row(self, trial: str, epoch: int) -> dict[str, Any] | None:
        """Return the metrics of `epoch` (1-based), or None while there are none. A failed lane's row has `error`."""
        lane = self._lanes[trial]
        if epoch not in lane.rows and lane.state is State.FAILED:
            return {"lane": trial, "error": lane.error}
        return lane.rows.get(epoch)

    def request_save(self, trial: str) -> None:
        """A trial asks that its lane's state be saved as it stands now."""
        lane = self._lanes[trial]
        lane.wants_save, lane.saved_as = True, None

    def saved(self, trial: str) -> str | None:
        """Return the name under which the state asked for was saved, or None while it is not."""
        return self._lanes[trial].saved_as

    def drop(self, trial: str) -> None:
        """A trial has ended: its lane trains no further, and nobody asks for its rows any more."""
        lane = self._lanes[trial]
        if lane.state not in ENDED:
            lane.state = State.DROPPED
        self._forget(lane)
        lane.rows.clear()

    def _forget(self, lane: _Lane) -> None:
        """Let the lane's group forget it."""
        if lane.is_built:
            self._to_drop[lane.group].append(lane.ticket.trial)
            lane.is_built = False

    def close(self) -> None:
        """No more lanes will come: groups end when nothing is left to train."""
        self.is_closing = True

    def restart(self, group: int) -> None:
        """A worker group starts again: its lanes must be built anew, and go on from their newest saved states.

        One that had retired gets lanes of the others, once it asks for work.
        """
        self._go_back(group)
        if not self._is_isolated and group not in self._groups:
            self._returning.add(group)

    def retire(self, group: int) -> None:
        """A worker group has died or does not start: the others, if any, take its lanes until it starts again."""
        self._go_back(group)
        self._returning.discard(group)
        self._groups = [other for other in self._groups if other != group]
        if not self._groups:  # another is just starting again, or this is the only one
            self._groups.append(self._returning.pop() if self._returning else group)
        for lane in self._lanes.values():
            if lane.moves_to == group:
                lane.moves_to = None
            elif lane.group == group and lane.state not in ENDED:
                lane.group = self._least_loaded()

    def _go_back(self, group: int) -> None:
        self._to_drop[group].clear()
        for lane in self._lanes.values():
            if lane.group == group and lane.state not in ENDED:
                lane.go_back()

    def _share(self, group: int) -> None:
        """Give a group that has come back its share of the lanes, each from the group with the most left to train."""
        self._returning.discard(group)
        self._groups.append(group)
        while (lane := self._lane_for(group)) is not None:
            lane.moves_to = group
            if not lane.is_built:
                lane.move()

    def _lane_for(self, group: int) -> _Lane | None:
        """Return a lane of the fullest group that `group` would still have less to train with; None for none.

        One that is not built, and so need not be saved before, comes first.
        """
        loads = self._loads()
        fullest = max(loads, key=lambda group: loads[group])
        lanes = (lane for lane in self._lanes.values() if lane.target == fullest and lane.state not in ENDED)
        fitting = [lane for lane in lanes if loads[group] + lane.load < loads[fullest]]
        return max(fitting, key=lambda lane: (not lane.is_built, lane.load), default=None)

    def request_finish(self, ticket: Ticket) -> None:
        """Have the first group train `ticket` as a run of its own; its summary is then in `summary`."""
        self._to_finish, self.summary = ticket, None

    def complete_finish(self, summary: Mapping[str, Any]) -> None:
        """The run of its own has ended."""
        self._to_finish, self.summary = None, dict(summary)

    def take(self, group: int) -> Work | None:
        """Return the next work of `group`, or None where it has to wait."""
        if group in self._returning:
            self._share(group)
        mine = [lane for lane in self._lanes.values() if lane.group == group]
        to_save = [lane for lane in mine if lane.wants_save and lane.state is State.WAITING and lane.is_abreast]
        if to_save:
            return self._begin(Task.SAVE, group, self._at_one_epoch(to_save))
        leaving = [lane for lane in mine if lane.moves_to is not None and lane.state is State.WAITING]
        if leaving:
            return self._park(group, self._at_one_epoch(leaving))
        ready = [lane for lane in mine if lane.is_ready]
        if ready:
            room = self.max_lanes - sum(lane.is_built for lane in mine)
            lanes = self._together(ready, room)
            return self._begin(Task.TRAIN, group, lanes) if lanes else self._make_room(group, mine, len(ready))
        if self._to_finish is not None and group == self._groups[0]:
            ticket, dropped = self._to_finish, self._take_dropped(group)
            return Work(Task.FINISH, (ticket.trial,), added=(ticket,), dropped=dropped)
        if (self.is_closing or self._is_isolated) and all(lane.state in ENDED for lane in mine):
            return Work(Task.STOP)
        return None

    def _together(self, ready: list[_Lane], room: int) -> list[_Lane]:
        """Return the largest set of lanes at the same epoch of the same batches; the earliest epoch breaks ties.

        Built lanes come first, and of the others at most `room`. Empty where there is no room and none is built.
        """
        sets: dict[tuple[str, int], list[_Lane]] = defaultdict(list)
        for lane in ready:
            sets[lane.ticket.cohort, lane.epoch].append(lane)
        for key, lanes in sets.items():
            new = [lane for lane in lanes if not lane.is_built][: max(0, room)]
            sets[key] = [lane for lane in lanes if lane.is_built or lane in new][: self.max_lanes]
        return sets[min(sets, key=lambda key: (-len(sets[key]), key[1], key[0]))]

    def _at_one_epoch(self, lanes: list[_Lane]) -> list[_Lane]:
        return [lane for lane in lanes if lane.epoch == lanes[0].epoch]

    def _make_room(self, group: int, mine: list[_Lane], needed: int) -> Work | None:
        """Have lanes that wait for their trials saved and forgotten; None where none waits."""
        idle = [lane for lane in mine if lane.is_built and lane.state is State.WAITING and not lane.is_ready]
        return self._park(group, self._at_one_epoch(idle)[:needed]) if idle else None

    def _park(self, group: int, lanes: list[_Lane]) -> Work:
        """Have built lanes saved, and then forgotten by their group."""
        for lane in lanes:
            lane.is_parking = True
        return self._begin(Task.SAVE, group, lanes)

    def _begin(self, task: Task, group: int, lanes: list[_Lane]) -> Work:
        added = tuple(lane.ticket for lane in lanes if not lane.is_built)
        for lane in lanes:
            lane.state = State.TRAINING if task is Task.TRAIN else State.SAVING
            lane.is_built = True
        trials = tuple(lane.ticket.trial for lane in lanes)
        return Work(task, trials, lanes[0].epoch, added, self._take_dropped(group), self._needed())

    def _needed(self) -> tuple[str, ...]:
        """Return the states that clones start from; one that has saved its own needs its source's no more."""
        tickets = (lane.ticket for lane in self._lanes.values() if lane.state not in ENDED)
        return tuple(sorted({ticket.start for ticket in tickets if ticket.start is not None and ticket.is_clone}))

    def _take_dropped(self, group: int) -> tuple[str, ...]:
        """Return the lanes that `group` may forget and has not been told of yet."""
        dropped, self._to_drop[group] = tuple(self._to_drop[group]), []
        return dropped

    def refuse(self, trials: Iterable[str], limit: int) -> None:
        """A group has no memory for more than `limit` lanes: it has not built those of `trials`, which wait again."""
        self.max_lanes = max(1, min(self.max_lanes, limit))
        for trial in trials:
            lane = self._lanes[trial]
            if lane.is_built and lane.state in (State.TRAINING, State.SAVING):
                lane.is_built, lane.state = False, State.WAITING
                lane.move()

    def complete(self, rows: Iterable[Mapping[str, Any]], errors: Mapping[str, str]) -> None:
        """A group has trained an epoch: `rows` of the lanes that went well, `errors` of those that failed."""
        for row in rows:
            lane = self._lanes[row["lane"]]
            if lane.state is not State.TRAINING:
                continue  # dropped in the meantime
            lane.epoch += 1
            lane.rows[lane.epoch] = dict(row)
            ends = lane.epoch >= lane.ticket.epochs or bool(row.get("is_last"))
            lane.state = State.FINISHED if ends else State.WAITING
            if ends:
                self._forget(lane)
        for trial, error in errors.items():
            lane = self._lanes[trial]
            if lane.state is State.TRAINING:
                lane.state, lane.error = State.FAILED, error

    def complete_save(self, names: Mapping[str, str]) -> None:
        """A group has saved lanes: trial -> name of its state, from which the lane goes on if its group dies."""
        for trial, name in names.items():
            lane = self._lanes[trial]
            if lane.is_abreast:  # else it is on its way to the state that its trial waits for
                lane.saved_as, lane.wants_save = name, False
            if lane.is_built and lane.state in (State.SAVING, State.WAITING):  # not put elsewhere in the meantime
                lane.ticket = dataclasses.replace(lane.ticket, start=name, start_epoch=lane.epoch)
            if lane.state is State.SAVING:
                lane.state = State.WAITING
            if lane.is_parking and lane.state is State.WAITING:
                lane.is_parking = False
                self._forget(lane)
                lane.move()

    def adopt(self, trial: str, start: str, name: str) -> None:
        """A group has saved as `name` the lane that it built from another's state `start`: it goes on from there."""
        lane = self._lanes[trial]
        if lane.ticket.start == start:  # else it was put elsewhere in the meantime
            lane.ticket = dataclasses.replace(lane.ticket, start=name)

    def halve_lanes(self) -> int:
        """A group ran out of memory: half of the lanes it held from now on. Returns how many; 0 where it held one."""
        held = Counter(lane.group for lane in self._lanes.values() if lane.is_built)
        self.max_lanes = min(self.max_lanes, max(held.values(), default=0)) // 2
        return self.max_lanes

    def standings(self) -> dict[str, Standing]:
        """Return trial -> how far its lane has come."""
        return {trial: self.standing(trial) for trial in self._lanes}

    def standing(self, trial: str) -> Standing:
        """Return how far the lane of `trial` has come."""
        lane = self._lanes[trial]
        return Standing(lane.ticket, lane.state, lane.epoch, lane.error)

    def states(self) -> dict[str, str]:
        """Return trial -> state, for people."""
        return {trial: lane.state.value for trial, lane in self._lanes.items()}
