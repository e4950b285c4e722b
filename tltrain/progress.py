"""How far a worker group has come: counted in its loop, written into the run folder now and then, read by anyone."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from tltrain.errors import RunError, StorageError
from tltrain.storage import Folder

PROGRESS_FOLDER = "progress"
"""In a run folder: one file for each worker group that trains."""
LOCAL_INTERVAL_S, REMOTE_INTERVAL_S = 0.5, 5.0
"""Least seconds between two writes, on a local disk and elsewhere."""
WINDOW_S = 10.0
"""Seconds over which images per second are measured."""
PACE_S = 60.0
"""Seconds over which it is measured how fast the whole goes on."""

_WAIT = ".waits-"
T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What a worker group is at. Images are counted over all ranks, once for all lanes that share them."""

    phase: str = ""
    """`prefix` (the frozen layers, beforehand), `training`, `validation`, or `evaluation` at the end."""
    epoch: int = 0
    """Counted from 1."""
    epochs: int = 0
    lanes: int = 1
    images: int = 0
    """Images done of this phase."""
    num_images: int = 0
    """All images of this phase."""
    images_per_s: float = 0.0
    updated_at: float = 0.0
    limit_s: float = 0.0
    """Seconds after which a rank that does not arrive ends the attempt; 0 for a group of one."""

    @property
    def share(self) -> float:
        """Share of the phase that is done."""
        return min(1.0, self.images / self.num_images) if self.num_images else 0.0

    @property
    def epochs_done(self) -> float:
        """Epochs that are trained, with the share of the one under way."""
        return min(self.epochs, self.epoch - 1 + self.share) if self.phase == "training" else self.epoch


@dataclass(frozen=True)
class Wait:
    """What a rank waits for, and until when (Unix time) at most."""

    what: str
    until: float


class Meter:
    """Counts images; a thread of its own writes the count, so that the loop that counts never waits.

    folder: of the run; None counts for nobody. name: of the worker group. rank: the first alone writes the count, the
    others only what they wait for. limit_s: as in `Progress`.
    """

    def __init__(self, folder: Folder | None = None, name: str = "0", *, rank: int = 0, limit_s: float = 0.0) -> None:
        self._folder = None if folder is None else folder.child(PROGRESS_FOLDER)
        self._file, self._all_waits = f"{name}.json", f"{name}{_WAIT}"
        self._wait_file = f"{name}{_WAIT}{rank}.json"
        self._counts = rank == 0
        self._wait: Wait | None = None
        self._told: Wait | None = None
        self._now = Progress(limit_s=limit_s)
        self._images = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin_epoch(self, epoch: int, epochs: int, *, lanes: int = 1) -> None:
        """What is counted from now on belongs to `epoch` (from 1) of `epochs`, with so many lanes."""
        self._now = replace(self._now, epoch=epoch, epochs=epochs, lanes=lanes)

    def begin(self, phase: str, num_images: int) -> None:
        """Count the images of a phase from 0 on."""
        self._now, self._images = replace(self._now, phase=phase, num_images=num_images), 0
        if self._counts:
            self._start()

    def waits(self, what: str, until: float) -> None:
        """What is waited for, and until when (Unix time) at most; "" where the wait is over."""
        self._wait = Wait(what, until) if what else None
        self._start()

    def add(self, count: int) -> None:
        """Count the images of a batch. Costs an addition."""
        self._images += count

    def at(self, images: int) -> None:
        """So many images of the phase are done."""
        self._images = images

    def close(self) -> None:
        """End the thread, and leave nothing behind."""
        self._ended.set()
        if self._thread is None or self._folder is None:
            return
        self._thread.join()
        with contextlib.suppress(RunError):  # nobody reads them any more
            if self._told is not None:
                self._folder.delete(self._wait_file)
            if self._counts:
                self._folder.delete(self._file)

    def _start(self) -> None:
        if self._folder is not None and self._thread is None:
            self._thread = threading.Thread(target=self._keep_writing, name="progress", daemon=True)
            self._thread.start()

    def _keep_writing(self) -> None:
        assert self._folder is not None
        interval_s = LOCAL_INTERVAL_S if self._folder.local_path is not None else REMOTE_INTERVAL_S
        samples: deque[tuple[float, int]] = deque()
        written = Progress()
        if self._counts:
            self._forget_waits()
        while not self._ended.wait(interval_s):
            wait, now = self._wait, replace(self._now, images=self._images)
            if wait != self._told:
                self._told = wait
                if not self._write(self._wait_file, wait):
                    return
            if not self._counts or now == replace(written, images_per_s=0.0, updated_at=0.0):
                continue
            if now.phase != written.phase or now.epoch != written.epoch or now.images < written.images:
                samples.clear()
            samples.append((time.monotonic(), now.images))
            written = replace(now, images_per_s=_rate(samples), updated_at=time.time())
            if not self._write(self._file, written):
                return

    def _forget_waits(self) -> None:
        """Delete what was waited for in a group of this name that was killed."""
        assert self._folder is not None
        with contextlib.suppress(RunError):
            for name in self._folder.names():
                if name.startswith(self._all_waits):
                    self._folder.delete(name)

    def _write(self, name: str, facts: Progress | Wait | None) -> bool:
        """Write a file, or delete it; return whether it is worth going on: not where another attempt has taken over."""
        assert self._folder is not None
        try:
            if facts is None:
                self._folder.delete(name)
            else:
                self._folder.write_bytes(name, json.dumps(asdict(facts)).encode())
        except StorageError as error:
            logger.debug("progress was not written: %s", error)
        except RunError:
            return False
        return True


def _rate(samples: deque[tuple[float, int]]) -> float:
    while len(samples) > 2 and samples[-1][0] - samples[0][0] > WINDOW_S:
        samples.popleft()
    (began, first), (ended, last) = samples[0], samples[-1]
    return round((last - first) / (ended - began), 1) if ended > began else 0.0


def read_progress(run: Folder) -> list[Progress]:
    """Return what the worker groups of a run are at, as far as that can be read."""
    return read_progress_and_waits(run)[0]


def read_progress_and_waits(run: Folder) -> tuple[list[Progress], list[Wait]]:
    """Return what the worker groups of a run are at, and what ranks wait for that have waited for long."""
    folder = run.child(PROGRESS_FOLDER)
    names = folder.names()
    waits = [name for name in names if _WAIT in name]
    return _read(folder, [name for name in names if name not in waits], Progress), _read(folder, waits, Wait)


def take_waits(run: Folder, group: str = "0") -> list[Wait]:
    """Return what ranks of a worker group that has died had waited for, and forget it."""
    folder = run.child(PROGRESS_FOLDER)
    try:
        names = [name for name in folder.names() if name.startswith(f"{group}{_WAIT}")]
        waits = _read(folder, names, Wait)
        for name in names:
            folder.delete(name)
    except RunError as error:
        logger.debug("what workers waited for cannot be read: %s", error)
        return []
    return waits


def _read(folder: Folder, names: Sequence[str], kind: type[T]) -> list[T]:
    found = []
    for name in names:
        try:
            found.append(kind(**json.loads(folder.read_bytes(name))))
        except (StorageError, ValueError, TypeError):
            logger.debug("%s/%s cannot be read", folder, name)
    return found


class Pace:
    """How long something takes that is watched now and then: from how fast it went on in the last minute."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()

    def left_s(self, done: float, total: float, now: float | None = None) -> float | None:
        """Return the seconds until `done` is `total`, None while there is too little to tell from."""
        now = time.monotonic() if now is None else now
        samples = self._samples
        if samples and done < samples[-1][1]:
            samples.clear()
        if not samples or done > samples[-1][1]:
            samples.append((now, done))
        while len(samples) > 2 and now - samples[1][0] > PACE_S:
            samples.popleft()
        (began, first), (_, last) = samples[0], samples[-1]
        if last <= first or now - began < 1.0:
            return None
        return (total - done) * (now - began) / (last - first)


@dataclass(frozen=True)
class Bar:
    """A line that shows how far something has come."""

    label: str
    share: float
    images_per_s: float = 0.0
    left_s: float | None = None

    @property
    def facts(self) -> str:
        """Images per second and the time left, as far as they are known."""
        speed = f"{self.images_per_s:,.0f} images/s" if self.images_per_s else ""
        left = "" if self.left_s is None else f"{clock(self.left_s)} left"
        return "  ".join(part for part in (speed, left) if part)

    def __str__(self) -> str:
        return "  ".join(part for part in (self.label, f"{100 * self.share:.0f} %", self.facts) if part)


def clock(seconds: float) -> str:
    """Return seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def run_bar(groups: Sequence[Progress], pace: Pace) -> Bar | None:
    """Return the bar of a single run, None before it has begun."""
    if not groups:
        return None
    now = groups[0]
    left_s = pace.left_s(now.epochs_done, now.epochs)
    if now.phase == "evaluation":
        return Bar("Evaluation", now.share, now.images_per_s)
    label = f"Epoch {now.epoch}/{now.epochs} {now.phase}"
    return Bar(label, now.share, now.images_per_s, left_s)


def sweep_bar(groups: Sequence[Progress], *, label: str, epochs: int, total: int, pace: Pace) -> Bar:
    """Return the bar of lanes that train side by side. epochs: recorded ones of all lanes; total: that there will be.

    Images per second count an image once for each lane that it trains.
    """
    prefixes = [group for group in groups if group.phase == "prefix"]
    if prefixes and not epochs:
        share = min(1.0, sum(group.images for group in prefixes) / prefixes[0].num_images)
        return Bar("Frozen layers, once for all trials", share, sum(group.images_per_s for group in prefixes))
    training = [group for group in groups if group.phase == "training"]
    done = min(float(total), epochs + sum(group.lanes * group.share for group in training))
    speed = sum(group.lanes * group.images_per_s for group in training)
    return Bar(label, done / total if total else 0.0, speed, pace.left_s(done, total))
