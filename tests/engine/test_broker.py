"""The broker's turns, without Ray: who trains with whom, how far, and what happens to those that end."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tltrain.engine.broker import Broker
from tltrain.engine.broker_actor import BrokerActor, Reply, Workers
from tltrain.engine.work import ENDED, State, Task, Ticket, Work, trial_of
from tltrain.errors import RunError


def ticket(trial: str, **changes: Any) -> Ticket:
    return Ticket(**{"trial": trial, "values": {}, "cohort": "a", "epochs": 3, **changes})


def broker(*tickets: Ticket, run_ahead: int = 100, max_lanes: int = 100, num_groups: int = 1) -> Broker:
    made = Broker(num_groups=num_groups, run_ahead=run_ahead, max_lanes=max_lanes)
    for each in tickets:
        made.register(each)
    return made


def train(made: Broker, group: int = 0) -> Work:
    """Take work and do it."""
    work = made.take(group)
    assert work is not None
    made.complete([{"lane": trial, "epoch": work.epoch + 1} for trial in work.lanes], {})
    return work


def test_lanes_of_the_same_batches_train_together_and_are_built_once() -> None:
    made = broker(ticket("t0"), ticket("t1"), ticket("t2", cohort="b"))
    first, second = train(made), train(made)
    assert set(first.lanes) == {"t0", "t1"}
    assert {added.trial for added in first.added} == {"t0", "t1"}
    assert (second.lanes, second.epoch, second.added) == (("t0", "t1"), 1, ())


def test_lanes_at_different_epochs_do_not_share_a_batch() -> None:
    made = broker(ticket("t0"))
    train(made)
    made.register(ticket("t1"))
    assert {made.take(0).lanes for _ in range(1)} <= {("t0",), ("t1",)}  # pyright: ignore[reportOptionalMemberAccess]


def test_no_lane_trains_further_than_its_trial_has_asked() -> None:
    made = broker(ticket("t0"), run_ahead=1)
    train(made)
    assert made.take(0) is None
    made.request("t0", 2)
    assert train(made).epoch == 1
    assert made.take(0) is None


def test_a_dropped_lane_trains_no_more_and_its_group_is_told() -> None:
    made = broker(ticket("t0"), ticket("t1"))
    train(made)
    made.drop("t0")
    work = train(made)
    assert work.lanes == ("t1",)
    assert work.dropped == ("t0",)


def test_a_lane_dropped_while_it_trains_leaves_no_row() -> None:
    made = broker(ticket("t0"))
    work = made.take(0)
    assert work is not None
    made.drop("t0")
    made.complete([{"lane": "t0"}], {})
    assert made.row("t0", 1) is None
    assert made.states() == {"t0": "dropped"}


def test_a_failed_lane_answers_with_its_error_and_the_others_go_on() -> None:
    made = broker(ticket("t0"), ticket("t1"))
    made.take(0)
    made.complete([{"lane": "t1"}], {"t0": "its loss is not finite"})
    row = made.row("t0", 1)
    assert row is not None
    assert row["error"] == "its loss is not finite"
    assert train(made).lanes == ("t1",)


def test_a_clone_starts_from_the_saved_state_of_another() -> None:
    made = broker(ticket("t0"), ticket("t1"), run_ahead=1)
    train(made)
    made.request_save("t0")
    save = made.take(0)
    assert save is not None
    assert (save.task, save.lanes) == (Task.SAVE, ("t0",))
    made.complete_save({"t0": "t0/1"})
    assert made.saved("t0") == "t0/1"
    made.register(ticket("t1", start="t0/1", start_epoch=1))
    work = train(made)
    assert work.lanes == ("t1",)
    assert work.dropped == ("t1",)
    assert work.added[0].start == "t0/1"
    assert made.row("t1", 2) is not None


def test_lanes_are_spread_over_groups_by_cost() -> None:
    made = broker(*(ticket(f"t{i}", cost=cost) for i, cost in enumerate([9, 1, 1, 1, 9, 1])), num_groups=2)
    loads = []
    for group in (0, 1):
        work = made.take(group)
        assert work is not None
        loads.append(sum({"t0": 9, "t4": 9}.get(trial, 1) for trial in work.lanes))
    assert max(loads) - min(loads) <= 2


def test_groups_end_only_when_nothing_can_come() -> None:
    made = broker(ticket("t0", epochs=1))
    train(made)
    assert made.take(0) is None
    made.close()
    work = made.take(0)
    assert work is not None
    assert work.task is Task.STOP


def test_a_group_that_died_builds_its_lanes_anew() -> None:
    made = broker(ticket("t0"))
    train(made)
    made.take(0)
    made.restart(0)
    work = made.take(0)
    assert work is not None
    assert [added.trial for added in work.added] == ["t0"]


def test_the_lanes_of_a_group_that_will_not_come_back_go_to_the_others() -> None:
    made = broker(*(ticket(f"t{i}", epochs=1) for i in range(4)), num_groups=2)
    gone = made.take(0)
    assert gone is not None
    made.retire(0)
    trained: list[str] = []
    while (work := made.take(1)) is not None:
        trained += work.lanes
        made.complete([{"lane": trial} for trial in work.lanes], {})
    assert sorted(trained) == ["t0", "t1", "t2", "t3"]
    made.request_finish(ticket("t0"))
    finishing = made.take(1)
    assert finishing is not None
    assert finishing.task is Task.FINISH


def test_lanes_of_a_group_that_finds_no_room_go_to_the_first_that_does() -> None:
    made = broker(*(ticket(f"t{i}", epochs=1) for i in range(4)), num_groups=2)
    for _ in range(2):
        for group in (0, 1):
            made.restart(group)
            made.retire(group)
    made.restart(1)
    trained = list(train(made, 1).lanes)
    made.restart(0)
    made.retire(0)
    trained += [trial for _ in range(4 - len(trained)) for trial in train(made, 1).lanes]
    assert sorted(trained) == ["t0", "t1", "t2", "t3"]


def test_workers_whose_group_was_given_up_are_not_heard_any_more() -> None:
    """Their node may have been cut off and come back: others train the lanes now, and count the epochs."""

    async def tell_late() -> None:
        actor = BrokerActor(lambda trial, values: ticket(trial), num_groups=2, run_ahead=1, max_lanes=9)
        await actor.register([ticket("t0")])
        gone, there = await actor.begin(0), await actor.begin(1)
        await actor.next_work(gone)
        await actor.retire(0)
        assert (await actor.next_work(there)).lanes == ("t0",)
        with pytest.raises(RunError, match="another attempt has taken over"):
            await actor.complete(gone, [{"lane": "t0", "epoch": 1}], {})

    asyncio.run(tell_late())


def test_whether_any_workers_have_come_up_is_known() -> None:
    async def told() -> list[bool]:
        actor = BrokerActor(lambda trial, values: ticket(trial), num_groups=2, run_ahead=1, max_lanes=9)
        await actor.register([ticket("t0"), ticket("t1")])
        await actor.begin(0)
        known = [await actor.has_workers()]
        await actor.next_work(await actor.begin(0))
        known.append(await actor.has_workers())
        await actor.retire(0)
        known.append(await actor.has_workers())
        return known

    assert asyncio.run(told()) == [False, True, False]


def test_a_group_that_comes_back_takes_its_share_of_the_lanes_from_their_saved_states() -> None:
    made = broker(*(ticket(f"t{i}", cost=cost, epochs=9) for i, cost in enumerate([4, 3, 2, 1])), num_groups=2)
    for group in (0, 1):
        train(made, group)
    made.retire(1)
    everything = train(made, 0)
    while set(everything.lanes) != {"t0", "t1", "t2", "t3"}:  # those of the other group catch up
        everything = train(made, 0)
    made.restart(1)
    assert made.take(0) is not None, "until it is there the others train on"
    assert made.take(1) is None
    made.complete([{"lane": trial} for trial in everything.lanes], {})
    leaving = made.take(0)
    assert leaving is not None
    assert leaving.task is Task.SAVE
    made.complete_save({trial: f"{trial}/{leaving.epoch}" for trial in leaving.lanes})
    stays, comes = made.take(0), made.take(1)
    assert stays is not None
    assert comes is not None
    assert set(stays.dropped) == set(leaving.lanes) == set(comes.lanes)
    assert {added.start for added in comes.added} == {f"{trial}/{leaving.epoch}" for trial in leaving.lanes}
    assert set(stays.lanes) | set(comes.lanes) == {"t0", "t1", "t2", "t3"}
    costs = [sum({"t0": 4, "t1": 3, "t2": 2, "t3": 1}[trial] for trial in work.lanes) for work in (stays, comes)]
    assert costs == [5, 5]


def test_out_of_memory_halves_the_lanes_that_a_group_held_down_to_none() -> None:
    made = broker(*(ticket(f"t{i}") for i in range(5)), max_lanes=1000)
    limits = []
    for _ in range(3):
        made.take(0)
        limits.append(made.halve_lanes())
        made.restart(0)
    assert limits == [2, 1, 0]


def test_a_group_never_holds_more_lanes_than_its_limit_and_trains_all_of_them() -> None:
    made = broker(*(ticket(f"t{i}") for i in range(5)), max_lanes=2)
    held: set[str] = set()
    trained = 0
    while (work := made.take(0)) is not None:
        held = (held - set(work.dropped)) | {added.trial for added in work.added}
        assert len(held) <= 2
        assert set(work.lanes) <= held
        trained += len(work.lanes)
        made.complete([{"lane": trial} for trial in work.lanes], {})
    assert trained == 5 * 3


def test_lanes_that_wait_for_their_trials_make_room_and_come_back_from_their_saved_states() -> None:
    made = broker(ticket("t0"), ticket("t1"), run_ahead=1, max_lanes=1)
    assert train(made).lanes == ("t0",)
    parking = made.take(0)
    assert parking is not None
    assert (parking.task, parking.lanes, parking.epoch) == (Task.SAVE, ("t0",), 1)
    made.complete_save({"t0": "t0/1"})
    work = train(made)
    assert (work.lanes, work.dropped) == (("t1",), ("t0",))
    made.request("t0", 2)
    made.take(0)  # t1 makes room
    made.complete_save({"t1": "t1/1"})
    back = train(made)
    assert (back.lanes, back.epoch, back.added[0].start) == (("t0",), 1, "t0/1")


def test_lanes_that_found_no_memory_wait_until_others_have_ended() -> None:
    made = broker(*(ticket(f"t{i}", epochs=1) for i in range(3)))
    work = made.take(0)
    assert work is not None
    made.refuse(["t1", "t2"], limit=1)
    made.complete([{"lane": "t0"}], {})
    assert [train(made).lanes, train(made).lanes, made.take(0)] == [("t1",), ("t2",), None]


def test_lanes_at_different_epochs_are_saved_one_epoch_at_a_time() -> None:
    made = broker(ticket("t0"))
    train(made)
    made.register(ticket("t1"))
    for trial in ("t0", "t1"):
        made.request_save(trial)
    saved = {}
    for _ in range(2):
        work = made.take(0)
        assert work is not None
        saved |= dict.fromkeys(work.lanes, work.epoch)
        made.complete_save({trial: f"{trial}/{work.epoch}" for trial in work.lanes})
    assert saved == {"t0": 1, "t1": 0}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_lane_ends_with_each_epoch_once_whatever_the_order_of_events(data: st.DataObject) -> None:
    count, groups = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    epochs = [data.draw(st.integers(1, 4)) for _ in range(count)]
    made = broker(run_ahead=data.draw(st.integers(0, 4)), max_lanes=data.draw(st.integers(1, 4)), num_groups=groups)
    seen: dict[str, list[int]] = {f"t{i}": [] for i in range(count)}
    for i in range(count):
        made.register(ticket(f"t{i}", epochs=epochs[i], cohort=data.draw(st.sampled_from("ab"))))
    drawn = [data.draw(st.integers(0, groups - 1)) for _ in range(data.draw(st.integers(0, 60)))]
    every_group_in_turn = [group for _ in range(60) for group in range(groups)]
    for group in drawn + every_group_in_turn:
        for i in range(count):
            made.request(f"t{i}", min(epochs[i], len(seen[f"t{i}"]) + 1))
        work = made.take(group)
        if work is None:
            continue
        for trial in work.lanes:
            seen[trial].append(work.epoch)
        made.complete([{"lane": trial} for trial in work.lanes], {})
    assert seen == {f"t{i}": list(range(epochs[i])) for i in range(count)}


class Group:
    """A worker group: it knows how many epochs each of its lanes has seen, and dies with all it knows."""

    def __init__(self, made: Broker, number: int, states: dict[str, int]) -> None:
        self.made, self.number, self.states = made, number, states
        self.lanes: dict[str, int] = {}
        self.is_there = True

    def work(self, rows: dict[tuple[str, int], int], *, saves: bool) -> None:
        """Do a piece of work; `saves`: save what was trained."""
        work = self.made.take(self.number)
        if work is None or work.task is Task.STOP:
            return
        for trial in work.dropped:
            self.lanes.pop(trial, None)
        for added in work.added:
            assert added.trial not in self.lanes
            self.lanes[added.trial] = 0 if added.start is None else self.states[added.start]
        assert {self.lanes[trial] for trial in work.lanes} == {work.epoch}
        if work.task is Task.TRAIN:
            for trial in work.lanes:
                self.lanes[trial] += 1
                rows[trial, work.epoch + 1] = rows.get((trial, work.epoch + 1), 0) + 1
            done = [{"lane": trial, "epoch": work.epoch + 1} for trial in work.lanes]
            self.made.complete(done, {})
        if work.task is Task.SAVE or saves:
            names = {trial: f"{trial}/{self.lanes[trial]}" for trial in work.lanes}
            self.states.update({name: self.lanes[trial] for trial, name in names.items()})
            self.made.complete_save(names)

    def die(self) -> None:
        self.lanes.clear()

    def come(self) -> None:
        if not self.is_there:
            self.is_there = True
            self.made.restart(self.number)

    def wait_in_vain(self) -> None:
        """Begin, and find no room."""
        self.made.restart(self.number)
        self.made.retire(self.number)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_lanes_end_wherever_they_train_while_groups_die_retire_find_no_room_and_come_back(seed: int) -> None:
    """Each epoch is trained from the one before it, and no trial gets an older state than the one that it asked for."""
    chance = random.Random(seed)
    count, num_groups = chance.randint(1, 6), chance.randint(2, 3)
    epochs = {f"t{i}": chance.randint(1, 12) for i in range(count)}
    made = broker(run_ahead=chance.randint(1, 12), max_lanes=chance.randint(1, 4), num_groups=num_groups)
    states: dict[str, int] = {}
    groups = [Group(made, number, states) for number in range(num_groups)]
    for group in groups:
        group.is_there = chance.random() < 0.7
    rows: dict[tuple[str, int], int] = {}
    asked, waiting = dict.fromkeys(epochs, 0), dict[str, int]()
    for trial, last in epochs.items():
        made.register(ticket(trial, epochs=last, cost=chance.randint(1, 9), cohort=chance.choice("ab")))

    def ask() -> None:
        """Be the trials: ask for one epoch after another, and sometimes for a state."""
        for trial, last in epochs.items():
            if trial in waiting:
                name = made.saved(trial)
                if name is None and made.standing(trial).state not in ENDED:
                    continue
                assert name is None or states[name] >= waiting.pop(trial)
                waiting.pop(trial, None)
            while asked[trial] < last and (asked[trial] == 0 or made.row(trial, asked[trial]) is not None):
                asked[trial] += 1
                made.request(trial, asked[trial])
                if asked[trial] > 1 and chance.random() < 0.3:
                    made.request_save(trial)
                    waiting[trial] = asked[trial] - 1
                    break

    for _ in range(chance.randint(0, 120)):
        ask()
        group = chance.choice(groups)
        event = chance.choice(["work"] * 6 + ["save", "die", "retire", "return", "return", "wait"])
        if event in ("work", "save") and group.is_there:
            group.work(rows, saves=event == "save")
        elif event == "die" and group.is_there:
            group.die()
            made.restart(group.number)
        elif event == "retire" and group.is_there:
            group.die()
            group.is_there = False
            made.retire(group.number)
        elif event == "return" and not group.is_there:
            group.come()
        elif event == "wait" and not group.is_there:
            group.wait_in_vain()
    chance.choice(groups).come()
    for _ in range(200):
        ask()
        for group in groups:
            if group.is_there:
                group.work(rows, saves=False)
            else:
                group.wait_in_vain()
    assert {trial: (standing.state, standing.epoch) for trial, standing in made.standings().items()} == {
        trial: (State.FINISHED, last) for trial, last in epochs.items()
    }
    assert set(rows) == {(trial, epoch) for trial, last in epochs.items() for epoch in range(1, last + 1)}


@pytest.mark.parametrize("epoch", [1, 2])
def test_rows_are_kept_for_trials_that_ask_late(epoch: int) -> None:
    made = broker(ticket("t0"))
    train(made)
    train(made)
    row = made.row("t0", epoch)
    assert row is not None
    assert row["epoch"] == epoch


def test_after_a_groups_death_a_lane_goes_on_from_its_newest_saved_state() -> None:
    made = broker(ticket("t0"))
    train(made)
    made.complete_save({"t0": "t0/1"})
    train(made)
    made.take(0)
    made.restart(0)
    work = made.take(0)
    assert work is not None
    assert work.epoch == 1
    assert (work.added[0].start, work.added[0].start_epoch) == ("t0/1", 1)


def test_after_a_groups_death_a_clone_goes_on_from_its_own_state_and_not_from_its_sources() -> None:
    made = broker(ticket("t0"), ticket("t1", start="t0/1", start_epoch=1))
    while made.take(0) is not None:
        pass
    made.adopt("t1", "t0/1", "t1/1")
    made.restart(0)
    assert made.standing("t1").ticket.start == "t1/1"
    made.register(ticket("t1", start="t2/2", start_epoch=2))
    made.adopt("t1", "t0/1", "t1/1")
    assert made.standing("t1").ticket.start == "t2/2", "it was put elsewhere in the meantime"


def test_a_state_that_a_clone_waits_for_stays_and_is_not_written_over() -> None:
    """The source saves on while the clone's group is busy or dead, and may itself be put elsewhere."""
    made = broker(ticket("t0"), ticket("t1"), ticket("t2"), num_groups=3, run_ahead=1)
    assert [train(made, group).lanes for group in range(3)] == [("t0",), ("t1",), ("t2",)]
    assert needed(made) == ()
    made.register(ticket("t1", start="t0/1", start_epoch=1))
    assert needed(made) == ("t0/1",)
    made.register(ticket("t0", start="t2/1", start_epoch=1))
    assert made.standing("t0").ticket.home == "t0.1", "what it saves as epoch 1 is not what the clone waits for"
    assert needed(made) == ("t0/1", "t2/1")
    made.adopt("t1", "t0/1", "t1.1/1")
    assert needed(made) == ("t2/1",), "it has its own now"
    made.drop("t0")
    assert needed(made) == ()


def needed(made: Broker) -> tuple[str, ...]:
    """Have lane t2, which stands alone in group 2, saved; return the states that have to stay."""
    made.request_save("t2")
    work = made.take(2)
    assert work is not None
    assert work.task is Task.SAVE
    made.complete_save({"t2": f"t2/{made.standing('t2').epoch}"})
    return work.needed


def test_each_generation_of_a_lane_has_a_home_and_all_but_the_last_two_can_go() -> None:
    made = broker(ticket("t0"))
    homes, former = ["t0"], [made.standing("t0").ticket.former_home]
    for _ in range(3):
        made.register(ticket("t0", start="t1/1", start_epoch=1))
        homes.append(made.standing("t0").ticket.home)
        former.append(made.standing("t0").ticket.former_home)
    assert homes == ["t0", "t0.1", "t0.2", "t0.3"]
    assert former == [None, None, "t0", "t0.1"]
    assert [trial_of(f"{home}/2") for home in homes] == ["t0"] * 4
    assert made.standing("t0").ticket.is_clone
    made.adopt("t0", "t1/1", "t0.3/1")
    assert not made.standing("t0").ticket.is_clone


def test_a_lane_that_catches_up_does_not_pass_an_older_state_for_the_one_that_was_asked_for() -> None:
    """Its group saves it now and then; a clone of that would be an epoch behind, and not known to be."""
    made = broker(ticket("t0", epochs=5), run_ahead=3)
    train(made)
    made.complete_save({"t0": "t0/1"})
    train(made)
    train(made)
    made.request_save("t0")
    made.restart(0)
    assert train(made).epoch == 1
    made.complete_save({"t0": "t0/2"})
    assert made.saved("t0") is None
    assert train(made).epoch == 2
    work = made.take(0)
    assert work is not None
    assert (work.task, work.epoch) == (Task.SAVE, 3)
    made.complete_save({"t0": "t0/3"})
    assert made.saved("t0") == "t0/3"


def test_a_lane_that_was_never_saved_starts_over_after_its_groups_death() -> None:
    made = broker(ticket("t0"))
    train(made)
    made.restart(0)
    work = train(made)
    assert (work.epoch, work.added[0].start) == (0, None)
    assert train(made).epoch == 1


def test_a_run_of_its_own_goes_to_the_first_group_once() -> None:
    made = broker(num_groups=2)
    made.request_finish(ticket("t0"))
    assert made.take(1) is None
    work = made.take(0)
    assert work is not None
    assert work.task is Task.FINISH
    made.complete_finish({"best": 1})
    assert made.take(0) is None
    assert made.summary == {"best": 1}


def test_an_isolated_lane_is_a_group_that_is_claimed_once_and_ends_with_the_lane() -> None:
    made = Broker(num_groups=1, run_ahead=0, max_lanes=1, is_isolated=True)
    made.register(ticket("t0"))
    made.register(ticket("t1"))
    assert made.claim() is None, "nobody waits for an epoch yet"
    made.request("t1", 1)
    group = made.claim()
    assert group is not None
    assert made.claim() is None
    work = made.take(group)
    assert work is not None
    assert work.lanes == ("t1",)
    made.complete([{"lane": "t1"}], {})
    assert made.take(group) is None, "its trial has not asked for more, and may yet"
    made.drop("t1")
    work = made.take(group)
    assert work is not None
    assert work.task is Task.STOP


def test_the_run_of_its_own_is_claimed_like_an_isolated_lane() -> None:
    made = Broker(num_groups=1, run_ahead=0, max_lanes=1, is_isolated=True)
    made.request_finish(ticket("t0"))
    assert (made.claim(), made.claim()) == (0, None)
    work = made.take(0)
    assert work is not None
    assert work.task is Task.FINISH
    made.complete_finish({"best": 1})
    work = made.take(0)
    assert work is not None
    assert work.task is Task.STOP


def test_the_rows_of_a_trial_that_has_ended_are_forgotten_and_its_standing_is_not() -> None:
    made = broker(ticket("t0", epochs=1), ticket("t1"))
    train(made)
    assert made.row("t0", 1) is not None
    made.drop("t0")
    assert made.row("t0", 1) is None
    assert (made.standing("t0").state, made.standing("t0").epoch) == (State.FINISHED, 1)
    assert made.row("t1", 1) is not None


def make_actor(**options: Any) -> BrokerActor:
    return BrokerActor(
        lambda trial, values: ticket(trial), **{"num_groups": 1, "run_ahead": 3, "max_lanes": 100, **options}
    )


async def train_once(actor: BrokerActor, workers: Workers) -> Work:
    """Take work and do it."""
    work = await actor.next_work(workers)
    await actor.complete(workers, [{"lane": trial, "epoch": work.epoch + 1} for trial in work.lanes], {})
    return work


def test_a_call_that_outlives_its_worker_is_given_no_work() -> None:
    """Ray does not end it: it would take the lanes along, and nobody would train them."""

    async def sweep() -> tuple[BaseException | None, Work]:
        actor = make_actor()
        dead = await actor.begin(0)
        waits = asyncio.create_task(actor.next_work(dead))
        await asyncio.sleep(0)
        workers = await actor.begin(0)
        next_waits = asyncio.create_task(actor.next_work(workers))
        await asyncio.sleep(0)
        await actor.register([ticket("t0")])
        work = await asyncio.wait_for(next_waits, 10)
        await asyncio.wait([waits])
        return waits.exception(), work

    error, work = asyncio.run(sweep())
    assert isinstance(error, RunError)
    assert work.lanes == ("t0",)


@pytest.mark.parametrize("method", ["complete", "complete_save", "note_clone", "note_measured", "refuse"])
def test_what_workers_say_that_were_given_up_is_not_heard(method: str) -> None:
    """Their node may have been cut off, and come back for a moment before Ray ends them."""
    says: dict[str, tuple[Any, ...]] = {
        "complete": ([{"lane": "t0", "epoch": 2}], {}),
        "complete_save": ({"t0": "t0/2"}, {}),
        "note_clone": ("t0", "t1/1", "", "t0/1"),
        "note_measured": ({"seconds": {}},),
        "refuse": (["t0"], 1),
    }

    async def sweep() -> tuple[Any, Any]:
        actor = make_actor()
        await actor.register([ticket("t0")])
        dead = await actor.begin(0)
        await train_once(actor, dead)
        await actor.next_work(dead)
        workers = await actor.begin(0)
        work = await actor.next_work(workers)
        assert (work.lanes, work.epoch) == (("t0",), 0)
        before = await state(actor)
        with pytest.raises(RunError, match="started again"):
            await getattr(actor, method)(dead, *says[method])
        return before, await state(actor)

    async def state(actor: BrokerActor) -> Any:
        return await actor.standings(), await actor.events(), await actor.measured()

    before, after = asyncio.run(sweep())
    assert after == before


def test_a_trial_whose_last_row_was_lost_with_its_process_is_told_it_again() -> None:
    """Else it would end with the worst metric, and a searcher would stay away from what was good."""

    async def sweep() -> list[tuple[dict[str, Any] | None, bool]]:
        actor = make_actor()
        workers = await actor.begin(0)
        told = []
        for _ in range(2):
            epoch = await actor.attach("t0", {})
            while (await actor.standings())["t0"].state is not State.FINISHED:
                await train_once(actor, workers)
            for each in range(epoch + 1, 4):
                reply = await actor.request_row("t0", each)
                told.append((reply.row, reply.is_last))
        return told

    told = asyncio.run(sweep())
    rows = [({"lane": "t0", "epoch": epoch}, epoch == 3) for epoch in (1, 2, 3)]
    assert told == [*rows, rows[-1]]


@pytest.mark.parametrize("end", ["after three epochs", "early", "by an error", "by a halt"])
def test_a_trial_that_asks_for_its_last_epoch_alone_is_told_how_its_lane_ended(end: str) -> None:
    async def sweep() -> Reply:
        actor = make_actor()
        workers = await actor.begin(0)
        asked = await actor.attach("t0", {}) + 3
        waiting = asyncio.create_task(actor.request_row("t0", asked))
        while not waiting.done():
            assert (await actor.next_work(workers)).task is Task.TRAIN
            epoch = (await actor.standings())["t0"].epoch + 1
            if epoch == 2 and end == "by a halt":
                await actor.halt("time is over")
                break
            if epoch == 2 and end == "by an error":
                await actor.complete(workers, [], {"t0": "not finite"})
                break
            is_last = epoch == 2 and end == "early"
            await actor.complete(workers, [{"lane": "t0", "epoch": epoch, "is_last": is_last}], {})
            await asyncio.sleep(0)
        return await waiting

    reply = asyncio.run(sweep())
    assert (
        reply
        == {
            "after three epochs": Reply(3, {"lane": "t0", "epoch": 3, "is_last": False}, True),
            "early": Reply(2, {"lane": "t0", "epoch": 2, "is_last": True}, True),
            "by an error": Reply(3, None, True, "not finite"),
            "by a halt": Reply(3, None, True, "time is over"),
        }[end]
    )


def test_of_a_clone_it_is_told_what_it_left_and_what_it_skipped() -> None:
    async def sweep() -> list[Any]:
        actor = make_actor(run_ahead=1)
        workers = await actor.begin(0)
        for trial in ("t0", "t1"):
            await actor.attach(trial, {})
        await train_once(actor, workers)
        for trial in ("t0", "t1"):
            await actor.request_row(trial, 1)
        await actor.allow("t0", 2)
        await train_once(actor, workers)
        assert await actor.clone("t1", {}, "t0", "t0/2", 2) == 2
        await actor.note_clone(workers, "t1", "t0/2", "abc", "t1/2")
        return [(event.epoch, event.data) for event in await actor.events() if event.kind == "cloned"]

    assert asyncio.run(sweep()) == [(2, {"state": "t0/2", "sha256": "abc", "left_at": 1})]


def test_the_driver_is_told_every_event_once_and_what_it_has_is_forgotten() -> None:
    async def sweep() -> tuple[list[str], int]:
        actor = make_actor(max_lanes=2)
        await actor.register([ticket(f"t{number}") for number in range(6)])
        workers = await actor.begin(0)
        told: list[str] = []
        kept = 0
        for _ in range(9):
            await train_once(actor, workers)
            events = await actor.events(len(told))
            told += [event.kind for event in events]
            kept = max(kept, len(await actor.events(len(told))))
        return told, kept

    told, kept = asyncio.run(sweep())
    assert (told.count("registered"), told.count("row"), told.count("finished")) == (6, 18, 6)
    assert kept == 0
