"""The lanes of one worker group: built, trained together epoch by epoch, saved and forgotten as they are told to."""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tltrain.data.loader_processes import dead_loaders_named
from tltrain.errors import CheckpointError, DivergedError
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.spec.space import cohort_key
from tltrain.train.checkpoint import Checkpoints
from tltrain.train.distributed import Group
from tltrain.train.filling import fill
from tltrain.train.lane import Lane
from tltrain.train.measured import LaneEpochs, Record, bench_record, group_record
from tltrain.train.memory import has_room
from tltrain.train.phases import OTHER, Phases
from tltrain.train.session import configure_torch, fine_tune
from tltrain.train.skipped import read_looks, write_looks
from tltrain.train.workbench import Workbench, fingerprint, meter_of, open_folder, open_store

LANE = "lane"
STATES_FOLDER = "lanes"
KEPT_STATES = 3
"""Saved states per lane: a clone may still be on its way to an earlier one."""


@dataclass
class _Member:
    lane: Lane
    bench: Workbench
    home: str


class LaneGroup:
    """Lanes on one group of processes; every rank holds one and calls the same methods in the same order.

    passes: how often the training images will be gone through, at a guess. likely: specs of lanes that this group or
    others beside it will have; where it is given, the groups of a node compute the taps of these together. attempt: a
    text that the groups of one attempt at the sweep have in common.
    """

    def __init__(
        self,
        spec: Spec,
        run: RunFolder,
        group: Group,
        *,
        index: int,
        passes: int,
        likely: Sequence[Spec] = (),
        attempt: str = "",
    ) -> None:
        configure_torch(spec)
        self._spec, self._run, self._group, self._index, self._passes = spec, run, group, index, passes
        self._likely, self._attempt = likely, attempt
        self._folder = open_folder(spec, run, group, is_shared=bool(likely))
        self._store = open_store(spec, group, self._folder)
        self._meter = meter_of(spec, run, group, str(index))
        self._benches: dict[str, Workbench] = {}
        self._members: dict[str, _Member] = {}
        self.needed: frozenset[str] = frozenset()
        """Names of saved states that lanes, of other groups too, are still to be built from: they are not deleted."""
        self._epochs: defaultdict[str, LaneEpochs] = defaultdict(LaneEpochs)
        self._phases = Phases(torch.device("cpu"))

    def add(self, trial: str, spec: Spec, start: str | None, *, home: str | None = None) -> None:
        """Build the lane of `trial`, from the state saved under the name `start` or from the pretrained network.

        home: folder for the states that are saved of it; where it is left out, the trial's name.
        """
        bench = self._bench(spec)
        lane = bench.make_lane(trial, spec)
        if start is not None:
            lane.load_state(self._load(start))
        self._members[trial] = _Member(lane, bench, home or trial)

    def has_room(self) -> bool:
        """Whether the memory of every rank has room for another lane like the one that was built last."""
        if not self._members:
            return True
        newest = next(reversed(self._members.values())).lane
        processes = self._group.local_world_size if self._group.device.type == "cpu" else 1
        return not self._group.maximum(int(not has_room(newest, processes)))

    def num_lanes(self) -> int:
        """Return how many lanes there are."""
        return len(self._members)

    def _bench(self, spec: Spec) -> Workbench:
        """Return the workbench of a spec; lanes that differ in what lanes may differ in share one."""
        key = bench_key(spec)
        if key not in self._benches:
            folder = RunFolder(self._run.folder.child("groups", f"{self._index}-{key}"))
            known = read_looks(self._run) if self._group.is_first else []
            shared = {"passes": self._passes, "store": self._store, "meter": self._meter, "known": known}
            self._benches[key] = Workbench(spec, folder, self._group, **shared)
            self._fill(key)
        return self._benches[key]

    def _fill(self, key: str) -> None:
        bench, alike = self._benches[key], [spec for spec in self._likely if bench_key(spec) == key]
        if self._folder is not None and alike:
            depths = {bench.depth_of(spec) for spec in alike}
            fill(bench, depths, self._folder, f"{self._attempt} {key}")

    def _load(self, start: str) -> Any:
        home, epoch = start.rsplit("/", 1)
        return self._checkpoints(home).load(int(epoch)).parts[LANE]

    def _checkpoints(self, home: str) -> Checkpoints:
        states = Checkpoints(self._run.folder.child(STATES_FOLDER, home), keep=KEPT_STATES)
        needed = (name.rpartition("/") for name in self.needed)
        states.protect(*(int(epoch) for other, _, epoch in needed if other == home))
        return states

    def drop(self, trial: str) -> None:
        """Forget a lane."""
        self._members.pop(trial, None)

    @dead_loaders_named()
    def train_epoch(self, trials: Sequence[str], epoch: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Train the lanes of `trials` through `epoch` (0-based) and validate them.

        They share batches. Returns a row for each lane that went well, and trial -> error for each whose loss is not
        finite; these are forgotten. Rows say in `is_last` whether the lane has ended with them.
        """
        members = [self._members[trial] for trial in trials]
        bench, lanes = members[0].bench, [member.lane for member in members]
        assert all(member.bench is bench for member in members), "lanes that share no batches"
        depths = {lane.depth_at(epoch) for lane in lanes}
        for lane in lanes:
            self._epochs[bench_key(members[0].lane.spec)].add(lane.name, lane.depth_at(epoch))
        longest = max(lane.clock.epochs for lane in lanes)
        batches = bench.epoch_batches(epoch, 0, depths, num_epochs=longest, seed=lanes[0].spec.seed)
        bench.cohort.train_epoch(lanes, epoch, batches, bench.kept_in(epoch, lanes[0].spec.seed), lambda _: None)
        if epoch + 1 >= longest:
            bench.end_stream()
        errors = self._diverged(lanes)
        healthy = [lane for lane in lanes if lane.name not in errors]
        rows = bench.cohort.end_epoch(healthy, epoch, bench.validation) if healthy else []
        for trial in errors:
            self.drop(trial)
        return [row | {"is_last": self._has_ended(row["lane"], epoch)} for row in rows], errors

    def _has_ended(self, trial: str, epoch: int) -> bool:
        lane = self._members[trial].lane
        return lane.is_stopped or epoch + 1 >= lane.clock.epochs

    def _diverged(self, lanes: Sequence[Lane]) -> dict[str, str]:
        errors = {}
        for lane in lanes:
            try:
                lane.check_finite()
            except DivergedError as error:
                errors[lane.name] = str(error)
        return errors

    def save(self, trials: Sequence[str], epoch: int) -> dict[str, str]:
        """Save the lanes of `trials` as they stand after `epoch` epochs; return trial -> name of its state."""
        members = {trial: self._members[trial] for trial in trials}
        with self._phases("checkpoint"):
            for trial, member in members.items():
                state = member.lane.state()
                if self._group.is_first:
                    self._checkpoints(member.home).save(epoch, {LANE: state}, {"trial": trial}, background=False)
            self._group.barrier()
        return {trial: f"{member.home}/{epoch}" for trial, member in members.items()}

    def delete_states(self, home: str) -> None:
        """Delete what was saved in a home, unless something there is needed; then it all stays."""
        if self._group.is_first and all(name.rpartition("/")[0] != home for name in self.needed):
            self._run.folder.child(STATES_FOLDER).delete(home)

    def fingerprint(self, trial: str) -> str:
        """Return the sha256 over the weights of a lane as they are now."""
        return fingerprint(self._members[trial].lane.suffix.state_dict())

    def finish(self, spec: Spec, name: str) -> dict[str, Any]:
        """Train `spec` as a run of its own in the folder `name` of the sweep, with all that a run leaves."""
        run = RunFolder(self._run.folder.child(name))
        if self._group.is_first and (looks := read_looks(self._run)):
            write_looks(run, looks)
        with self._phases("winner"):
            return fine_tune(spec, run, self._group, store=self._store)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of a `with` block as time without work."""
        with self._phases("waiting"):
            yield

    def measured(self) -> Record:
        """Return what this rank has measured so far, see `measured.group_record`."""
        benches = {key: bench_record(bench, self._epochs[key]) for key, bench in self._benches.items()}
        own = self._phases.seconds()
        inside = [bench.phases.seconds() for bench in self._benches.values()]
        for seconds in inside:  # what a workbench does not count is part of this group's rest
            seconds.pop(OTHER, None)
        own[OTHER] -= sum(sum(seconds.values()) for seconds in inside)
        return group_record(benches, [own, *inside], self._group.world_size)

    def close(self) -> None:
        """End the use of everything that is kept."""
        self._meter.close()
        for bench in self._benches.values():
            bench.close()
        if self._folder is not None:
            self._folder.close()


def newest_state(run: RunFolder, trial: str, *, most: int) -> tuple[str, int] | None:
    """Return name and epoch of the newest good state of `trial`'s lane in the sweep `run`, None where there is none.

    Of those after at most so many epochs: later ones are deleted, for the lane will save others in their place.
    """
    states = Checkpoints(run.folder.child(STATES_FOLDER, trial), keep=KEPT_STATES)
    states.delete_after(most)
    try:
        checkpoint = states.newest()
    except CheckpointError:
        return None  # the lane is trained again, from its start
    return None if checkpoint is None else (f"{trial}/{checkpoint.step}", checkpoint.step)


def bench_key(spec: Spec) -> str:
    """Return a text that specs share whose lanes can stand on one workbench, be it with other orders of the images."""
    split_seed = spec.seed if spec.data.split_seed is None else spec.data.split_seed
    data = spec.data.model_copy(update={"split_seed": split_seed})
    depends_on_seed = spec.model.weights == "random" or spec.model.factory is not None
    same = spec.model_copy(update={"data": data, "seed": spec.seed if depends_on_seed else 0})
    return hashlib.sha256(cohort_key(same).encode()).hexdigest()[:12]
