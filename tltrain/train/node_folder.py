"""A folder that the processes of one run share on a node, and pieces of work that they claim from each other there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tltrain.errors import StorageError

_USERS = ".users"


class NodeFolder:
    """A folder on this node's disk for the processes of one run; the last of them to close it removes it.

    A process that dies holds it no longer. What all of them leave behind by dying is found again by the next attempt.
    """

    def __init__(self, run_uri: str) -> None:
        """Join the folder of a run, or make it. Raises StorageError where it belongs to another user."""
        self.path = _path(run_uri)
        while not self._join():
            pass

    def _join(self) -> bool:
        """Hold the folder in common with others; False where the last of them has just removed it."""
        self.path.mkdir(mode=0o700, exist_ok=True)
        owner = self.path.lstat()
        if owner.st_uid != os.geteuid() or self.path.is_symlink():
            raise StorageError(f"{self.path} belongs to somebody else", "Remove it, or set TMPDIR to another folder")
        try:
            self._users = os.open(self.path / _USERS, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return False
        fcntl.flock(self._users, fcntl.LOCK_SH)
        if (self.path / _USERS).exists():
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
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # others still use it
        else:
            shutil.rmtree(self.path, ignore_errors=True)
        finally:
            os.close(self._users)


def delete_left_behind(run_uri: str) -> None:
    """Delete the folder of a run that its processes have left by dying, unless others use it. Raises StorageError."""
    if _path(run_uri).exists():
        NodeFolder(run_uri).close()


def _path(run_uri: str) -> Path:
    name = hashlib.sha256(run_uri.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"tltrain-taps-{name}"


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
