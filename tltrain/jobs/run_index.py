"""What is known on this machine of the runs under a storage: an index that is brought up to date with each look."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from tltrain.disk import make_folder, names_changed_at
from tltrain.errors import StorageError
from tltrain.run_folder import STATE_FILE, RunFolder
from tltrain.storage import Folder

VERSION = 2
"""Of the tables; an index of another version is made anew."""
SETTLED_S = 2.0
"""A file or folder that was written this short before it was read may change again with the same time and size."""
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
_NOT_STARTED = "COALESCE(started_at, 0) = 0"
_ORDER = "COALESCE(NULLIF(started_at, 0), written_at) DESC, name"
_TABLES = (
    f"CREATE TABLE runs ({', '.join(_COLUMNS)}, mtime_ns, size, PRIMARY KEY (name))",
    f"CREATE INDEX newest ON runs ({_ORDER})",
    f"CREATE INDEX not_started ON runs (name) WHERE {_NOT_STARTED}",
    "CREATE TABLE others (name PRIMARY KEY)",  # in the storage without a run.json, which may come
    "CREATE TABLE folder (mtime_ns, inode)",  # of the storage at the last look at all that is in it
)


def summaries(storage: Folder, *, rebuild: bool = False, newest: int | None = None) -> list[Summary]:
    """The runs under `storage`, the newest first, at most `newest` of them.

    Only what has changed since the last time is read; where no run was made or removed since, and only the newest are
    asked for, the disk is asked for these alone. `rebuild` forgets what was known.

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
    now_ns = time.time_ns()
    folder = None if storage.local_path is None else names_changed_at(storage.local_path)
    same = folder is not None and folder == connection.execute("SELECT mtime_ns, inode FROM folder").fetchone()
    if same and newest is not None:
        return _newest(connection, storage, newest, now_ns)
    _look_at(connection, storage, now_ns)
    if not same:
        _keep(connection, folder if folder is not None and _is_settled(folder[0], now_ns) else None)
    return _listed(connection, newest)


def _newest(connection: sqlite3.Connection, storage: Folder, newest: int, now_ns: int) -> list[Summary]:
    """The newest, where no run was made or removed since the last look at all of them.

    A run that has started keeps its place. So only the first ones are looked at, with what may come to be one of them.
    """
    looked: set[str] = set()
    while True:
        found = _listed(connection, newest)
        waiting = connection.execute(f"SELECT name FROM runs WHERE {_NOT_STARTED} UNION SELECT name FROM others")
        names = {summary.name for summary in found}.union(name for (name,) in waiting) - looked
        if not names:
            return found
        _look_at(connection, storage, now_ns, sorted(names))
        looked |= names


def _listed(connection: sqlite3.Connection, newest: int | None) -> list[Summary]:
    wanted = f"SELECT {', '.join(_COLUMNS)} FROM runs ORDER BY {_ORDER} LIMIT ?"
    return [Summary(*row) for row in connection.execute(wanted, (-1 if newest is None else newest,))]


def _look_at(connection: sqlite3.Connection, storage: Folder, now_ns: int, names: Sequence[str] | None = None) -> None:
    """Bring up to date what is known of the folders of these names, or of all."""
    some = ("", ()) if names is None else (" WHERE name IN (SELECT value FROM json_each(?))", (json.dumps(names),))
    rows = connection.execute(f"SELECT name, mtime_ns, size FROM runs{some[0]}", some[1])
    known = {name: (mtime_ns, size) for name, mtime_ns, size in rows}
    others = {name for (name,) in connection.execute(f"SELECT name FROM others{some[0]}", some[1])}
    present = storage.stamps(STATE_FILE, names)
    changed = {name: stamp for name, stamp in present.items() if stamp and stamp != known.get(name) and _is_text(name)}
    gone = [name for name in known if present.get(name) is None]
    without = {name for name, stamp in present.items() if stamp is None and _is_text(name)}
    with connection:
        connection.executemany("DELETE FROM runs WHERE name = ?", [(name,) for name in gone])
        connection.executemany("DELETE FROM others WHERE name = ?", [(name,) for name in others - without])
        connection.executemany("INSERT OR IGNORE INTO others VALUES (?)", [(name,) for name in without - others])
        placeholders = ", ".join("?" * (len(_COLUMNS) + 2))
        connection.executemany(f"INSERT OR REPLACE INTO runs VALUES ({placeholders})", _rows(storage, changed, now_ns))


def _keep(connection: sqlite3.Connection, folder: tuple[int, int] | None) -> None:
    with connection:
        connection.execute("DELETE FROM folder")
        connection.executemany("INSERT INTO folder VALUES (?, ?)", [] if folder is None else [folder])


def _rows(storage: Folder, stamps: Mapping[str, tuple[int, int]], now_ns: int) -> Iterable[tuple[Any, ...]]:
    def read(name: str) -> tuple[Any, ...]:
        mtime_ns, size = stamps[name]
        summary = _read(RunFolder(storage.child(name)), mtime_ns / 1e9)
        return (*astuple(summary), mtime_ns if _is_settled(mtime_ns, now_ns) else -1, size)

    if storage.local_path is not None:  # there is nothing to wait for
        return map(read, stamps)
    with ThreadPoolExecutor(READERS) as executor:
        return list(executor.map(read, stamps))


def _is_text(name: str) -> bool:
    """Whether a run can have this name: the disk's own may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_settled(mtime_ns: int, now_ns: int) -> bool:
    return mtime_ns < now_ns - SETTLED_S * 1e9


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
            for table in ("runs", "others", "folder"):
                connection.execute(f"DROP TABLE IF EXISTS {table}")
            for create in _TABLES:
                connection.execute(create)
            connection.execute(f"PRAGMA user_version = {VERSION}")
    return connection
