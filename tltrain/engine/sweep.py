"""A sweep: Ray Tune decides, the broker hands out, worker groups train lanes side by side, the best is confirmed."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError

from tltrain.engine.broker_actor import start_broker
from tltrain.engine.cluster import connected, live_nodes, wait_for_room, wait_for_room_again
from tltrain.engine.fit import RAY_FOLDER, retry_or_raise
from tltrain.engine.groups import WorkerGroups
from tltrain.engine.left_on_nodes import delete_on_nodes
from tltrain.engine.plan import Request, capacity
from tltrain.engine.preflight import preflight
from tltrain.engine.schedulers import run_ahead
from tltrain.engine.sweep_record import SweepRecord
from tltrain.engine.tickets import distinct_in_frozen_part, make_ticket
from tltrain.engine.tuning import run_tune
from tltrain.engine.winner import begin_winner, end_winner
from tltrain.engine.work import Ticket
from tltrain.errors import RunError
from tltrain.run_folder import WINNER, RunFolder
from tltrain.spec.schema import Spec, SweepSpec
from tltrain.spec.space import Trial, check_all, propose
from tltrain.train.lane_group import STATES_FOLDER, newest_state
from tltrain.train.measured import Record, merged

logger = logging.getLogger(__name__)

ALL_LANES = 100_000
START_OVER = ("pbt", "pb2", "hyperband")
"""Schedulers whose trials depend on each other: after a loss of the driver all that have not ended begin anew."""
STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom."""

MEASURED_INTERVAL_S = 10.0
"""How often a sweep that runs writes what its groups have measured so far."""

Poll = Callable[[SweepRecord], None]


def sweep(
    spec: Spec, run: RunFolder, shares: Mapping[str, float], *, poll: Poll, started: Sequence[Any] = ()
) -> dict[str, Any]:
    """Run or resume the sweep of `spec` in `run` and return the summary of its winner.

    shares: stage name -> share of the forward cost, to spread lanes evenly. `poll` is called a few times a second
    with what is known so far. started: processes from `prestart`, where the caller is connected. Where the broker's
    process dies, the search begins anew with what had not ended. Raises SpecError, ResourceError, RunError or what a
    worker raised.
    """
    assert spec.sweep is not None
    record = prepare_trials(spec, run)
    with connected():
        failures = 0
        while True:
            wait = wait_for_room_again if failures else wait_for_room
            request = wait(spec.resources, run)
            if failures == 0:
                request = preflight(spec, run, request)
            num_groups = count_groups(request, len(record.trials) or spec.sweep.num_trials or 1)
            run.update(workers=num_groups * request.max_workers, groups=num_groups)
            driver = _Driver(spec, run, record, request, num_groups, shares, poll, () if failures else started)
            try:
                summary = driver.run()
                if failures or driver.has_lost_groups():
                    delete_on_nodes(run)
                run.folder.delete(RAY_FOLDER)
                return summary
            except RayActorError as error:  # the broker's: a group's is dealt with where the group is watched
                record.write()
                retry_or_raise(error, failures, spec.resources.max_failures)
                failures += 1


def prepare_trials(spec: Spec, run: RunFolder) -> SweepRecord:
    """Return the record of the sweep, with the trials of a grid or a random search in it."""
    assert spec.sweep is not None
    record = SweepRecord(run, spec.sweep)
    if not record.trials and spec.sweep.search != "optuna":
        trials = propose(spec)
        check_all(spec, trials)
        record.add(trials)
    return record


def count_groups(request: Request, num_trials: int) -> int:
    """Return how many worker groups the cluster holds side by side, no more than there are trials."""
    room = sum(capacity(request, node) for node in live_nodes())
    return max(1, min(room // request.min_workers, num_trials))


class _Driver:
    """One run of a sweep on a cluster."""

    def __init__(
        self,
        spec: Spec,
        run: RunFolder,
        record: SweepRecord,
        request: Request,
        num_groups: int,
        shares: Mapping[str, float],
        poll: Poll,
        started: Sequence[Any],
    ) -> None:
        assert spec.sweep is not None
        self._spec, self._sweep, self._run, self._record = spec, spec.sweep, run, record
        self._request, self._num_groups, self._poll = request, num_groups, poll
        self._starts_over = self._sweep.scheduler in START_OVER
        self._make_ticket = functools.partial(make_ticket, spec, dict(shares))
        is_isolated = self._sweep.isolation == "process"
        self._broker = start_broker(
            self._make_ticket,
            num_groups=num_groups,
            run_ahead=run_ahead(spec),
            max_lanes=1 if is_isolated else ALL_LANES,
            is_isolated=is_isolated,
        )
        likely = distinct_in_frozen_part(record.unfinished())
        self._groups = WorkerGroups(spec, run, request, self._broker, count=num_groups, likely=likely, started=started)
        self._seen = 0
        self._measured_at = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Train all trials, confirm the best, and train the winner as a run of its own."""
        with self._groups.running():
            self._search()
            winner = self._confirm()
            summary = self._finish(winner)
        self._run.folder.delete(STATES_FOLDER)  # nobody saves any more, and nothing goes on from there
        self._write_measured(self._groups.measured())
        return summary

    def has_lost_groups(self) -> bool:
        """Whether a worker group has died, or ended by an error."""
        return self._groups.has_failed

    def _write_measured(self, measured: Record) -> None:
        self._run.write_json("sharing.json", {**measured, "groups": self._num_groups})

    def _search(self) -> None:
        trials = self._record.unfinished()
        if self._starts_over:
            self._run.folder.delete(STATES_FOLDER)  # of lanes that will save others under the same names
        proposals = 0
        if self._sweep.search == "optuna":
            proposals = max(0, (self._sweep.num_trials or 0) - len(self._record.trials))
        ray.get(self._broker.register.remote([self._resumed(trial) for trial in trials]))
        outcomes = run_tune(
            self._spec,
            self._broker,
            trials=trials,
            num_proposals=proposals,
            first_number=len(self._record.trials),
            earlier=self._record.results(),
            num_groups=self._num_groups,
            poll=self._take_events,
        )
        self._take_events()
        self._record.end(outcomes)
        if not self._record.ranked():
            raise RunError("no trial of the sweep has a result", "See the reasons in trials.json")

    def _resumed(self, trial: Trial) -> Ticket:
        """Return the ticket of a trial, from its newest saved state if it had begun before.

        Not from one whose epochs have no rows: these were lost with the driver, and come anew.
        """
        ticket = self._make_ticket(trial.name, trial.values)
        state = None
        if not self._starts_over:
            state = newest_state(self._run, trial.name, most=self._record.epochs_of(trial.name))
        if state is not None:
            ticket = dataclasses.replace(ticket, start=state[0], start_epoch=state[1])
        self._record.restart(trial.name, ticket.start_epoch)
        return ticket

    def _take_events(self) -> None:
        """Take in what has happened; raises what a worker group ended with."""
        self._groups.look()
        events = ray.get(self._broker.events.remote(self._seen))
        self._seen += len(events)
        self._record.note(events)
        self._record.write(now=False)
        if time.monotonic() - self._measured_at > MEASURED_INTERVAL_S:
            self._measured_at = time.monotonic()
            if records := ray.get(self._broker.measured.remote()):
                self._write_measured(merged(records))
        self._poll(self._record)

    def _confirm(self) -> dict[str, Any]:
        """Return the winning trial: the best, or the best on average over several seeds."""
        ranked = self._record.ranked()
        if self._sweep.confirm is None:
            return ranked[0]
        top = ranked[: self._sweep.confirm.top]
        seeds = [self._spec.seed + number for number in range(self._sweep.confirm.seeds)]
        tickets = [self._reseeded(entry, seed) for entry in top for seed in seeds[1:]]
        tickets = [ticket for ticket in tickets if self._record.epochs_of(ticket.trial) < ticket.epochs]
        ray.get(self._broker.register.remote(tickets))
        for ticket in tickets:
            ray.get(self._broker.allow.remote(ticket.trial, ticket.epochs))
        self._wait_for({ticket.trial for ticket in tickets})
        confirmed = [self._confirmed(entry, seeds) for entry in top]
        better = max if self._sweep.better == "max" else min
        winner: str = better(confirmed, key=lambda entry: entry["mean_score"])["trial"]
        self._run.write_json("confirm.json", {"top": confirmed, "winner": winner})
        return self._record.trials[winner]

    def _reseeded(self, entry: Mapping[str, Any], seed: int) -> Ticket:
        # The split stays, so that all seeds are judged on the same validation images.
        split_seed = self._spec.seed if self._spec.data.split_seed is None else self._spec.data.split_seed
        values = {**entry["values"], "seed": seed, "data.split_seed": split_seed}
        return self._make_ticket(f"{entry['trial']}-s{seed}", values)

    def _wait_for(self, trials: set[str]) -> None:
        while True:
            self._take_events()
            states: dict[str, str] = ray.get(self._broker.states.remote())
            if all(states[trial] in ("finished", "failed", "dropped") for trial in trials):
                self._take_events()
                return
            time.sleep(0.1)

    def _confirmed(self, entry: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
        lanes = [entry["trial"], *(f"{entry['trial']}-s{seed}" for seed in seeds[1:])]
        best = [best_row(self._record.rows, lane, self._sweep) for lane in lanes]
        good = [row for row in best if row is not None]
        scores, top1 = [row[self._sweep.metric] for row in good], [row["val_top1"] for row in good]
        mean, interval = mean_and_interval(top1)
        seeds_used = [seed for seed, row in zip(seeds, best, strict=True) if row is not None]
        return {
            "trial": entry["trial"],
            "seeds": seeds_used,
            "top1": top1,
            "mean": mean,
            "interval": interval,
            "mean_score": statistics.fmean(scores),
        }

    def _finish(self, winner: Mapping[str, Any]) -> dict[str, Any]:
        """Train the winner once more, now as a run of its own that opens the test set, and return its summary."""
        trial = Trial(winner["trial"], winner["values"])
        self._record.write()
        self._record.write_table()
        summary = begin_winner(self._spec, self._run, trial)
        if summary is None:
            summary = self._train_winner(trial)
            end_winner(self._run, summary)
        return {"winner": winner["trial"], "winner_values": winner["values"], "winner_run": WINNER, **summary}

    def _train_winner(self, trial: Trial) -> dict[str, Any]:
        asked = self._broker.finish.remote(self._make_ticket(trial.name, trial.values))
        while not ray.wait([asked], timeout=0.2)[0]:
            self._take_events()
        return ray.get(asked)


def best_row(rows: Sequence[Mapping[str, Any]], lane: str, sweep: SweepSpec) -> Mapping[str, Any] | None:
    """Return the best row of a lane by the sweep's metric, None where it has none."""
    own = [row for row in rows if row["lane"] == lane and row.get(sweep.metric) is not None]
    better = max if sweep.better == "max" else min
    return better(own, key=lambda row: row[sweep.metric], default=None)


def mean_and_interval(values: Sequence[float]) -> tuple[float, list[float] | None]:
    """Return the mean of shares `values` and its 95 % interval (Student's t, within 0..1); None for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    quantile = STUDENT_95[len(values) - 2] if len(values) - 2 < len(STUDENT_95) else 1.96
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean, [max(0.0, mean - half), min(1.0, mean + half)]
