"""What a trial costs beside its training: lanes under Ray Tune against Ray Tune's plain function trials, in one run.

    python benchmarks/trial_overhead.py --trials 200 --plain-trials 40

Nothing is trained: rows come from a formula at once, so all of the time is overhead. Processes start inside the clock.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune.schedulers import ASHAScheduler

from tltrain.engine.broker_actor import start_broker
from tltrain.engine.cluster import connected
from tltrain.engine.schedulers import run_ahead
from tltrain.engine.tuning import quiet, run_tune
from tltrain.engine.work import Task, Ticket
from tltrain.spec.schema import Spec
from tltrain.spec.space import propose


def main() -> None:
    """Run both arms and print seconds per trial and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="trials as lanes")
    parser.add_argument("--plain-trials", type=int, default=40, help="plain function trials")
    parser.add_argument("--epochs", type=int, default=3, help="rows of each trial")
    parser.add_argument("--scheduler", default="fifo", help="scheduler of both arms: fifo or asha")
    arguments = parser.parse_args()
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with connected():
        spec = make_spec(arguments.trials, arguments.epochs, arguments.scheduler)
        lanes = time_lanes(spec)
        plain = time_plain(arguments.plain_trials, arguments.epochs, arguments.scheduler)
    print(f"lanes: {arguments.trials} trials x {arguments.epochs} epochs, {lanes:.4f} s per trial")
    print(f"plain: {arguments.plain_trials} trials x {arguments.epochs} epochs, {plain:.4f} s per trial")
    print(f"lanes / plain: {lanes / plain:.3f}")


def make_spec(num_trials: int, epochs: int, scheduler: str) -> Spec:
    """Return the spec of a random search over the learning rate."""
    space = {"optim.learning_rate": {"loguniform": [0.001, 1.0]}}
    sweep = {"space": space, "search": "random", "num_trials": num_trials, "scheduler": scheduler}
    values = {"name": "overhead", "model": {"name": "resnet18"}, "data": {"train": "nowhere"}, "storage": "nowhere"}
    return Spec.model_validate({**values, "train": {"epochs": epochs}, "sweep": sweep})


def score(learning_rate: float, epoch: int) -> float:
    """Return a made-up accuracy."""
    return epoch / (epoch + 1) / (1 + learning_rate)


def make_ticket(epochs: int, trial: str, values: dict[str, Any]) -> Ticket:
    """Return a lane that shares batches with all others."""
    return Ticket(trial, values, "all", epochs)


def time_lanes(spec: Spec) -> float:
    """Return seconds per trial of a sweep over lanes, from proposing the trials to the last outcome."""
    began = time.perf_counter()
    trials = propose(spec)
    tickets = functools.partial(make_ticket, spec.train.epochs)
    broker = start_broker(tickets, num_groups=1, run_ahead=run_ahead(spec), max_lanes=len(trials))
    ray.get(broker.register.remote([tickets(trial.name, trial.values) for trial in trials]))
    group = threading.Thread(target=train, args=(broker,), daemon=True)
    group.start()
    outcomes = run_tune(spec, broker, trials=trials)
    assert len(outcomes) == len(trials)
    ray.get(broker.close.remote())
    group.join()
    return (time.perf_counter() - began) / len(trials)


def train(broker: Any) -> None:
    """Be a worker group that trains in no time."""
    rates: dict[str, float] = {}
    workers = ray.get(broker.begin.remote(0))
    while True:
        work: Any = ray.get(broker.next_work.remote(workers))
        if work.task is Task.STOP:
            return
        rates.update({ticket.trial: ticket.values["optim.learning_rate"] for ticket in work.added})
        epoch = work.epoch + 1
        rows = [{"lane": lane, "epoch": epoch, "val_top1": score(rates[lane], epoch)} for lane in work.lanes]
        ray.get(broker.complete.remote(workers, rows, {}))


def time_plain(num_trials: int, epochs: int, scheduler: str) -> float:
    """Return seconds per trial of Ray Tune's function trials, as its documentation writes them."""

    def trainable(config: dict[str, Any]) -> None:
        for epoch in range(1, epochs + 1):
            tune.report({"epoch": epoch, "val_top1": score(config["learning_rate"], epoch)})

    asha = ASHAScheduler(time_attr="epoch", max_t=epochs) if scheduler == "asha" else None
    began = time.perf_counter()
    with quiet(), tempfile.TemporaryDirectory() as folder:
        results = tune.Tuner(
            trainable,
            param_space={"learning_rate": tune.loguniform(0.001, 1.0)},
            tune_config=tune.TuneConfig(num_samples=num_trials, scheduler=asha, metric="val_top1", mode="max"),
            run_config=tune.RunConfig(storage_path=str(Path(folder)), verbose=0),
        ).fit()
    assert not results.errors
    return (time.perf_counter() - began) / num_trials


if __name__ == "__main__":
    main()
