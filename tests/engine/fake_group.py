"""A worker group without a network: takes work from the broker and makes rows up from the lanes' values."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import ray

from tltrain.engine.work import Task, Ticket, Work
from tltrain.spec.schema import Spec

FATAL = 999.0


def accuracy(values: dict[str, Any], epoch: int) -> float:
    """Return a made-up val_top1: rises with the epoch, and is best at a learning rate of 0.1."""
    rate = values["optim.learning_rate"]
    return epoch / (epoch + 1) / (1 + 10 * abs(rate - 0.1))


def make_ticket(epochs: int, trial: str, values: dict[str, Any]) -> Ticket:
    """Return a lane from the pretrained network."""
    return Ticket(trial, dict(values), "all", epochs)


def sweep_spec(epochs: int = 4, **sweep: Any) -> Spec:
    """Return a spec whose sweep searches the learning rate."""
    values = {
        "name": "fake",
        "model": {"name": "resnet18"},
        "data": {"train": "nowhere"},
        "train": {"epochs": epochs},
        "sweep": {"space": {"optim.learning_rate": {"loguniform": [0.001, 1.0]}}, "search": "random", **sweep},
        "storage": "nowhere",
    }
    return Spec.model_validate(values)


@dataclass
class FakeGroup:
    """A thread that trains by arithmetic. A learning rate of FATAL makes a lane fail in its second epoch."""

    broker: Any
    number: int = 0
    seconds_per_epoch: float = 0.0
    works: list[Work] = field(default_factory=list)
    lanes: dict[str, tuple[Ticket, int]] = field(default_factory=dict)
    """Trial -> its ticket and the epochs its weights have seen."""

    def start(self) -> FakeGroup:
        """Begin to take work; ends when the broker is closed."""
        self.workers = ray.get(self.broker.begin.remote(self.number))
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self.thread.start()
        return self

    def _loop(self) -> None:
        while (work := self._next_work()).task is not Task.STOP:
            self.works.append(work)
            for trial in work.dropped:
                self.lanes.pop(trial, None)
            for ticket in work.added:
                self.lanes[ticket.trial] = (ticket, ticket.start_epoch)
            if work.task is Task.SAVE:
                names = {trial: f"{self.lanes[trial][0].home}/{self.lanes[trial][1]}" for trial in work.lanes}
                ray.get(self.broker.complete_save.remote(self.workers, names, {}))
            else:
                time.sleep(self.seconds_per_epoch)
                self._train(work)

    def _next_work(self) -> Work:
        work: Any = ray.get(self.broker.next_work.remote(self.workers))
        return work

    def _train(self, work: Work) -> None:
        rows, errors = [], {}
        for trial in work.lanes:
            ticket, epoch = self.lanes[trial]
            assert epoch == work.epoch, (trial, epoch, work)
            if ticket.values["optim.learning_rate"] == FATAL and epoch == 1:
                errors[trial] = "the loss is not finite"
                continue
            self.lanes[trial] = (ticket, epoch + 1)
            rows.append({"lane": trial, "epoch": epoch + 1, "val_top1": accuracy(ticket.values, epoch + 1)})
        ray.get(self.broker.complete.remote(self.workers, rows, errors))
