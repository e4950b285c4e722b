"""A folder that the processes of one run share on a node, and pieces of work that they claim from each other there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tltrain.errors import StorageError
from tltrain.scratch import own_folders

_PREFIX = "tltrain-taps-"
_USERS = ".users"
_POLL_S = 0.05


class NodeFolder:
    """A folder on this node's disk for the processes of one run; the last of them to close it removes it.

    A process that dies holds it no longer. What all of them leave behind by dying is found again by the next attempt,
    deleted at the end of the run, or by the first process of another run that comes to the node before it.
    """

    def __init__(self, run_uri: str) -> None:
        """Join the folder of a run, or make it. Raises StorageError where it belongs to another user."""
        self.path = _path(run_uri)
        while not self._join():
            pass
        _delete_abandoned(self.path)

    def _join(self) -> bool:
        """Hold the folder in common with others; False where the last of them has just removed it."""
        with suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        try:
            owner = self.path.lstat()
            if owner.st_uid != os.geteuid() or not stat.S_ISDIR(owner.st_mode):
                what = f"{self.path} belongs to somebody else"
                raise StorageError(what, "Remove it, or set TMPDIR to another folder")
            self._users = os.open(self.path / _USERS, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return False
        fcntl.flock(self._users, fcntl.LOCK_SH)
        if _is_of(self.path, self._users):
            return True
        os.close(self._users)
        return False

    def claims(self, name: str, count: int) -> Iterator[int]:
        """Yield those of `count` pieces of the work `name` (no path) that no other process has claimed."""
        path = self.path / f"claims-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        while (claimed := _claim(path)) < count:
            yield claimed

    def close(self) -> None:
        """End the use of the folder."""
        _delete_unless_held(self.path, self._users)


def delete_left_behind(run_uri: str, wait_s: float) -> bool:
    """Delete the folder of a run that its processes have left by dying, unless others use it. Raises StorageError.

    wait_s: how long others may take to end. Return whether it is gone.
    """
    until = time.monotonic() + wait_s
    while _path(run_uri).exists():
        NodeFolder(run_uri).close()
        if time.monotonic() >= until:
            return not _path(run_uri).exists()
        time.sleep(_POLL_S)
    return True


def _path(run_uri: str) -> Path:
    name = hashlib.sha256(run_uri.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"{_PREFIX}{name}"


def _delete_abandoned(mine: Path) -> None:
    """Delete the folders of this user's other runs that no process holds."""
    for folder in own_folders(mine.parent, _PREFIX):
        with suppress(FileNotFoundError):  # somebody has just made it, or just deleted it
            if folder != mine:
                _delete_unless_held(folder, os.open(folder / _USERS, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))


def _delete_unless_held(folder: Path, users: int) -> None:
    """Delete a folder unless others hold it; `users` is its open file, which is closed."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_of(folder, users):  # under another name, so that who joins meanwhile makes a new one
            shutil.rmtree(folder.rename(f"{folder}-{secrets.token_hex(4)}"), ignore_errors=True)
    except BlockingIOError:
        pass  # others hold it
    finally:
        os.close(users)


def _is_of(folder: Path, users: int) -> bool:
    """Return whether the locked file is that of the folder, not of one that was deleted meanwhile."""
    try:
        return os.path.samestat(os.fstat(users), os.stat(folder / _USERS))
    except FileNotFoundError:
        return False


def _claim(path: Path) -> int:
    """Return the number in a file, 0 at first, and add 1 to it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        number = int(os.pread(descriptor, 20, 0) or b"0")
        os.pwrite(descriptor, str(number + 1).encode(), 0)
        return number
    finally:
        os.close(descriptor)
