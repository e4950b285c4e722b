"""Ray Tune over lanes, with groups that train by arithmetic: nothing hangs, and every decision reaches its lane."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_group
import pytest
import ray
from fake_group import FATAL, FakeGroup, sweep_spec
from left_behind import placement_groups
from ray import cloudpickle
from ray._private import state
from ray.tune.experiment import Trial as TuneTrial
from ray.util.placement_group import placement_group, remove_placement_group

from tltrain.engine import tuning
from tltrain.engine.broker_actor import start_broker
from tltrain.engine.cluster import connected
from tltrain.engine.schedulers import make_scheduler, run_ahead
from tltrain.engine.trial import LaneTrial
from tltrain.engine.tuning import Outcome, run_tune
from tltrain.engine.work import Task, trial_of
from tltrain.errors import SpecError
from tltrain.spec.schema import Spec
from tltrain.spec.space import Trial

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One private cluster for all tests here."""
    cloudpickle.register_pickle_by_value(fake_group)  # workers find the package, but not the tests
    with connected():
        yield


@contextlib.contextmanager
def groups(spec: Spec, trials: list[Trial], *, count: int = 1, seconds: float = 0.0) -> Iterator[list[FakeGroup]]:
    """A broker that knows the lanes of `trials`, and `count` groups that train them."""
    make_ticket = functools.partial(fake_group.make_ticket, spec.train.epochs)
    broker = start_broker(make_ticket, num_groups=count, run_ahead=run_ahead(spec), max_lanes=100)
    ray.get(broker.register.remote([make_ticket(trial.name, trial.values) for trial in trials]))
    started = [FakeGroup(broker, number, seconds).start() for number in range(count)]
    try:
        yield started
    finally:
        ray.get(broker.close.remote())
        for group in started:
            group.thread.join(timeout=20)
            assert not group.thread.is_alive(), "a group ends when the broker is closed"
        ray.kill(broker)


def rates(*values: float) -> list[Trial]:
    return [Trial(f"t{number:04}", {"optim.learning_rate": value}) for number, value in enumerate(values)]


def spread(count: int) -> list[Trial]:
    """Trials from the best learning rate to the worst."""
    return rates(*(0.1 + 0.05 * number for number in range(count)))


def run(spec: Spec, trials: list[Trial], **options: Any) -> tuple[dict[str, Outcome], list[FakeGroup]]:
    group_options = {name: options.pop(name) for name in ("count", "seconds") if name in options}
    with groups(spec, trials, **group_options) as started:
        found = run_tune(spec, started[0].broker, trials=trials, num_groups=len(started), **options)
    return {outcome.trial: outcome for outcome in found}, started


def trained(group: FakeGroup) -> list[tuple[int, int]]:
    """Return (epoch, number of lanes) of each piece of training."""
    return [(work.epoch, len(work.lanes)) for work in group.works if work.task is Task.TRAIN]


def test_a_grid_trains_side_by_side_whatever_ray_tune_does_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[TuneTrial] = []
    monkeypatch.setattr(TuneTrial, "get_json_state", told.append)
    found, (group,) = run(sweep_spec(), spread(16))
    assert trained(group) == [(0, 16), (1, 16), (2, 16), (3, 16)]
    assert {(outcome.state, outcome.epochs) for outcome in found.values()} == {("finished", 4)}
    assert told == [], "all that Ray Tune knows of a trial, as a text that nobody reads"


def test_asha_stops_bad_lanes_and_all_stay_abreast_in_two_processes() -> None:
    found, (group,) = run(sweep_spec(epochs=8, scheduler="asha"), spread(12))
    assert found["t0000"].state == "finished"
    assert found["t0011"].reason == "stopped by asha after epoch 1"
    assert all(outcome.epochs in (1, 4, 8) for outcome in found.values())
    assert sum(lanes for _, lanes in trained(group)) < 0.7 * 8 * 12


def test_two_live_trials_at_a_time_bring_twelve_to_their_ends() -> None:
    found, _ = run(sweep_spec(epochs=8, scheduler="asha", max_concurrent=2), spread(12))
    assert len(found) == 12
    assert found["t0000"].state == "finished"


@pytest.mark.parametrize("scheduler", ["median", pytest.param("hyperband", marks=pytest.mark.slow)])
def test_other_schedulers_stop_lanes_too(scheduler: str) -> None:
    found, _ = run(sweep_spec(epochs=9, scheduler=scheduler), spread(12))
    stopped = [outcome for outcome in found.values() if outcome.state == "stopped"]
    assert stopped
    assert all(outcome.reason == f"stopped by {scheduler} after epoch {outcome.epochs}" for outcome in stopped)
    assert found["t0000"].state == "finished"


@pytest.mark.parametrize("scheduler", ["pbt", pytest.param("pb2", marks=pytest.mark.slow)])
def test_a_clone_starts_from_what_was_saved_of_its_source(scheduler: str) -> None:
    found, (group,) = run(sweep_spec(epochs=6, scheduler=scheduler), rates(0.1, 0.5, 0.8, 0.9))
    clones = [ticket for work in group.works for ticket in work.added if ticket.is_clone]
    assert clones
    for ticket in clones:
        source, _, epoch = str(ticket.start).partition("/")
        assert trial_of(source) != ticket.trial
        assert int(epoch) == ticket.start_epoch, "the state saved is of the epoch that was compared"
    assert {(outcome.state, outcome.epochs) for outcome in found.values()} == {("finished", 6)}
    assert any(found[ticket.trial].values != {"optim.learning_rate": 0.9} for ticket in clones)


@pytest.mark.slow
def test_optuna_proposes_the_same_trials_again_and_knows_earlier_ones() -> None:
    spec = sweep_spec(epochs=2, search="optuna", num_trials=8)
    known = rates(0.3)
    earlier = [({"optim.learning_rate": 0.2}, 0.5), ({"optim.learning_rate": 0.7}, float("nan"))]
    first, _ = run(spec, known, num_proposals=7, first_number=3, earlier=earlier)
    again, _ = run(spec, known, num_proposals=7, first_number=3, earlier=earlier)
    assert list(first) == ["t0000", *(f"t{number:04}" for number in range(3, 10))]
    assert first == again
    assert first["t0000"].values == known[0].values
    assert len({outcome.values["optim.learning_rate"] for outcome in first.values()}) == 8


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("median", "pbt", "hyperband")]


@pytest.mark.parametrize("scheduler", ["fifo", "asha", *SLOW])
def test_a_failed_lane_ends_its_trial_and_no_other(scheduler: str) -> None:
    found, _ = run(sweep_spec(epochs=3, scheduler=scheduler), rates(0.1, 0.2, 0.3, FATAL))
    assert found["t0000"].state == "finished"
    if found["t0003"].state == "failed":
        assert (found["t0003"].reason, found["t0003"].epochs) == ("the loss is not finite", 1)
    else:
        assert scheduler != "fifo", "stopped before it could fail, or healed by a clone"


def test_a_process_that_dies_while_it_takes_up_a_trial_costs_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = tmp_path / "died"

    class Dying(LaneTrial):
        def reset(self, *arguments: Any, **options: Any) -> bool:
            if not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().reset(*arguments, **options)

    monkeypatch.setattr(tuning, "LaneTrial", Dying)
    found, _ = run(sweep_spec(epochs=8, scheduler="asha"), spread(4))
    assert {outcome.state for outcome in found.values()} == {"finished", "stopped"}
    assert died.exists()


def test_a_process_that_dies_again_and_again_fails_its_trial_alone_and_says_how_it_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Dying(LaneTrial):
        def step(self) -> dict[str, Any]:
            if self.trial_name == "t0001":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step()

    monkeypatch.setattr(tuning, "LaneTrial", Dying)
    monkeypatch.setattr(tuning, "RESTARTS_OF_A_TRIAL", 1)
    found, _ = run(sweep_spec(epochs=8, scheduler="asha"), spread(3))
    assert found["t0000"].state == "finished"
    assert found["t0001"].state == "failed"
    assert re.match(r"its process failed after 1 restart\(s\): .* died", found["t0001"].reason)


@pytest.mark.parametrize(("scheduler", "asked"), [("fifo", [2]), ("asha", [1, 2])])
def test_ray_tune_hears_of_every_epoch_only_where_something_decides_by_it(scheduler: str, asked: list[int]) -> None:
    heard: list[int] = []
    spec = sweep_spec(epochs=2, scheduler=scheduler)
    scheduler_class = type(make_scheduler(spec, None))
    before = scheduler_class.on_trial_result, scheduler_class.on_trial_complete

    def listen(kept: Any) -> Any:
        def method(self: Any, controller: Any, trial: Any, result: dict[str, Any]) -> Any:
            heard.append(result["epoch"])
            return kept(self, controller, trial, result)

        return method

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler_class, "on_trial_result", listen(before[0]))
        patch.setattr(scheduler_class, "on_trial_complete", listen(before[1]))
        found, _ = run(spec, rates(0.1))
    assert heard == asked
    assert found["t0000"].epochs == 2


def test_the_time_budget_ends_all_trials() -> None:
    spec = sweep_spec(epochs=1000, scheduler="asha", grace_epochs=1000, time_budget_s=3.0)
    began = time.monotonic()
    found, _ = run(spec, spread(4), seconds=0.5)
    assert time.monotonic() - began < 20
    assert {outcome.state for outcome in found.values()} == {"stopped"}
    assert all("stopped by the time budget of 3 s after epoch" in outcome.reason for outcome in found.values())


def test_an_interruption_is_raised_and_nothing_stays_behind() -> None:
    def poll() -> None:
        if time.monotonic() > began + 3:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(sweep_spec(epochs=1000), spread(4), seconds=0.5, poll=poll)


def test_lanes_go_on_from_an_earlier_attempt_in_two_groups() -> None:
    spec, trials = sweep_spec(epochs=4, scheduler="asha"), spread(6)
    with groups(spec, [], count=2) as started:
        tickets = [fake_group.make_ticket(4, trial.name, trial.values) for trial in trials]
        late = [type(t)(t.trial, t.values, t.cohort, 4, start_epoch=2, start=f"{t.trial}/2") for t in tickets]
        ray.get(started[0].broker.register.remote(late))
        found = run_tune(spec, started[0].broker, trials=trials, num_groups=2)
    assert found[0] == Outcome("t0000", "finished", "", 4, trials[0].values)
    assert all(work.epoch >= 2 for group in started for work in group.works)
    assert all(group.works for group in started)


def test_a_space_that_pbt_cannot_change_is_refused() -> None:
    spec = sweep_spec(scheduler="pbt", space={"model.freeze_depth": {"grid": [0, 1]}}, search="grid")
    with pytest.raises(SpecError, match="changes numbers in mid-training"):
        run_tune(spec, None, trials=[Trial("t0000", {"model.freeze_depth": 0})])


def test_a_search_has_two_processes_a_group_whatever_others_have_reserved_on_its_node() -> None:
    most = 0

    def poll() -> None:
        nonlocal most
        most = max(most, len(processes()))

    everything = placement_group([{f"node:{ray.util.get_node_ip_address()}": 1.0, "CPU": 1.0}])
    try:
        ray.get(everything.ready())
        found, _ = run(sweep_spec(epochs=8, scheduler="asha"), spread(12), count=2, seconds=0.3, poll=poll)
    finally:
        remove_placement_group(everything)
    assert most == 4
    assert found["t0000"].state == "finished"


def processes() -> list[dict[str, Any]]:
    """The processes that attend to trials, or have been asked for."""
    alive = [actor for actor in state.actors().values() if actor["State"] != "DEAD"]
    return [actor for actor in alive if actor["ActorClassName"].endswith("Trainable")]


def test_no_process_and_no_placement_group_stays_behind() -> None:
    """Runs last in this file, after sweeps that were stopped in every way."""
    deadline = time.monotonic() + 20
    while (left := (placement_groups(), processes())) != ([], []) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == ([], [])


def test_a_search_that_is_over_takes_away_what_a_killed_driver_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "tltrain-tune-left"
    left.mkdir()
    (left / ".held").touch()
    assert run_tune(sweep_spec(), None) == []
    assert list(tmp_path.iterdir()) == []
