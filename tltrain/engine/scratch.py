"""Folders for the length of a `with` block; those of a process that was killed go when the next are made."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HELD = ".held"


@contextmanager
def scratch_folder(prefix: str) -> Iterator[str]:
    """Yield a new folder for temporary files, whose name begins with `prefix`; it is deleted with what is in it.

    Folders of the same prefix that this user's processes have left by dying are deleted as well.
    """
    _delete_abandoned(prefix)
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        held = os.open(Path(folder, _HELD), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(held, fcntl.LOCK_EX)  # ends with the process, however that ends
        try:
            yield folder
        finally:
            os.close(held)


def _delete_abandoned(prefix: str) -> None:
    for entry in os.scandir(tempfile.gettempdir()):
        is_own = entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False)
        if is_own and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
            _delete_if_abandoned(Path(entry.path))


def _delete_if_abandoned(folder: Path) -> None:
    try:
        held = os.open(folder / _HELD, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # just made, or just deleted
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
