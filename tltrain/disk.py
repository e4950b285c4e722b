"""Files of the local disk that are there whole or not at all: written beside their place, flushed, then renamed."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""Names of files that are being written."""
_NOTE_CHANGES = frozenset({"ext2", "ext3", "ext4", "f2fs", "nfs", "nfs4", "overlay", "tmpfs", "xfs", "zfs"})
"""File systems that keep the time when a folder's names last changed."""
_THREADS, _FIRST, _AT_ONCE_S = 32, 200, 50e-6


@contextmanager
def replacing(
    path: str | Path, *, private: bool = False, check: Callable[[], None] = lambda: None
) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` once it is whole and flushed; its folder is made where it is missing.

    private: only this user may read it, from its first byte on, and enter folders that are made. check: called when all
    is written; where it raises, `path` stays as it is. Raises OSError.
    """
    folder, name = os.path.split(os.path.abspath(path))
    is_new = make_folder(folder, private=private)
    temporary = Path(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, 0o600 if private else 0o644)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        check()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):  # somebody else writes there too
                os.rmdir(folder)
        raise
    flush_folder(folder)


def delete_unfinished(path: str | Path) -> None:
    """Delete the temporary files in a folder, and in those below it, of writes that were cut short. Raises OSError."""
    for folder, _, names in os.walk(path):
        for name in filter(TEMPORARY.fullmatch, names):
            Path(folder, name).unlink(missing_ok=True)


def make_folder(path: str | Path, *, private: bool = False) -> bool:
    """Make a folder and those above it, each flushed into the one above; those that are there stay as they are.

    private: only this user may enter what is made. Returns whether the folder was missing. Raises OSError.
    """
    if os.path.isdir(path):
        return False
    parent = os.path.dirname(os.path.abspath(path))
    make_folder(parent, private=private)
    try:
        os.mkdir(path, 0o700 if private else 0o755)
    except FileExistsError:
        if not os.path.isdir(path):  # else somebody else was faster
            raise
        return False
    flush_folder(parent)
    return True


def flush_folder(path: str | Path) -> None:
    """Flush a folder's list of names to the disk, where the file system can. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot flush folders
            raise
    finally:
        os.close(descriptor)


def stamps(folder: str | Path, file: str, names: Sequence[str] | None = None) -> dict[str, tuple[int, int] | None]:
    """For each of `names` in `folder`: when the file in it was last written, in ns since 1970, and its size, or None.

    names: all that are in `folder` where not given; nothing where there is no such folder. Threads ask for them where
    the disk is a slow one of the network; where the first ones are told at once, these would only get into each other's
    way. Raises OSError.
    """
    try:
        names = os.listdir(folder) if names is None else names
        above = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}

    def look(some: Sequence[str]) -> dict[str, tuple[int, int] | None]:
        return {name: _stamp(f"{name}/{file}", above) for name in some}

    try:
        began = time.perf_counter()
        found, rest = look(names[:_FIRST]), names[_FIRST:]
        if time.perf_counter() - began < _FIRST * _AT_ONCE_S:
            return found | look(rest)
        with ThreadPoolExecutor(_THREADS) as executor:
            for part in executor.map(look, (rest[start : start + 500] for start in range(0, len(rest), 500))):
                found.update(part)
        return found
    finally:
        os.close(above)


def names_changed_at(folder: str | Path) -> tuple[int, int] | None:
    """When a name was last added to a folder or taken away, in ns since 1970, and which folder it is (its inode).

    None where that is not known: what a FUSE program or an unknown file system says of its folders need not be so, and
    there may be no such folder.
    """
    try:
        found = os.stat(folder)
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
    except OSError:
        return None
    device = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    types = {line.partition(" - ")[2].split(" ")[0] for line in mounts.splitlines() if line.split(" ")[2] == device}
    return (found.st_mtime_ns, found.st_ino) if types and types <= _NOTE_CHANGES else None


def _stamp(path: str, above: int) -> tuple[int, int] | None:
    try:
        found = os.stat(path, dir_fd=above)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (found.st_mtime_ns, found.st_size) if stat.S_ISREG(found.st_mode) else None
