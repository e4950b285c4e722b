"""Folders on any pyarrow file system: a local disk, s3://, gs://, abfs://, ... Writes are whole or absent."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import quote

from tltrain.disk import TEMPORARY, flush_folder, replacing, stamps
from tltrain.errors import Problem, StorageError

if TYPE_CHECKING:
    from pyarrow import fs

_SCHEME_WITHOUT_SLASHES = re.compile(r"(s3|gs|gcs|abfs|abfss|hdfs):(?!//)")

# (error numbers, parts of an object store's message, what to do)
_ADVICE: tuple[tuple[tuple[int, ...], tuple[str, ...], str], ...] = (
    (
        (errno.ENOSPC, errno.EDQUOT),
        ("No space left", "quota"),
        "Free some space there or choose another `storage`, then start again",
    ),
    (
        (errno.EACCES, errno.EPERM, errno.EROFS),
        ("ACCESS_DENIED", "status 401", "status 403", "SIGNATURE_DOES_NOT_MATCH", "INVALID_ACCESS_KEY_ID"),
        "Give this user permission to read and write there (for a bucket: check the credentials), "
        "or choose another `storage`",
    ),
    ((), ("NO_SUCH_BUCKET",), "Create the bucket or correct its name"),
    (
        (errno.ETIMEDOUT, errno.ECONNREFUSED, errno.EHOSTUNREACH),
        ("NETWORK_CONNECTION", "curlCode", "REQUEST_TIMEOUT"),
        "Check that the endpoint is right and can be reached from this machine",
    ),
    (
        (errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
        (),
        "A file stands where a folder is needed, or the other way round; move it away or choose another path",
    ),
    ((errno.ENOENT,), (), "Check the path"),
    ((errno.ENAMETOOLONG,), (), "Choose a shorter name"),
)


@dataclass(frozen=True, repr=False)
class Folder:
    """A folder, which need not exist yet: the first write makes it.

    Names are those of direct children; a separator, `..` or a NUL in one is refused. All failures are
    StorageErrors that name the full path. On a local disk a write goes to a temporary file, which is flushed
    and renamed; elsewhere it is one upload, which object stores show whole or not at all.
    """

    uri: str
    """Absolute local path, or the address with its query; `Folder.open(folder.uri)` is the same folder."""
    _path: str
    _filesystem: fs.FileSystem | None = field(compare=False)  # None: the local disk, by way of `os`
    guard: Callable[[], None] | None = field(default=None, compare=False)
    """Called before every change in this folder or below it, and on a local disk again before a new file takes its
    place; it raises where that may no longer be made."""

    @classmethod
    def open(cls, uri: str) -> Folder:
        """The folder at a local path or at a pyarrow address such as `s3://bucket/runs?region=eu-west-1`."""
        if not uri or "\0" in uri or _SCHEME_WITHOUT_SLASHES.match(uri):
            raise StorageError(f"{uri!r} is no path and no address", "Write it like runs or s3://bucket/runs")
        if "://" not in uri:
            return cls._local(uri)
        with _translated("open", _display(uri), secret=uri):
            filesystem, path = _far().open_address(uri)
        return cls._local(path) if filesystem is None else cls(uri, path, filesystem)

    @classmethod
    def _local(cls, path: str) -> Folder:
        path = os.path.abspath(os.path.expanduser(path))
        return cls(path, path, None)

    @property
    def local_path(self) -> Path | None:
        """The folder on the local disk, or None where it is elsewhere."""
        return Path(self._path) if self._filesystem is None else None

    @property
    def arrow(self) -> tuple[fs.FileSystem, str]:
        """The pyarrow file system and the path on it, for libraries that take these."""
        return self._filesystem or _far().local(), self._path

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._path.rstrip("/").rpartition("/")[2]

    def child(self, *names: str) -> Folder:
        """The folder below this one; it need not exist."""
        folder = self
        for name in names:
            folder = type(self)(folder._uri_of(name), folder._path_of(name), self._filesystem, self.guard)
        return folder

    def guarded(self, guard: Callable[[], None] | None) -> Folder:
        """The same folder with another guard; those below it have it too."""
        return replace(self, guard=guard)

    def read_bytes(self, name: str) -> bytes:
        """The contents of a file."""
        path = self._path_of(name)
        with self._failing("read", name):
            if self._filesystem is None:
                return Path(path).read_bytes()
            return _far().read(self._filesystem, path)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write or replace a file: afterwards it is there whole and, on a local disk, flushed."""
        path = self._path_of(name)
        with self._changing("write", name):
            if self._filesystem is None:
                with replacing(path, check=self._check) as file:
                    file.write(data)
            else:
                _far().write(self._filesystem, path, data)

    def write_file(self, name: str, local_source: str | Path) -> None:
        """Write or replace a file with a copy of a local file, without reading it into memory."""
        path = self._path_of(name)
        with self._changing("write", name):
            if self._filesystem is None:
                with open(local_source, "rb") as source, replacing(path, check=self._check) as file:
                    shutil.copyfileobj(source, file, 1 << 20)
            else:
                _far().copy_here(self._filesystem, path, local_source)

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of this name. Not being allowed to look is an error, not a no."""
        path = self._path_of(name)
        with self._failing("look for", name):
            if self._filesystem is not None:
                return _far().exists(self._filesystem, path)
            try:
                os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def names(self) -> list[str]:
        """Sorted names of the files and folders in here; empty where the folder does not exist."""
        with self._failing("list"):
            if self._filesystem is not None:
                return _far().names(self._filesystem, self._path)
            try:
                names = os.listdir(self._path)
            except FileNotFoundError:
                return []
            return sorted(name for name in names if not TEMPORARY.fullmatch(name))

    def stamps(self, file: str, names: Sequence[str] | None = None) -> dict[str, tuple[int, int] | None]:
        """For each of `names`: when the file in that folder was last written, in ns since 1970, and its size, or None.

        names: all that are in here, where not given.
        """
        with self._failing("list"):
            if self._filesystem is None:
                return stamps(self._path, file, names)
            names = self.names() if names is None else names
            paths = [f"{self._path.rstrip('/')}/{name}/{file}" for name in names]
            return dict(zip(names, _far().stamps(self._filesystem, paths), strict=True))

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it. A missing one is fine."""
        path = self._path_of(name)
        with self._changing("delete", name):
            if self._filesystem is not None:
                _far().delete(self._filesystem, path)
            elif os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                Path(path).unlink(missing_ok=True)

    def delete_all(self, *, last: Sequence[str] = ()) -> None:
        """Delete this folder with all that is in it, the files in `last` at the end and in that order."""
        for name in [*(name for name in self.names() if name not in last), *last]:
            self.delete(name)
        with self._changing("delete"):
            if self._filesystem is not None:
                _far().delete(self._filesystem, self._path)
            elif os.path.isdir(self._path):
                shutil.rmtree(self._path)

    def rename(self, old: str, new: str) -> None:
        """Rename a file or folder of this folder.

        Object stores copy and then delete a folder: cut short, the old one is still there whole.
        """
        source, target = self._path_of(old), self._path_of(new)
        with self._changing(f"rename to {new!r}", old):
            if self._filesystem is None:
                os.rename(source, target)
                flush_folder(self._path)
            else:
                _far().rename(self._filesystem, source, target)

    def __str__(self) -> str:
        return _display(self.uri)

    def __repr__(self) -> str:
        return f"Folder({str(self)!r})"

    def _check(self) -> None:
        if self.guard is not None:
            self.guard()

    @contextmanager
    def _changing(self, doing: str, name: str | None = None) -> Iterator[None]:
        self._check()
        try:
            with self._failing(doing, name):
                yield
        except StorageError:
            with suppress(StorageError):
                self._check()  # who has taken over meanwhile may have deleted what is missing now
            raise

    def _path_of(self, name: str) -> str:
        if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
            raise StorageError(
                Problem(f"{name!r} is no name of a file or folder", "Leave out separators and `..`", str(self))
            )
        return f"{self._path.rstrip('/')}/{name}"

    def _uri_of(self, name: str) -> str:
        if self._filesystem is None:
            return self._path_of(name)
        base, mark, query = self.uri.partition("?")
        return f"{base.rstrip('/')}/{quote(name)}{mark}{query}"

    def _failing(self, doing: str, name: str | None = None):
        where = str(self) if name is None else f"{str(self).rstrip('/')}/{name}"
        return _translated(doing, where, secret=self.uri)


def _far() -> ModuleType:
    """What works on file systems that are not the local disk; importing it costs a quarter of a second."""
    from tltrain import arrow_files

    return arrow_files


@contextmanager
def _translated(doing: str, where: str, secret: str) -> Iterator[None]:
    """Turn errors of the system and of pyarrow into StorageErrors; `secret` is never shown."""
    try:
        yield
    except _failures() as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        what = f"cannot {doing} it: {reason.replace(secret, where)}"
        raise StorageError(Problem(what, _advice(error), where)) from error


def _failures() -> tuple[type[Exception], ...]:
    """What file systems raise; pyarrow's own errors where anything has imported it."""
    arrow = sys.modules.get("pyarrow")
    return (OSError,) if arrow is None else (OSError, arrow.ArrowException)


def _advice(error: Exception) -> str:
    number, text = getattr(error, "errno", None), str(error)
    for numbers, parts, action in _ADVICE:
        if number in numbers or any(part in text for part in parts):
            return action
    return "Check the address, the network and the credentials"


def _display(uri: str) -> str:
    """The address without its query and without a password in it."""
    return re.sub(r"//([^/@:]*):[^/@]*@", r"//\1:***@", uri.partition("?")[0]) if "://" in uri else uri
