"""What a sweep's broker, trials and worker groups tell each other: lanes to train, and how far they are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any


@dataclass(frozen=True)
class Ticket:
    """What a group needs to build a lane: the spec's values, where it starts, how long it trains.

    cohort: lanes with the same text share batches. cost: of one epoch, in any unit, to spread lanes over groups.
    start: name of the saved state it goes on from, None for the pretrained network. generation: how often the lane was
    put to another's state; each has a home of its own for its states, so that none is written over while somebody is
    still to start from it.
    """

    trial: str
    values: dict[str, Any]
    cohort: str
    epochs: int
    cost: float = 1.0
    start_epoch: int = 0
    start: str | None = None
    generation: int = 0

    @property
    def home(self) -> str:
        """What the names of its own states begin with, before the slash and the epoch."""
        return f"{self.trial}.{self.generation}" if self.generation else self.trial

    @property
    def former_home(self) -> str | None:
        """The home of the generation before the last one, None where there was none."""
        return None if self.generation < 2 else dataclasses.replace(self, generation=self.generation - 2).home

    @property
    def is_clone(self) -> bool:
        """Whether it starts from the state of another lane."""
        return self.start is not None and self.start.rpartition("/")[0] != self.home


def trial_of(state: str) -> str:
    """Return the trial of which a state of this name was saved."""
    return state.partition("/")[0].partition(".")[0]


class Task(Enum):
    """What a group is asked to do with the lanes of a piece of work."""

    TRAIN = "train one epoch"
    SAVE = "save the lanes' states"
    FINISH = "train one ticket as a run of its own"
    STOP = "end the worker group"


@dataclass(frozen=True)
class Work:
    """One piece of work for one group. `dropped` lanes are forgotten, then `added` ones built, then the task is done.

    A lane that starts again elsewhere is in both. `needed` are the states that lanes are still to be built from, which
    stay whatever is saved.
    """

    task: Task
    lanes: tuple[str, ...] = ()
    epoch: int = 0
    added: tuple[Ticket, ...] = ()
    dropped: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()


class State(Enum):
    """Where a lane stands."""

    WAITING = "waiting"
    TRAINING = "training"
    SAVING = "saving"
    FINISHED = "finished"
    FAILED = "failed"
    DROPPED = "dropped"


ENDED = (State.FINISHED, State.FAILED, State.DROPPED)


@dataclass(frozen=True)
class Standing:
    """How far a lane has come: the epochs that are trained, and its error if it failed."""

    ticket: Ticket
    state: State
    epoch: int
    error: str = ""
