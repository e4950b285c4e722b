"""Files and folders on this machine or on any pyarrow file system, named by a path or a URI."""

from __future__ import annotations

import functools
import os
import re
from typing import Literal

import pyarrow as pa
from pyarrow import fs

from tltrain.errors import DataError, Problem


@functools.lru_cache(maxsize=32)
def _connect(uri: str) -> tuple[fs.FileSystem, str]:
    """Open the file system of `uri`, once per process, and return it with the path inside it."""
    try:
        return fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError) as error:
        action = "Check the address; s3://, gs://, hdfs:// and paths of this machine are known."
        raise DataError(f"cannot open {_without_secrets(uri)}: {error}", action) from error


def _without_secrets(uri: str) -> str:
    """Drop user, password and query of a URI, which may hold keys."""
    if "://" not in uri:
        return uri
    return re.sub(r"^([a-zA-Z][\w+.-]*://)[^/]*@", r"\1", uri).split("?", 1)[0]


class Location:
    """A file or folder. It holds its address alone: it pickles small and opens anew in each process."""

    def __init__(self, uri: str) -> None:
        self.uri = uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))

    def __str__(self) -> str:
        return _without_secrets(self.uri)

    @property
    def filesystem(self) -> fs.FileSystem:
        """The pyarrow file system; raises DataError where it cannot be opened."""
        return _connect(self.uri)[0]

    @property
    def path(self) -> str:
        """The path inside the file system, without a slash at its end."""
        return _connect(self.uri)[1].rstrip("/") or "/"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def kind(self) -> Literal["file", "folder"] | None:
        """Return what stands here, or None for nothing. Raises DataError if that cannot be told."""
        try:
            file_type = self.filesystem.get_file_info(self.path).type
        except OSError as error:
            raise DataError(f"cannot look at {self}: {error}", "Check the address and your access.") from error
        if file_type == fs.FileType.Directory:
            return "folder"
        return None if file_type == fs.FileType.NotFound else "file"

    def parent(self) -> Location:
        """Return the folder that this file stands in."""
        if "://" not in self.uri:
            return Location(os.path.dirname(self.uri))
        address, mark, query = self.uri.partition("?")
        return Location(address.rpartition("/")[0] + mark + query)

    def list_all(self) -> list[fs.FileInfo]:
        """Return all files and folders below this folder. Raises DataError if they cannot be listed."""
        try:
            return self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=True))
        except OSError as error:
            raise DataError(f"cannot list {self}: {error}", "Check the address and your access.") from error

    def child(self, relative: str) -> str:
        """Return the path of `relative` inside this folder's file system."""
        return os.path.join(self.path, relative) if relative else self.path

    def read(self, relative: str = "") -> bytes:
        """Return the bytes of this file, or of a file `relative` to this folder.

        Raises DataError if the file is missing or may not be read; other OSErrors (a network, a disk) pass.
        """
        path = self.child(relative)
        try:
            if self.is_local:
                with open(path, "rb") as file:
                    return file.read()
            with self.filesystem.open_input_stream(path) as stream:
                return stream.read()
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise DataError(
                Problem(f"cannot be read: {error}", "Restore the file or its permissions", where=path)
            ) from error
