"""Gets a fault into one of a sweep's processes, whoever starts it: Python calls `install` before anything else there.

What is to happen stands in a folder, of which an environment variable tells every process: `plan.json` says which
fault; `struck.json` is there once it has happened, so that it happens once; `trained.jsonl` has a line for every epoch
that lanes begin, and `calls/` a file for each process with the places that it came to, where the plan asks for it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import injector
from injector import KILL, Fault, arm, intercept

FOLDER = "TLTRAIN_TEST_FAULT_FOLDER"
PLAN, STRUCK, TRAINED, CALLS = "plan.json", "struck.json", "trained.jsonl", "calls"

DRIVER, BROKER, TRIAL, WORKER, NODE = "driver", "broker", "trial's process", "worker", "node"
AT_RANDOM = "at a random moment"

DRIVER_PLACES = {
    "search": "tltrain.engine.sweep:_Driver._search",
    "events": "tltrain.engine.sweep:_Driver._take_events",
    "trials' record": "tltrain.engine.sweep_record:SweepRecord.write",
    "JSON file": "tltrain.run_folder:RunFolder.write_json",
    "confirmation": "tltrain.engine.sweep:_Driver._confirm",
    "a trial's confirmation": "tltrain.engine.sweep:_Driver._confirmed",
    "winner's folder": "tltrain.engine.sweep:begin_winner",
    "winner's training": "tltrain.engine.sweep:_Driver._train_winner",
    "winner's end": "tltrain.engine.sweep:end_winner",
    "exploit": "ray.tune.schedulers.pbt:PopulationBasedTraining._exploit",
    "page": "tltrain.report.page:write_report",
    "file rename": "tltrain.disk:os.replace",
    "report": injector.PLACES["report"],
}
BROKER_PLACES = {
    "lane registered": "tltrain.engine.broker:Broker.register",
    "work given": "tltrain.engine.broker:Broker.take",
    "epoch completed": "tltrain.engine.broker:Broker.complete",
    "states saved": "tltrain.engine.broker:Broker.complete_save",
    "winner asked for": "tltrain.engine.broker:Broker.request_finish",
    "winner completed": "tltrain.engine.broker:Broker.complete_finish",
}
TRIAL_PLACES = {
    "trial begun": "tltrain.engine.trial:LaneTrial.reset_config",
    "trial step": "tltrain.engine.trial:LaneTrial.step",
    "trial saved": "tltrain.engine.trial:LaneTrial.save_checkpoint",
    "trial cloned": "tltrain.engine.trial:LaneTrial.load_checkpoint",
}
WORKER_PLACES = {
    "training begun": "ray.train.v2._internal.execution.worker_group.thread_runner:ThreadRunner.run",
    "wait for work": "tltrain.engine.lane_worker:ray.wait",
    "lane built": "tltrain.train.lane_group:LaneGroup.add",
    "state loaded": "tltrain.train.lane_group:LaneGroup._load",
    "states written": "tltrain.train.lane_group:LaneGroup.save",
    "prefix pass": injector.PLACES["prefix pass"],
    "lane step": injector.PLACES["lane step"],
    "optimiser step": injector.PLACES["optimiser step"],
    "validation": injector.PLACES["validation"],
    "checkpoint": injector.PLACES["checkpoint"],
    "file write": injector.PLACES["file write"],
    "file rename": "tltrain.disk:os.replace",
    "evaluation": injector.PLACES["evaluation"],
    "model save": injector.PLACES["model save"],
}
PLACES: dict[str, dict[str, str]] = {
    DRIVER: DRIVER_PLACES,
    BROKER: BROKER_PLACES,
    TRIAL: TRIAL_PLACES,
    WORKER: WORKER_PLACES,
    NODE: WORKER_PLACES,
}
"""Who dies -> place -> `module:function` in its process."""
Calls = Mapping[tuple[str, str], int]
"""(Who, place) -> its calls in that process of those that come to it which does so least often."""
DOORS = {
    DRIVER: "tltrain.engine.sweep",
    BROKER: "tltrain.engine.broker_actor",
    TRIAL: "tltrain.engine.trial",
    WORKER: "tltrain.engine.lane_worker",
}
"""A process is armed once it has loaded this module, and with it all that has its places."""


@dataclass(frozen=True)
class SweepFault:
    """Who dies by SIGKILL, and where: before or after a call of a place, counted from 1 in each process.

    At a random moment, `call` is the milliseconds since the sweep began. A node dies with all its processes, at a place
    of a worker on it.
    """

    who: str
    place: str
    call: int
    moment: str

    def is_due(self, seconds: float) -> bool:
        """Whether it is one at a random moment, and that has come `seconds` after the sweep's begin."""
        return self.place == AT_RANDOM and seconds > self.call / 1000

    def __str__(self) -> str:
        if self.place == AT_RANDOM:
            return f"{self.who} {self.place}, {self.call / 1000:.1f} s"
        return f"{self.who} {self.moment} {self.place} no. {self.call}"


@dataclass(frozen=True)
class Plan:
    """What is to happen in the processes of a sweep.

    constants: module -> name -> value, to have what is done every half minute done in a sweep of seconds.
    """

    fault: SweepFault | None = None
    constants: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counts_calls: bool = False
    forgets_optimizer: bool = False
    """Lanes that go on from a saved state do so without their optimiser's, which has to be noticed."""


def write_plan(folder: Path, plan: Plan) -> None:
    """Have `plan` hold for all processes that are started from now on, and forget what happened before."""
    for name in (STRUCK, TRAINED):
        (folder / name).unlink(missing_ok=True)
    (folder / PLAN).write_text(json.dumps(asdict(plan)))


def install() -> None:
    """Have this process follow the plan, if it is one of a sweep's."""
    folder = os.environ.get(FOLDER)
    if folder is not None:
        sys.meta_path.insert(0, _AfterImport(Path(folder)))


class _AfterImport(MetaPathFinder):
    """Does what the plan asks for as soon as a module is loaded."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @functools.cached_property
    def _plan(self) -> Plan:
        values = json.loads((self._folder / PLAN).read_text())
        fault = values.pop("fault")
        return Plan(fault=None if fault is None else SweepFault(**fault), **values)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Find the modules that something is to be done about, and leave all others to the other finders."""
        if not fullname.startswith("tltrain.") or not (self._folder / PLAN).exists():
            return None
        if fullname not in DOORS.values() and fullname not in self._plan.constants:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_act(module: Any) -> None:
            load(module)
            self._act_on(module)

        spec.loader.exec_module = load_and_act  # pyright: ignore[reportAttributeAccessIssue]
        return spec

    def _act_on(self, module: Any) -> None:
        for name, value in self._plan.constants.get(module.__name__, {}).items():
            assert hasattr(module, name), name
            setattr(module, name, value)
        if module.__name__ == DOORS[WORKER]:
            _log_training(self._folder / TRAINED)
            if self._plan.forgets_optimizer:
                optim: Any = importlib.import_module("tltrain.train.optim")
                optim.load_state_by_name = lambda optimizer, state: None
        for who, door in DOORS.items():
            if door == module.__name__ and _is_driver() == (who == DRIVER):
                self._enter(who)

    def _enter(self, who: str) -> None:
        """This process may be one of those that `who` names; places in others' code are never come to."""
        injector.PLACES.update(PLACES[who])
        fault = self._plan.fault
        if self._plan.counts_calls:
            _count(PLACES[who], self._folder / CALLS / f"{who}-{os.getpid()}")
        elif fault is not None and who == {NODE: WORKER}.get(fault.who, fault.who) and fault.place in PLACES[who]:
            strike = functools.partial(_strike, self._folder / STRUCK, is_node=fault.who == NODE)
            arm(Fault(fault.place, fault.call, fault.moment, 0, KILL), act=lambda _: strike())


def _is_driver() -> bool:
    return "tltrain.run" in sys.orig_argv


def _strike(marker: Path, *, is_node: bool) -> None:
    """End this process, or all of its node, if nothing was struck yet."""
    try:
        with marker.open("x") as file:
            json.dump({"at": time.time(), "pid": os.getpid()}, file)
    except FileExistsError:
        return
    for pid in [*node_processes(os.getppid()), os.getpid()] if is_node else [os.getpid()]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def node_processes(raylet: int) -> list[int]:
    """Return the raylet and the processes that it has started, which are all of its node's but for Ray's agents."""
    return [raylet, *(pid for pid, parent in _parents() if parent == raylet and pid != os.getpid())]


def _parents() -> Iterable[tuple[int, int]]:
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield int(entry.name), int((entry / "stat").read_text().rpartition(")")[2].split()[1])


def _count(places: Mapping[str, str], path: Path) -> None:
    """Write a line into `path` for every call of a place."""
    path.parent.mkdir(exist_ok=True)

    def counting(place: str, call: Callable[[], Any]) -> Any:
        with path.open("a") as file:
            file.write(f"{place}\n")
        return call()

    for place in places:
        intercept(place, functools.partial(counting, place))


def counted_calls(folder: Path) -> Calls:
    """Return how often each place was come to since the last time, and forget it."""
    counts: dict[tuple[str, str], int] = {}
    for path in (folder / CALLS).iterdir():
        who, lines = path.name.rpartition("-")[0], path.read_text().splitlines()
        for place in set(lines):
            counts[who, place] = min(counts.get((who, place), len(lines)), lines.count(place))
        path.unlink()
    return counts


def _log_training(path: Path) -> None:
    """Write a line into `path` for every epoch that lanes begin to train."""
    group: Any = importlib.import_module("tltrain.train.lane_group").LaneGroup
    original = group.train_epoch

    @functools.wraps(original)
    def train_epoch(self: Any, trials: Any, epoch: int) -> Any:
        with path.open("a") as file:
            file.write(json.dumps({"at": time.time(), "lanes": list(trials), "epoch": epoch}) + "\n")
        return original(self, trials, epoch)

    group.train_epoch = train_epoch
