"""What is remembered of a local cluster between commands: its address, its token's file and its processes."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tltrain.disk import replacing
from tltrain.errors import Problem, StorageError
from tltrain.jobs.processes import Process

STATE_FILE = "cluster.json"
TOKEN_FILE = "token"


@dataclass(frozen=True)
class LocalState:
    """A head that was started."""

    url: str
    """Address of the dashboard, which is the Jobs API."""
    gcs_address: str
    """What `ray.init(address=...)` takes."""
    processes: tuple[Process, ...]
    """The head's own processes, the one that was started first."""
    temp_dir: str
    """What holds Ray's folder for logs and sockets; only this user may enter it."""
    started_at: float
    """Seconds since 1970."""

    @property
    def is_alive(self) -> bool:
        """Whether the head's first process still runs."""
        return bool(self.processes) and self.processes[0].is_alive


def state_dir(name: str) -> Path:
    """The folder of a local cluster's state, which need not exist."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "tltrain" / name


def read_state(name: str) -> LocalState | None:
    """What is remembered of a head, or None where none was started. Raises StorageError."""
    path = state_dir(name) / STATE_FILE
    try:
        fields: dict[str, Any] = json.loads(path.read_text("utf-8"))
        processes = tuple(Process(**process) for process in fields.pop("processes"))
        return LocalState(**fields, processes=processes)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        action = "Delete it where no Ray head of it runs any more"
        raise StorageError(Problem(f"the file cannot be read: {error}", action, str(path))) from error


def write_state(name: str, state: LocalState) -> None:
    """Remember a head. Raises StorageError."""
    write_private(state_dir(name) / STATE_FILE, json.dumps(asdict(state), indent=2) + "\n")


def forget_state(name: str) -> None:
    """Remember no head any more; its token stays for the next one."""
    (state_dir(name) / STATE_FILE).unlink(missing_ok=True)


def token_path(name: str) -> Path:
    """The file of a local cluster's token, made where it is missing. Raises StorageError."""
    path = state_dir(name) / TOKEN_FILE
    make_token(path)
    return path


def make_token(path: Path) -> bool:
    """Write a new random token, unless the file is there; whether it was written. Raises StorageError."""
    if path.exists():
        return False
    write_private(path, secrets.token_hex(32))
    return True


def write_private(path: Path, text: str) -> None:
    """Write or replace a file that only this user may read. Raises StorageError."""
    try:
        with replacing(path, private=True) as file:
            file.write(text.encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(Problem(f"cannot be written: {reason}", "Check the path", str(path))) from error


def without_ray(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment that are not Ray's, so that none of them changes what a child does."""
    return {name: value for name, value in environment.items() if not name.startswith("RAY_")}
