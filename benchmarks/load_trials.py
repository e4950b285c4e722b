"""A sweep of many tiny trials whose driver is killed in the middle: what is trained twice, and what a trial costs.

    python benchmarks/load_trials.py --trials 1000 --kill --plain-trials 40

The driver is a process of its own with Ray Tune, the broker and the sweep's record in a run folder; a thread in it
stands for the worker group and makes rows up, of the size of real ones, and writes down which it has made. With --kill
it is killed by SIGKILL when half of the trials are on record as finished, and started again as a user would. Checked
then: no trial on record as finished was trained again, and every row is there once. Beside it Ray Tune's plain function
trials. Prints one JSON object: seconds in all and per trial, starts of processes included, and the driver's largest
resident set.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from process_memory import resident_mb
from ray import cloudpickle
from trial_overhead import make_spec, make_ticket, score, time_plain

from tltrain.engine.broker_actor import start_broker
from tltrain.engine.cluster import connected
from tltrain.engine.schedulers import run_ahead
from tltrain.engine.sweep_record import SweepRecord
from tltrain.engine.tuning import run_tune
from tltrain.engine.work import Task
from tltrain.report.sweep import TRIALS_FILE
from tltrain.run_folder import RunFolder
from tltrain.spec.space import propose

LANES_AT_A_TIME = 20
MADE_FILE = "made.jsonl"
"""What the worker group has made: a line of process, lane and epoch for each row."""


def drive(folder: Path, num_trials: int, epochs: int, epoch_s: float) -> None:
    """Run or resume the sweep whose run folder is in `folder`, to its end."""
    cloudpickle.register_pickle_by_value(sys.modules["trial_overhead"])
    spec = make_spec(num_trials, epochs, "fifo")
    assert spec.sweep is not None
    record = SweepRecord(RunFolder.at(str(folder), spec.name), spec.sweep)
    if not record.trials:
        record.add(propose(spec))
    trials = record.unfinished()
    with connected():
        tickets = functools.partial(make_ticket, epochs)
        broker = start_broker(tickets, num_groups=1, run_ahead=run_ahead(spec), max_lanes=LANES_AT_A_TIME)
        for trial in trials:
            record.restart(trial.name, 0)
        ray.get(broker.register.remote([tickets(trial.name, trial.values) for trial in trials]))
        group = threading.Thread(target=train, args=(broker, folder / MADE_FILE, epoch_s), daemon=True)
        group.start()
        seen = 0

        def take_events() -> None:
            nonlocal seen
            events = ray.get(broker.events.remote(seen))
            seen += len(events)
            record.note(events)
            record.write(now=False)

        record.end(run_tune(spec, broker, trials=trials, poll=take_events))
        take_events()
        record.write()
        ray.get(broker.close.remote())
        group.join()


def train(broker: Any, made: Path, epoch_s: float) -> None:
    """Be a worker group that makes rows up, of the size of real ones."""
    rates: dict[str, float] = {}
    workers = ray.get(broker.begin.remote(0))
    with made.open("a", buffering=1) as log:
        while True:
            work: Any = ray.get(broker.next_work.remote(workers))
            if work.task is Task.STOP:
                return
            rates.update({ticket.trial: ticket.values["optim.learning_rate"] for ticket in work.added})
            time.sleep(epoch_s)
            rows = [make_row(lane, work.epoch + 1, rates[lane]) for lane in work.lanes]
            log.write("".join(json.dumps([os.getpid(), row["lane"], row["epoch"]]) + "\n" for row in rows))
            ray.get(broker.complete.remote(workers, rows, {}))
            for lane in work.dropped:
                rates.pop(lane, None)


def make_row(lane: str, epoch: int, learning_rate: float) -> dict[str, Any]:
    """Return a row with as many numbers as a real one."""
    accuracy = score(learning_rate, epoch)
    phases = {f"{name}_s": epoch * 0.001 for name in ("decode", "prefix", "step", "evaluate", "wait", "save")}
    losses = {"train_loss": 1 - accuracy, "val_loss": 1 - accuracy, "val_top5": accuracy, "train_top1": accuracy}
    return {"lane": lane, "epoch": epoch, "step": 10 * epoch, "val_top1": accuracy, "epoch_s": 0.01, **losses, **phases}


@contextmanager
def driver(folder: Path, options: argparse.Namespace) -> Iterator[subprocess.Popen[bytes]]:
    """The driver as a process of its own, killed where it still runs at the end of the block."""
    command = [sys.executable, __file__, "--drive", str(folder)]
    for name in ("trials", "epochs", "epoch_s"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()


def finished(folder: Path) -> set[str]:
    """The trials that are on record as finished."""
    path = folder / "overhead" / TRIALS_FILE
    if not path.exists():
        return set()
    return {entry["trial"] for entry in json.loads(path.read_text()) if entry["state"] == "finished"}


def made(folder: Path) -> dict[int, list[tuple[str, int]]]:
    """Process of a driver -> the rows that its worker group made."""
    found: dict[int, list[tuple[str, int]]] = {}
    for line in (folder / MADE_FILE).read_text().splitlines():
        pid, lane, epoch = json.loads(line)
        found.setdefault(pid, []).append((lane, epoch))
    return found


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the sweep, with a kill in its middle where that is asked for, and check what is left."""
    began, peak_mb, on_record = time.perf_counter(), 0.0, set[str]()
    with driver(folder, options) as process:
        killed = not options.kill
        while process.poll() is None:
            peak_mb = max(peak_mb, resident_mb(process.pid))
            if not killed and len(finished(folder)) >= options.trials // 2:
                process.send_signal(signal.SIGKILL)
                process.wait()
                on_record, killed = finished(folder), True
            time.sleep(0.1)
        assert killed
        assert process.returncode == (-9 if options.kill else 0), process.returncode
    resumed_s = time.perf_counter()
    if options.kill:
        with driver(folder, options) as process:
            while process.poll() is None:
                peak_mb = max(peak_mb, resident_mb(process.pid))
                time.sleep(0.1)
            assert process.returncode == 0, process.returncode
    passed_s = time.perf_counter() - began
    by_driver = list(made(folder).values())
    again = {lane for lane, _ in by_driver[-1]} if options.kill else set()
    whole = {lane for lane, epoch in by_driver[0] if epoch == options.epochs}
    rows = RunFolder.at(str(folder), "overhead").metrics()
    counts = Counter((row["lane"], row["epoch"]) for row in rows)
    assert len(finished(folder)) == options.trials
    assert len(counts) == options.trials * options.epochs, "every row is there"
    assert set(counts.values()) == {1}, "no row is there twice"
    assert not again & on_record, "no trial on record as finished was trained again"
    return {
        "trials": options.trials,
        "killed_with_on_record": len(on_record) if options.kill else None,
        "trained_again_of_these": len(again & on_record),
        "finished_but_not_yet_on_record": len((whole - on_record) & again),
        "resumed_s": round(time.perf_counter() - resumed_s, 1) if options.kill else None,
        "seconds": round(passed_s, 1),
        "s_per_trial": round(passed_s / options.trials, 4),
        "driver_peak_mb": round(peak_mb),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3, help="rows of each trial")
    parser.add_argument("--epoch-s", type=float, default=0.05, help="seconds that the worker group takes for an epoch")
    parser.add_argument("--kill", action="store_true", help="kill the driver once, when half of the trials have ended")
    parser.add_argument("--plain-trials", type=int, default=40, help="plain function trials of Ray Tune; 0 for none")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive is not None:
        drive(options.drive, options.trials, options.epochs, options.epoch_s)
        return
    with tempfile.TemporaryDirectory(prefix="tltrain-load-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        result = measure(Path(folder), options)
    if options.plain_trials:
        with connected():
            plain = time_plain(options.plain_trials, options.epochs, "fifo")
        result |= {"plain_s_per_trial": round(plain, 4), "ratio": round(result["s_per_trial"] / plain, 3)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
