"""The ledger of this machine's jobs, in SQLite: an attempt stands in it before anything is sent to a cluster."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tltrain.disk import make_folder, replacing
from tltrain.errors import Problem, SpecError, StorageError
from tltrain.jobs.states import Cause, State, Verdict
from tltrain.jobs.upload import Package

FORMAT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, run TEXT NOT NULL, storage TEXT NOT NULL, cluster TEXT NOT NULL, cluster_path TEXT NOT NULL,
    package TEXT NOT NULL, request TEXT NOT NULL, priority INTEGER NOT NULL, max_duration_s REAL,
    created_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS attempts (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, number INTEGER NOT NULL, sets TEXT NOT NULL,
    state TEXT NOT NULL, cause TEXT, reason TEXT NOT NULL, waits INTEGER NOT NULL, recorded_at REAL NOT NULL,
    accepted_at REAL, session TEXT, ended_at REAL, silent_since REAL,
    PRIMARY KEY (job_id, number)
);
"""


@dataclass(frozen=True)
class Attempt:
    """One submission of a job. Times are seconds since 1970."""

    job_id: str
    number: int
    sets: tuple[str, ...]
    """`KEY=VALUE` that this attempt adds to the spec."""
    state: State
    cause: Cause | None
    reason: str
    waits: bool
    """Whether it has not been sent because it waits in the queue."""
    recorded_at: float
    accepted_at: float | None
    """When the cluster was known to have it."""
    session: str | None
    """Name of the Ray session that took it: a head that starts again has another."""
    ended_at: float | None
    silent_since: float | None
    """Since when the cluster has not answered."""

    @property
    def submission_id(self) -> str:
        """Ray's id of it."""
        return f"{self.job_id}-{self.number}"

    @property
    def verdict(self) -> Verdict:
        """What was last known of it."""
        return Verdict(self.state, self.reason, self.cause)


@dataclass(frozen=True)
class Job:
    """One job: what was submitted, where to, and its attempts, the latest last."""

    id: str
    run: str
    storage: str
    cluster: str
    cluster_path: str
    package: str
    """File name of the upload, which is kept for retries."""
    request: dict[str, Any]
    """What the queue needs to know: workers, cpus and gpus of each; and the accumulation steps of the spec."""
    priority: int
    max_duration_s: float | None
    created_at: float
    attempts: tuple[Attempt, ...] = ()

    @property
    def latest(self) -> Attempt:
        """The attempt that counts."""
        return self.attempts[-1]


def data_dir() -> Path:
    """The folder of the ledger and of the uploads that belong to it."""
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "tltrain"


class Ledger:
    """The ledger in a folder, which only this user may read. Used by one thread at a time, by any number of processes.

    All failures are StorageErrors.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or data_dir()
        self.path = self.folder / "jobs.sqlite"
        self._connection = _open(self.path)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def add(self, job: Job, package: Package) -> None:
        """Record a new job with its first attempt, and keep its upload."""
        self._keep_package(package)
        with self._writing() as write:
            columns = [column.name for column in fields(Job) if column.name != "attempts"]
            values = {name: getattr(job, name) for name in columns} | {"request": json.dumps(job.request)}
            write(_insert("jobs", columns), values)
            for attempt in job.attempts:
                write(_insert("attempts", _ATTEMPT_COLUMNS), _row_of(attempt))

    def add_attempt(self, attempt: Attempt) -> bool:
        """Record a further attempt; False where another process has recorded that number already."""
        with self._writing() as write:
            added = write(_insert("attempts", _ATTEMPT_COLUMNS, "OR IGNORE"), _row_of(attempt))
        return added == 1

    def update(self, attempt: Attempt, *, only_as_seen: bool = False, **changes: Any) -> None:
        """Change columns of an attempt.

        only_as_seen: do nothing where another process has recorded another state, cause or reason since `attempt` was
        read, which may be newer than what the change was made from.
        """
        changes = {name: value.value if isinstance(value, State | Cause) else value for name, value in changes.items()}
        assert set(changes) <= set(_ATTEMPT_COLUMNS), changes
        assignments = ", ".join(f"{name} = :{name}" for name in changes)
        key = {"job": attempt.job_id, "of": attempt.number}
        condition = "job_id = :job AND number = :of"
        if only_as_seen:
            seen = _row_of(attempt)
            key |= {f"seen_{name}": seen[name] for name in ("state", "cause", "reason")}
            condition += " AND state = :seen_state AND cause IS :seen_cause AND reason = :seen_reason"
        with self._writing() as write:
            write(f"UPDATE attempts SET {assignments} WHERE {condition}", changes | key)

    def take_from_queue(self, attempt: Attempt) -> bool:
        """Claim a waiting attempt for sending; False where another process was faster."""
        with self._writing() as write:
            changed = write(
                "UPDATE attempts SET waits = 0, recorded_at = :now WHERE job_id = :job AND number = :of AND waits = 1",
                {"now": time.time(), "job": attempt.job_id, "of": attempt.number},
            )
        return changed == 1

    def remove(self, job: Job) -> None:
        """Forget a job, and its upload where no other job has it."""
        with self._writing() as write:
            write("DELETE FROM jobs WHERE id = :id", {"id": job.id})
        if not any(other.package == job.package for other in self.jobs()):
            with suppress(FileNotFoundError):
                os.unlink(self._package_path(job.package))

    def jobs(self) -> list[Job]:
        """All jobs, the oldest first."""
        return self._beginning_with("")

    def _beginning_with(self, prefix: str) -> list[Job]:
        """The jobs whose ids begin with `prefix`, the oldest first."""
        where, key = "WHERE substr({}, 1, length(:prefix)) = :prefix ORDER BY", {"prefix": prefix}
        with _translated(self.path):
            attempts: dict[str, list[Attempt]] = {}
            for row in self._connection.execute(f"SELECT * FROM attempts {where.format('job_id')} job_id, number", key):
                attempts.setdefault(row["job_id"], []).append(_attempt(row))
            rows = self._connection.execute(f"SELECT * FROM jobs {where.format('id')} created_at, id", key).fetchall()
        return [_job(row, attempts.get(row["id"], [])) for row in rows]

    def find(self, prefix: str) -> Job:
        """The job whose id is `prefix`, or the only one whose id begins with it. Raises SpecError."""
        jobs = self._beginning_with(prefix)
        found = [job for job in jobs if job.id == prefix] or jobs
        if len(found) == 1 and prefix:
            return found[0]
        if found:
            names = ", ".join(job.id for job in found[-5:])
            raise SpecError(f"{len(found)} jobs begin with {prefix!r}", f"Name one: {names}")
        raise SpecError(f"there is no job {prefix!r}", "`tltrain jobs -a` lists them all")

    def package_content(self, job: Job) -> bytes:
        """The upload of a job."""
        path = self._package_path(job.package)
        try:
            return path.read_bytes()
        except OSError as error:
            reason = error.strerror or str(error)
            raise StorageError(Problem(f"the upload cannot be read: {reason}", "Submit anew", str(path))) from error

    def _package_path(self, name: str) -> Path:
        return self.folder / "uploads" / name

    def _keep_package(self, package: Package) -> None:
        path = self._package_path(package.name)
        with _translated(path):
            if not path.exists():
                with replacing(path, private=True) as file:
                    file.write(package.content)

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """A transaction; yields a function that executes a statement and returns how many rows it changed."""
        with _translated(self.path), self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield lambda statement, values: connection.execute(statement, values).rowcount


def new_attempt(
    job_id: str, number: int, *, sets: Sequence[str] = (), waits: bool = False, reason: str = ""
) -> Attempt:
    """An attempt that has just been recorded and not been sent."""
    return Attempt(job_id, number, tuple(sets), State.QUEUED, None, reason, waits, time.time(), None, None, None, None)


_ATTEMPT_COLUMNS = [column.name for column in fields(Attempt)]


def _open(path: Path) -> sqlite3.Connection:
    with _translated(path):
        make_folder(path.parent, private=True)
        # Made before SQLite opens it, so that nobody else can read it from the start; its -wal takes over the mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > FORMAT:
            what = f"the ledger has format {version}, and this tltrain reads up to {FORMAT}"
            raise StorageError(Problem(what, "Upgrade tltrain here", str(path)))
        if version < FORMAT:
            connection.executescript(f"{_SCHEMA} PRAGMA user_version = {FORMAT};")
        return connection


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        what = f"the ledger of jobs cannot be used: {error}"
        raise StorageError(Problem(what, "Check the folder, its permissions and its disk", str(path))) from error


def _insert(table: str, columns: Iterable[str], how: str = "") -> str:
    names = list(columns)
    return f"INSERT {how} INTO {table} ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)})"


def _row_of(attempt: Attempt) -> dict[str, Any]:
    row = {name: getattr(attempt, name) for name in _ATTEMPT_COLUMNS}
    cause = attempt.cause and attempt.cause.value
    return row | {"sets": json.dumps(attempt.sets), "state": attempt.state.value, "cause": cause}


def _attempt(row: sqlite3.Row) -> Attempt:
    values = dict(row)
    values |= {"sets": tuple(json.loads(values["sets"])), "state": State(values["state"])}
    values |= {"cause": Cause(values["cause"]) if values["cause"] else None, "waits": bool(values["waits"])}
    return Attempt(**values)


def _job(row: sqlite3.Row, attempts: list[Attempt]) -> Job:
    values = dict(row)
    return Job(**values | {"request": json.loads(values["request"]), "attempts": tuple(attempts)})
