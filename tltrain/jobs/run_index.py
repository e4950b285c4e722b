"""What is known on this machine of the runs under a storage: an index that is brought up to date with each look."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from tltrain.disk import make_folder
from tltrain.errors import StorageError
from tltrain.run_folder import STATE_FILE, RunFolder
from tltrain.storage import Folder

VERSION = 1
"""Of the table; an index of another version is made anew."""
SETTLED_S = 2.0
"""A file that was written this short before it was read may change again with the same time and size."""
READERS = 32
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """A run as its run.json has it. Times are seconds since 1970, top-1 and accuracy shares."""

    name: str
    kind: str
    """`run` or `sweep`."""
    state: str
    """As recorded, or `damaged` where run.json cannot be read."""
    started_at: float | None
    finished_at: float | None
    written_at: float
    """When run.json was last written."""
    val_top1: float | None
    """Of the best epoch."""
    test_accuracy: float | None
    problem: str
    """Why it failed or cannot be read, or empty."""


_COLUMNS = tuple(column.name for column in fields(Summary))


def summaries(storage: Folder, *, rebuild: bool = False, newest: int | None = None) -> list[Summary]:
    """The runs under `storage`, the newest first, at most `newest` of them.

    Only what has changed since the last time is read. `rebuild` forgets what was known.

    Raises StorageError where the storage cannot be read.
    """
    path = index_path(storage)
    try:
        if rebuild:
            path.unlink(missing_ok=True)
        with contextlib.closing(_connect(path)) as connection:
            return _refreshed(connection, storage, newest)
    except (OSError, sqlite3.Error) as error:
        _log.warning("the index %s cannot be used (%s); every run was read", path, error)
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            path.unlink(missing_ok=True)  # damaged: the next look makes it anew
        with contextlib.closing(_with_table(sqlite3.connect(":memory:"))) as connection:
            return _refreshed(connection, storage, newest)


def _refreshed(connection: sqlite3.Connection, storage: Folder, newest: int | None) -> list[Summary]:
    stamps = connection.execute("SELECT name, mtime_ns, size FROM runs")
    known = {name: (mtime_ns, size) for name, mtime_ns, size in stamps}
    now_ns = time.time_ns()
    present = storage.stamps(STATE_FILE)
    changed = {name: stamp for name, stamp in present.items() if stamp != known.get(name)}
    gone = known.keys() - present.keys()
    with connection:
        connection.executemany("DELETE FROM runs WHERE name = ?", [(name,) for name in gone])
        placeholders = ", ".join("?" * (len(_COLUMNS) + 2))
        connection.executemany(f"INSERT OR REPLACE INTO runs VALUES ({placeholders})", _rows(storage, changed, now_ns))
    order = "COALESCE(NULLIF(started_at, 0), written_at) DESC, name LIMIT ?"
    rows = connection.execute(
        f"SELECT {', '.join(_COLUMNS)} FROM runs ORDER BY {order}", (-1 if newest is None else newest,)
    )
    return [Summary(*row) for row in rows]


def _rows(storage: Folder, stamps: Mapping[str, tuple[int, int]], now_ns: int) -> Iterable[tuple[Any, ...]]:
    def read(name: str) -> tuple[Any, ...]:
        mtime_ns, size = stamps[name]
        is_settled = mtime_ns < now_ns - SETTLED_S * 1e9
        return (*astuple(_read(RunFolder(storage.child(name)), mtime_ns / 1e9)), mtime_ns if is_settled else -1, size)

    if storage.local_path is not None:  # there is nothing to wait for
        return map(read, stamps)
    with ThreadPoolExecutor(READERS) as executor:
        return list(executor.map(read, stamps))


def _read(run: RunFolder, written_at: float) -> Summary:
    try:
        state = run.state()
    except StorageError as error:
        return Summary(run.name, "run", "damaged", None, None, written_at, None, None, error.problems[0].what)
    evaluation = _mapping(state.get("evaluation"))
    errors = state.get("error")
    return Summary(
        name=run.name,
        kind="sweep" if state.get("kind") == "sweep" else "run",
        state=str(state.get("state")),
        started_at=_number(state.get("started_at")),
        finished_at=_number(state.get("finished_at")),
        written_at=written_at,
        val_top1=_number(_mapping(state.get("best")).get("top1")),
        test_accuracy=_number(evaluation.get("accuracy")) if evaluation.get("split") == "test" else None,
        problem=str(errors[0]) if isinstance(errors, list) and errors else "",
    )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def index_path(storage: Folder) -> Path:
    """Where the index of a storage stands; its address, which may hold keys, is not in the name."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "tltrain" / "runs" / f"{hashlib.sha256(storage.uri.encode()).hexdigest()[:32]}.sqlite"


def _connect(path: Path) -> sqlite3.Connection:
    make_folder(path.parent, private=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return _with_table(sqlite3.connect(path, timeout=10))


def _with_table(connection: sqlite3.Connection) -> sqlite3.Connection:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != VERSION:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DROP TABLE IF EXISTS runs")
            connection.execute(f"CREATE TABLE runs ({', '.join(_COLUMNS)}, mtime_ns, size, PRIMARY KEY (name))")
            connection.execute(f"PRAGMA user_version = {VERSION}")
    return connection
