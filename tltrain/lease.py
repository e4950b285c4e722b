"""Who may write into a run folder: one attempt at a time holds its lease, and writes of an older one are refused.

The lease is a file, `lease.json`. No file system here is asked for locks or for an atomic compare-and-swap, which
object stores lack: whoever takes the lease writes it and reads it back, and every later write into the folder reads it
first. So of two that take it at once the last writer wins, and the other is stopped at its next write.

A process may stand still in the middle of a write, and wake up when another has taken over. On a local disk it reads
the lease again before a file takes its place, and whoever takes over deletes files that have not taken theirs. An
upload that was under way may still end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tltrain.disk import delete_unfinished
from tltrain.errors import Problem, ResourceError, RunError, StorageError
from tltrain.storage import Folder

LEASE_FILE = "lease.json"
RENEW_S = 5.0
"""Seconds between two heartbeats."""
EXPIRY_S = 60.0
"""Seconds without a heartbeat after which a holder counts as dead."""
SETTLE_S = 0.1
"""Seconds between writing a lease and reading it back: time for another that takes it at the same moment."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """What lease.json says: who writes into the folder, and when that was last heard of."""

    owner: str
    """Drawn at random, so that no two holders are ever taken for one another."""
    attempt: int
    """How many have held the folder, this one included."""
    host: str
    pid: int
    process: str
    """What tells the process from a later one of the same number, and from one in another container."""
    heartbeat_at: float
    workers: Mapping[str, int] = field(default_factory=dict)
    """Name of a worker group -> which attempt of it may write."""
    released: bool = False

    @property
    def is_near(self) -> bool:
        """Whether this machine, and this container, can tell if the holder's process lives."""
        return (self.host, self.process.partition(" ")[0]) == (socket.gethostname(), _space())

    @property
    def age_s(self) -> float:
        """Seconds since the last heartbeat, by this machine's clock."""
        return time.time() - self.heartbeat_at

    @property
    def is_live(self) -> bool:
        """Whether the holder may still write, as far as can be told without waiting."""
        if self.released or self.age_s >= EXPIRY_S:
            return False
        return not self.is_near or _process(self.pid) == self.process

    def __str__(self) -> str:
        return f"attempt {self.attempt} (process {self.pid} on {self.host})"


def read_lease(folder: Folder) -> Holder | None:
    """The lease of a run folder, or None where nobody has ever held it. Raises StorageError."""
    if not folder.exists(LEASE_FILE):
        return None
    try:
        return Holder(**json.loads(folder.read_bytes(LEASE_FILE)))
    except (TypeError, ValueError) as error:
        action = "Delete the file if nothing writes into the run"
        raise StorageError(Problem(f"the file is damaged: {error}", action, f"{folder}/{LEASE_FILE}")) from error


@contextlib.contextmanager
def hold(folder: Folder) -> Iterator[Folder]:
    """Hold the lease of a run folder for a `with` block; yields the folder, whose writes are checked against it.

    A live holder is never put out. One on another machine that may be dead is waited for until that is known, at most
    a minute. Raises ResourceError that names the holder.
    """
    before = read_lease(folder)
    if before is not None:
        _wait_for_end(folder, before)
    lease = _Lease(folder, 1 if before is None else before.attempt + 1)
    lease.take()
    try:
        _clear_litter(folder)
        yield folder.guarded(lease)
    finally:
        lease.release()


def begin_workers(folder: Folder, group: str) -> dict[str, Any]:
    """Begin an attempt of a worker group: workers of its earlier attempts can no longer write.

    Returns what `join` takes on the workers' side, empty where the folder is held by nobody.
    """
    return folder.guard.begin_workers(group) if isinstance(folder.guard, _Lease) else {}


def join(folder: Folder, ticket: Mapping[str, Any]) -> Folder:
    """The folder for a worker that was started with a `ticket` of `begin_workers`."""
    return folder.guarded(_Fence(folder, **ticket)) if ticket else folder


class _Lease:
    """The lease as its holder has it: renewed by a thread, checked before every write."""

    def __init__(self, folder: Folder, attempt: int) -> None:
        self._folder = folder.guarded(None)
        pid = os.getpid()
        self._mine = Holder(secrets.token_hex(8), attempt, socket.gethostname(), pid, _process(pid), time.time())
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)

    def take(self) -> None:
        """Write the lease, see that nobody else did, and renew it from now on."""
        self._write(self._folder)
        time.sleep(SETTLE_S)
        other = read_lease(self._folder)
        if other is not None and other.owner != self._mine.owner:
            raise _held(self._folder, other)
        self._thread.start()

    def release(self) -> None:
        """Leave the folder to others, unless one of them has it already."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(RunError), _logged(self._folder), self._lock:
            self()
            _clear_litter(self._folder)
            self._renew(released=True)

    def begin_workers(self, group: str) -> dict[str, Any]:
        with self._lock:
            attempt = self._mine.workers.get(group, 0) + 1
            self._renew(workers={**self._mine.workers, group: attempt})
        return {"owner": self._mine.owner, "group": group, "attempt": attempt}

    def __call__(self) -> None:
        _check(self._folder, read_lease(self._folder), self._mine.owner)

    def _keep_renewing(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                with _logged(self._folder), self._lock:
                    self._renew()
            except RunError:  # taken over: the next write says so
                return

    def _renew(self, **changes: Any) -> None:
        self._mine = dataclasses.replace(self._mine, **changes)
        self._write(self._folder.guarded(self))

    def _write(self, folder: Folder) -> None:
        self._mine = dataclasses.replace(self._mine, heartbeat_at=time.time())
        text = json.dumps(dataclasses.asdict(self._mine), indent=2)
        folder.write_bytes(LEASE_FILE, f"{text}\n".encode())


@dataclass(frozen=True)
class _Fence:
    """What a worker checks before every write."""

    folder: Folder
    owner: str
    group: str
    attempt: int

    def __call__(self) -> None:
        lease = read_lease(self.folder)
        _check(self.folder, lease, self.owner)
        assert lease is not None
        now = lease.workers.get(self.group, 0)
        if now != self.attempt:
            what = f"another attempt has taken over: workers were started again ({now}) after these ({self.attempt})"
            raise RunError(Problem(what, "Nothing: these are left behind", str(self.folder)))


def _check(folder: Folder, lease: Holder | None, owner: str) -> None:
    if lease is not None and lease.owner == owner and not lease.released:
        return
    by = "the run was deleted or ended" if lease is None or lease.owner == owner else str(lease)
    what = f"another attempt has taken over the run folder: {by}"
    raise RunError(Problem(what, "Nothing is written here by this attempt any more", str(folder)))


def _wait_for_end(folder: Folder, holder: Holder) -> None:
    """Return when `holder` is known to be dead; raises ResourceError where it lives.

    Clocks of two machines may differ, so one on another machine is watched: a heartbeat in that time means life.
    """
    if holder.released or (holder.is_near and not holder.is_live):
        return
    if holder.is_near:
        raise _held(folder, holder)
    _log.info("%s was held by %s; looking whether it is still alive", folder, holder)
    began = time.monotonic()
    while (quiet_s := time.monotonic() - began) < EXPIRY_S and (quiet_s < 2 * RENEW_S or holder.age_s < EXPIRY_S):
        time.sleep(min(1.0, RENEW_S / 5))
        now = read_lease(folder)
        if now is None or now.released:
            return
        if now != holder:
            raise _held(folder, now)


def _clear_litter(folder: Folder) -> None:
    """Delete the halves of files that killed processes were writing, while nobody else writes; they do no harm."""
    path = folder.local_path
    if path is not None:
        with contextlib.suppress(OSError):
            delete_unfinished(path)


def _held(folder: Folder, holder: Holder) -> ResourceError:
    what = f"the run is being written by {holder}, last heard of {max(0.0, holder.age_s):.0f} s ago"
    return ResourceError(Problem(what, "Let it end, stop it, or choose another name", str(folder)))


@contextlib.contextmanager
def _logged(folder: Folder) -> Iterator[None]:
    """Log a storage that fails for now: the next heartbeat may succeed."""
    try:
        yield
    except StorageError as error:
        _log.warning("%s: the lease could not be renewed: %s", folder, error.problems[0])


def _space() -> str:
    """Name of the space in which this machine's or container's process numbers count."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        return "-"


def _process(pid: int) -> str:
    """What tells process `pid` from a later one of the same number; empty where it is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:  # somebody else's, and alive
        pass
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return f"{_space()} -"
    is_dead = fields[0] in (b"Z", b"X")  # killed, and not yet collected by its parent
    return "" if is_dead else f"{_space()} {int(fields[19])}"
