"""Folders for the length of a `with` block or of a process; those of one that was killed go when the next are made."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize
from pathlib import Path

RAY, TUNE, TENSORBOARD, LOADER = "tltrain-ray-", "tltrain-tune-", "tltrain-tensorboard-", "tltrain-loader-"
"""Prefixes of what a run makes."""
_HELD = ".held"
_UNHELD_S = 10.0
"""Age from which an empty folder without a lock is nobody's, and its lock is not still to come."""
_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
"""Bytes that the path of a socket may have."""
_RANDOM = 8
"""Letters that `tempfile` adds to a name."""
_SHORT = "/tmp"
_LAST = -1000
"""Priority of what is done when a process ends, after all that `multiprocessing` does then."""

logger = logging.getLogger(__name__)


@contextmanager
def scratch_folder(prefix: str, *, sockets: str = "") -> Iterator[str]:
    """Yield a new folder for temporary files, whose name begins with `prefix`; it is deleted with what is in it.

    Folders of the same prefix that this user's processes have left by dying are deleted as well. sockets: the longest
    path below the folder that a socket will have; where TMPDIR is too long for it, the folder is in /tmp, and the log
    says so.
    """
    parent = _parent(prefix, sockets)
    folder, delete = _new(prefix, parent)
    try:
        yield folder
    finally:
        delete()
        delete_abandoned(prefix, parent)


def folder_of_process(prefix: str, *, sockets: str = "") -> str:
    """Return a new folder as `scratch_folder` makes it, which is deleted when this process ends.

    What `multiprocessing` makes in it may stay there until then: it is the last to go.
    """
    return _new(prefix, _parent(prefix, sockets))[0]


def delete_abandoned(prefix: str, parent: str = "") -> None:
    """Delete what this user's processes have left of `scratch_folder(prefix)` by dying, wherever these may be made.

    parent: the one folder to look into instead.
    """
    parents = {parent} if parent else {tempfile.gettempdir(), _SHORT}
    for folder in (folder for each in parents if os.access(each, os.W_OK) for folder in own_folders(each, prefix)):
        with suppress(FileNotFoundError):  # somebody else has just deleted it
            _delete_if_abandoned(folder)


def own_folders(parent: str | Path, prefix: str) -> Iterator[Path]:
    """Yield this user's folders in `parent` whose names begin with `prefix`; others may delete them meanwhile."""
    for entry in os.scandir(parent):
        if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
            with suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    yield Path(entry.path)


def _new(prefix: str, parent: str) -> tuple[str, Finalize]:
    """Make a folder; return it with what deletes it, at the latest when this process ends. Those abandoned go first."""
    delete_abandoned(prefix, parent)
    while True:
        folder = tempfile.mkdtemp(prefix=prefix, dir=parent)
        held = _hold(folder)
        if held is not None:
            return folder, Finalize(None, _delete, (folder, held), exitpriority=_LAST)


def _delete(folder: str, held: int) -> None:
    os.close(held)
    shutil.rmtree(folder, ignore_errors=True)


def _hold(folder: str) -> int | None:
    """Lock a new folder: it is in use until the descriptor is closed, or the process has ended, however it ends.

    Returns None where another process has come before the lock, found a folder that nobody held, and deleted it.
    """
    lock = Path(folder, _HELD)
    try:
        held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    fcntl.flock(held, fcntl.LOCK_EX)  # who deletes has the lock until all is deleted
    if lock.exists():
        return held
    os.close(held)
    return None


def _parent(prefix: str, sockets: str) -> str:
    """Return the folder for temporary files, or a shorter one where the path of a socket would be too long in it."""
    usual = tempfile.gettempdir()
    needed = len(f"/{prefix}") + _RANDOM + len(f"/{sockets}")
    if not sockets or len(os.fsencode(usual)) + needed <= _SOCKET_PATH or not os.access(_SHORT, os.W_OK):
        return usual
    _tell_of_short(usual)
    return _SHORT


@functools.cache
def _tell_of_short(usual: str) -> None:
    logger.info("%s is too long for the paths of sockets; they are in %s", usual, _SHORT)


def _delete_if_abandoned(folder: Path) -> None:
    try:
        held = os.open(folder / _HELD, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # just made, or just deleted
        _delete_if_empty(folder)
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # in use
    else:
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)  # its processes may be about to end, and write still
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(held)


def _delete_if_empty(folder: Path) -> None:
    """Delete a folder without a lock that has nothing but folders and links in it.

    Workers of Ray's that were just starting when their driver was killed make them anew, some seconds after those of
    before were deleted. One that is used has its lock before anything else is in it.
    """
    if not os.listdir(folder) and time.time() - folder.stat().st_mtime < _UNHELD_S:
        return
    if all(Path(at, name).is_symlink() for at, _, names in os.walk(folder) for name in names):
        shutil.rmtree(folder, ignore_errors=True)
