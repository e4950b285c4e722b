"""Ray Tune over lanes: it proposes, stops and clones trials, while worker groups train the lanes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.stopper import Stopper

from tltrain.engine.processes import bounded, with_process
from tltrain.engine.proposals import make_searcher
from tltrain.engine.schedulers import GROWING, make_scheduler
from tltrain.engine.trial import LaneTrial
from tltrain.engine.work import Standing, State
from tltrain.scratch import TUNE, scratch_folder
from tltrain.spec.schema import Spec
from tltrain.spec.space import Trial

logger = logging.getLogger(__name__)

PROPOSALS_AT_A_TIME = 8
"""Trials that Optuna has open at a time by default: more would share more, fewer would learn more from each other."""
PROCESSES_PER_GROUP = 2
RESTARTS_OF_A_TRIAL = 3
"""How often the process that attends to a trial may die; a lane that fails is no death, and is not tried again."""
POLL_S = 0.2
LONGEST_ERROR = 300

ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # what Ray Tune would write down is never read: the run folder is the record
}


@dataclass(frozen=True)
class Outcome:
    """How a trial ended. `values` are its last ones: a scheduler may have changed them."""

    trial: str
    state: Literal["finished", "stopped", "failed"]
    reason: str
    epochs: int
    values: dict[str, Any]


def run_tune(
    spec: Spec,
    broker: Any,
    *,
    trials: Sequence[Trial] = (),
    num_proposals: int = 0,
    first_number: int = 0,
    earlier: Sequence[tuple[Mapping[str, Any], float]] = (),
    num_groups: int = 1,
    poll: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Run Ray Tune over the lanes of `broker` until every trial has ended, and return how, by name.

    trials: whose values are known: those of a grid or a random search, and unfinished ones of an earlier attempt. The
    caller has registered their lanes, so that groups train them already. num_proposals: trials that Optuna adds, named
    from `first_number` on. earlier: values and metric of trials that ended before, for Optuna to learn from.
    num_groups: worker groups, which run elsewhere and take work from the broker; they are left as they are. poll: is
    called a few times a second meanwhile; an exception in it ends all lanes and is raised again.

    Raises SpecError where the search or the scheduler cannot work, before anything starts.
    """
    assert spec.sweep is not None
    ends = _Ends(broker, spec.sweep.time_budget_s)
    scheduler = make_scheduler(spec, broker)
    searcher = make_searcher(spec, trials, earlier) if spec.sweep.search == "optuna" else None
    num_trials = len(trials) + (num_proposals if searcher else 0)
    # Nothing waits for the trials of a plain search: their lanes train without them.
    is_plain = spec.sweep.scheduler == "fifo" and searcher is None
    processes = 1 if is_plain else min(num_trials, PROCESSES_PER_GROUP * num_groups)
    with quiet(), _seeded(spec.seed), bounded(processes), scratch_folder(TUNE) as folder:
        if num_trials == 0:
            return []
        tuner = tune.Tuner(
            _make_trainable(spec, broker, folder),
            param_space=None if searcher else {"lane": tune.grid_search([_lane(trial) for trial in trials])},
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=num_trials if searcher else 1,
                max_concurrent_trials=_live_trials(spec, num_trials),
                reuse_actors=True,
                trial_name_creator=_Names([trial.name for trial in trials], first_number),
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=folder,
                stop=ends.stopper,
                callbacks=[ends],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=RESTARTS_OF_A_TRIAL),
                verbose=0,
            ),
        )
        _fit(tuner, ends, poll)
    return _outcomes(spec, ray.get(broker.standings.remote()), ends)


def _make_trainable(spec: Spec, broker: Any, folder: str) -> Any:
    """Return the trainable, whose temporary files are in `folder`."""
    assert spec.sweep is not None
    # A result costs milliseconds: where nothing decides by those in between, each trial has one.
    stride = spec.train.epochs if spec.sweep.scheduler == "fifo" else 1
    parameters = {"metric": spec.sweep.metric, "mode": spec.sweep.better, "stride": stride, "folder": folder}
    return with_process(tune.with_parameters(LaneTrial, broker=broker, **parameters))


def _lane(trial: Trial) -> dict[str, Any]:
    return {"trial": trial.name, "values": trial.values}


def _live_trials(spec: Spec, num_trials: int) -> int | None:
    """Return how many trials may have begun and not ended; None for all."""
    assert spec.sweep is not None
    asked = spec.sweep.max_concurrent
    if spec.sweep.scheduler in GROWING and asked is not None and asked < num_trials:
        logger.warning("sweep.max_concurrent has no effect with %s: all trials are compared", spec.sweep.scheduler)
        return None
    return min(asked or PROPOSALS_AT_A_TIME, num_trials) if spec.sweep.search == "optuna" else asked


class _Names:
    """Names Ray Tune's trials: the given ones as they are, in their order, then new ones by number."""

    def __init__(self, names: Sequence[str], first_number: int) -> None:
        self._names, self._next = list(names), first_number

    def __call__(self, trial: TuneTrial) -> str:
        known = trial.config["lane"].get("trial")
        if known is not None:
            return known
        if self._names:
            return self._names.pop(0)
        self._next += 1
        return f"t{self._next - 1:04}"

    def __deepcopy__(self, memo: dict[int, Any]) -> _Names:
        return self  # Ray Tune copies what it is given for every trial that a searcher proposes; the count is one


class _Stop(Stopper):
    """Ends everything when the time is over, or when it is told to."""

    def __init__(self, broker: Any, budget_s: float | None) -> None:
        self._broker, self._budget_s = broker, budget_s
        self._deadline = None if budget_s is None else time.monotonic() + budget_s
        self.reason = ""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if not self.reason and self._deadline is not None and time.monotonic() > self._deadline:
            self.now(f"stopped by the time budget of {self._budget_s:g} s")
        return bool(self.reason)

    def now(self, reason: str) -> None:
        """Let go the trials that wait for rows, so that their processes can end."""
        self.reason = reason
        self._broker.halt.remote(reason)


class _Ends(tune.Callback):
    """Drops the lanes of trials that have ended, and remembers which ended by a decision and which by an error."""

    def __init__(self, broker: Any, budget_s: float | None) -> None:
        self._broker = broker
        self.stopper = _Stop(broker, budget_s)
        self.decided: set[str] = set()
        self.errors: dict[str, str] = {}

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.decided.add(str(trial))
        self._let_go(trial)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        restarts = trial.run_metadata.num_failures - 1
        self.errors[str(trial)] = f"its process failed after {restarts} restart(s): {_last_error(trial)}"
        self._let_go(trial)

    def _let_go(self, trial: TuneTrial) -> None:
        self._broker.drop.remote(str(trial))
        # Ray Tune's statistics of each metric: nobody reads them, and they are most of what an ended trial occupies.
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()


def _last_error(trial: TuneTrial) -> str:
    """The last line that Ray Tune wrote down of a trial's errors: what was raised, or how the process died."""
    assert trial.error_file is not None
    return Path(trial.error_file).read_text(errors="replace").strip().rpartition("\n")[2][:LONGEST_ERROR]


def _fit(tuner: tune.Tuner, ends: _Ends, poll: Callable[[], None]) -> None:
    """Run the tuner in a thread, so that this one stays free for `poll` and for Ctrl-C."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray-tune") as executor:
        future = executor.submit(tuner.fit)
        try:
            while not future.done():
                concurrent.futures.wait([future], timeout=POLL_S)
                poll()
        except BaseException:
            ends.stopper.now("stopped by an interruption")
            raise
        future.result()


def _outcomes(spec: Spec, standings: Mapping[str, Standing], ends: _Ends) -> list[Outcome]:
    return [_outcome(spec, trial, standing, ends) for trial, standing in sorted(standings.items())]


def _outcome(spec: Spec, trial: str, standing: Standing, ends: _Ends) -> Outcome:
    assert spec.sweep is not None
    epochs, values = standing.epoch, standing.ticket.values
    if standing.state is State.FAILED:
        return Outcome(trial, "failed", standing.error, epochs, values)
    if standing.state is State.FINISHED:
        reason = f"early stopping after epoch {epochs}" if epochs < standing.ticket.epochs else ""
        return Outcome(trial, "finished", reason, epochs, values)
    if trial in ends.errors:
        return Outcome(trial, "failed", ends.errors[trial], epochs, values)
    by = f"stopped by {spec.sweep.scheduler}" if trial in ends.decided else ends.stopper.reason
    return Outcome(trial, "stopped", f"{by} after epoch {epochs}", epochs, values)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Ray Tune from printing and from writing files that nobody reads, for a `with` block."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    tune_logger = logging.getLogger("ray.tune")
    level = tune_logger.level
    os.environ.update(ENVIRONMENT)
    tune_logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        tune_logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators that Ray Tune's schedulers draw from, for a `with` block."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
