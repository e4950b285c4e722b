"""A bench for sweeps: settings of tiny ones, run whole and run broken on one machine, and compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweep_injector import DRIVER, STRUCK, TRAINED, Calls, Plan, SweepFault, counted_calls, write_plan
from sweep_machine import LIMIT_S, POLL_S, Machine
from sweep_truth import Reference, cloned, equal, equal_rows, equal_winner, left_over, trained_again, whole
from tiny import tiny_spec

from tltrain.report.sweep import TRIALS_FILE
from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml

EXACT, ROWS, CLONES = "exact", "rows", "clones"
NOT_STRUCK = "the fault did not happen"
NODE_BACK_AFTER_S = 8.0
"""Groups of one worker have given their lanes to others by then; one that needs both nodes waits for the new one."""
RATE, DEPTH = "optim.learning_rate", "model.freeze_depth"
GRID = {RATE: {"grid": [0.01, 0.05]}, DEPTH: {"grid": [2, "all"]}}
OFTEN = {
    "tltrain.engine.lane_worker": {"SAVE_INTERVAL_S": 0.0},
    "tltrain.engine.sweep_record": {"WRITE_INTERVAL_S": 0.2},
}
"""A sweep of seconds saves its lanes after every epoch and writes its record often, as one of hours does."""


@dataclass(frozen=True)
class Setting:
    """A kind of sweep that is broken.

    compared: `exact` where nothing is decided by time; `rows` where a scheduler stops trials by what is known so far,
    so that rows and winner are compared with those of a sweep that stops none; `clones` where it also changes them.
    """

    name: str
    compared: str
    sweep: Mapping[str, Any]
    changes: Mapping[str, Any] = field(default_factory=dict)

    def without_scheduler(self) -> Setting:
        """The same sweep, in which no trial is stopped."""
        return replace(self, name=f"{self.name}, none stopped", sweep={**self.sweep, "scheduler": "fifo"})


SETTINGS = (
    Setting("fifo", EXACT, {"space": GRID, "confirm": {"top": 1, "seeds": 2}}),
    Setting("asha", ROWS, {"space": GRID, "scheduler": "asha"}, {"train.epochs": 4}),
    Setting(
        "pbt",
        CLONES,
        {"space": {RATE: {"loguniform": [1e-5, 0.2]}}, "search": "random", "num_trials": 4, "scheduler": "pbt"},
        {"train.epochs": 4, "model.freeze_depth": 0, "optim.schedule": "constant"},
    ),
    Setting(
        "fifo, two ranks",
        EXACT,
        {"space": GRID},
        {"resources": {"num_workers": 2, "wait_s": 60}, "data.num_loader_workers": 1},
    ),
    Setting("asha, own workers", ROWS, {"space": GRID, "scheduler": "asha", "isolation": "process"}),
)


@dataclass
class Outcome:
    """What came of one fault."""

    setting: str
    fault: SweepFault
    joins: bool
    """Whether the driver had joined a cluster; else it had started one."""
    problems: list[str] = field(default_factory=list)
    recovery_s: float = 0.0
    """Seconds from the fault to the end of the sweep; of a driver, from its second start on."""

    def __str__(self) -> str:
        verdict = "; ".join(self.problems) or f"equal, {self.recovery_s:.1f} s"
        return f"{self.setting}, cluster {'joined' if self.joins else 'its own'}: {self.fault}: {verdict}"


class Sweep:
    """One sweep in a folder of its own, started once or twice, and what is seen of it meanwhile."""

    def __init__(self, here: Machine, folder: Path, setting: Setting, name: str, *, joins: bool) -> None:
        changes = {"train.epochs": 2, "track": [], "storage": str(folder / name), **setting.changes}
        self.spec = tiny_spec(folder, {**changes, "sweep": dict(setting.sweep)}, name="sweep")
        self.run = RunFolder.at(self.spec.storage, self.spec.name)
        self.log = folder / f"{name}.log"
        self.finished_at: dict[str, float] = {}
        self._machine, self._joins = here, joins
        self._file = folder / f"{name}.yaml"
        self._file.write_text(dump_yaml(self.spec))

    def start(self, fault: SweepFault | None = None) -> int | None:
        """Run the sweep to its end or its driver's and return the exit code, None where it has hung.

        A fault at a random moment is made here, the others happen in the processes.
        """
        driver, began = self._machine.driver(self._file, self.log, joins=self._joins), time.monotonic()
        try:
            while driver.poll() is None and time.monotonic() - began < LIMIT_S:
                time.sleep(POLL_S)
                if fault is not None and self.struck_at() is None and fault.is_due(time.monotonic() - began):
                    self._strike(fault, driver)
                self._look()
            return driver.poll()
        finally:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()

    def _strike(self, fault: SweepFault, driver: subprocess.Popen[bytes]) -> None:
        (self._machine.folder / STRUCK).write_text(json.dumps({"at": time.time()}))
        if fault.who == DRIVER:
            driver.kill()
        else:
            self._machine.lose_node()

    def _look(self) -> None:
        """Note which trials are finished; have a new node some seconds after one was lost."""
        if self.run.folder.exists(TRIALS_FILE):
            for entry in self.run.read_json(TRIALS_FILE):
                if entry["state"] == "finished":
                    self.finished_at.setdefault(entry["trial"], time.time())
        struck_at = self.struck_at()
        if self._joins and struck_at is not None and time.time() - struck_at > NODE_BACK_AFTER_S:
            self._machine.replace_lost_nodes()

    def struck_at(self) -> float | None:
        """Return when the fault happened, in seconds since 1970, None where it has not."""
        path = self._machine.folder / STRUCK
        return json.loads(path.read_text() or "{}").get("at") if path.exists() else None


class Bench:
    """Runs sweeps on one machine, whole and broken, and compares them."""

    def __init__(self, here: Machine, folder: Path) -> None:
        self._machine, self._folder = here, folder
        self._references: dict[str, Reference] = {}
        self._calls: dict[str, Calls] = {}
        self.seconds: dict[str, float] = {}
        """Name of a setting -> what its clean sweep took."""

    def calls(self, setting: Setting) -> Calls:
        """Return how often the processes of a clean sweep of `setting` come to each place."""
        if setting.name not in self._calls:
            self.reference(setting)
            if setting.name not in self._calls:
                self._run_clean(setting)
        return self._calls[setting.name]

    def reference(self, setting: Setting) -> Reference:
        """Return what a clean sweep leaves; where rows are compared, one that stops no trial."""
        compared = setting.without_scheduler() if setting.compared == ROWS else setting
        if compared.name not in self._references:
            self._references[compared.name] = Reference.of(self._run_clean(compared).run)
        return self._references[compared.name]

    def _run_clean(self, setting: Setting) -> Sweep:
        sweep = Sweep(self._machine, self._folder, setting, f"clean-{time.monotonic_ns()}", joins=self._has_cluster)
        write_plan(self._machine.folder, Plan(constants=OFTEN, counts_calls=True))
        began = time.monotonic()
        assert sweep.start() == 0, sweep.log.read_text()
        self.seconds[setting.name] = time.monotonic() - began
        self._calls[setting.name] = counted_calls(self._machine.folder)
        problems = [*whole(sweep.run, sweep.spec), *left_over(sweep.run), *self._machine.problems()]
        assert not problems, f"a clean sweep: {problems}, see {sweep.log}"
        return sweep

    @property
    def _has_cluster(self) -> bool:
        return self._machine.cluster is not None

    def broken(self, setting: Setting, fault: SweepFault, *, joins: bool, forgets_optimizer: bool = False) -> Outcome:
        """Run a sweep until `fault` happens, start it again if its driver died, and say what is not as it has to be."""
        clean, outcome = self.reference(setting), Outcome(setting.name, fault, joins)
        sweep = Sweep(self._machine, self._folder, setting, f"broken-{time.monotonic_ns()}", joins=joins)
        write_plan(self._machine.folder, Plan(fault, OFTEN, forgets_optimizer=forgets_optimizer))
        code, struck_at = sweep.start(fault), sweep.struck_at()
        if struck_at is None:
            outcome.problems.append(NOT_STRUCK)
        began = struck_at or time.time()
        if fault.who == DRIVER and code == -signal.SIGKILL:
            began, code = time.time(), sweep.start()
        outcome.recovery_s = time.time() - began
        if self._has_cluster:
            self._machine.replace_lost_nodes()
        if code != 0:
            last = sweep.log.read_text().strip().splitlines()[-1:]
            ending = "the sweep has hung" if code is None else f"the sweep ended with {code}"
            outcome.problems.append(f"{ending}: {last}, see {sweep.log}")
        else:
            outcome.problems += self._differences(setting, sweep, clean)
        outcome.problems += self._machine.problems()
        return outcome

    def _differences(self, setting: Setting, sweep: Sweep, clean: Reference) -> Iterator[str]:
        yield from whole(sweep.run, sweep.spec)
        yield from left_over(sweep.run)
        yield from trained_again(self._machine.folder / TRAINED, sweep.finished_at)
        if setting.compared == EXACT:
            yield from equal(sweep.run, clean)
        elif setting.compared == ROWS:
            yield from equal_rows(sweep.run, clean)
            yield from equal_winner(sweep.run, sweep.spec, self._folder)
        else:
            yield from cloned(sweep.run)
