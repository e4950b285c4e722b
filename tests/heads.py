"""A Ray head of a test's own: with a token, ports and a folder that nobody else has."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tltrain.jobs.endpoint import free_port
from tltrain.jobs.local_state import without_ray
from tltrain.jobs.processes import Process, family

BIN = Path(sys.executable).parent
START_WAIT_S = 120.0


@dataclass(frozen=True)
class Head:
    """A head that answers. `folder` is where Ray keeps its logs."""

    url: str
    token: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What Ray's own client needs to talk to it."""
        return _environment(self.token) | {"RAY_API_SERVER_ADDRESS": self.url}

    def get(self, path: str) -> str:
        """What the dashboard answers. Raises OSError."""
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()


@contextmanager
def running_head(*, num_cpus: int = 2) -> Iterator[Head]:
    """A head for the length of a `with` block; at its end it is killed with all that it has started."""
    with tempfile.TemporaryDirectory(prefix="ray-head-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = Head(f"http://127.0.0.1:{free_port()}", secrets.token_hex(16), Path(folder))
        command = [str(BIN / "ray"), "start", "--head", "--block", f"--temp-dir={folder}", f"--num-cpus={num_cpus}"]
        command += [f"--dashboard-port={head.url.rpartition(':')[2]}", f"--port={free_port()}"]
        # Else two heads of one machine fight over them.
        command += [f"--{name}={free_port()}" for name in ("ray-client-server-port", "dashboard-agent-listen-port")]
        process = subprocess.Popen(
            command, env=_environment(head.token), stdout=subprocess.DEVNULL, start_new_session=True
        )
        first = Process.of(process.pid)
        assert first is not None
        try:
            _wait(head)
            yield head
        finally:
            while victims := family([first]):
                for victim in victims:
                    with suppress(ProcessLookupError):
                        os.kill(victim.pid, signal.SIGKILL)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)


def _environment(token: str) -> dict[str, str]:
    own = without_ray(os.environ)
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    own["PATH"] = f"{BIN}:{own['PATH']}"  # as in an activated virtual environment
    return own


def _wait(head: Head) -> None:
    deadline = time.monotonic() + START_WAIT_S
    while True:
        try:
            head.get("/api/version")
            return
        except OSError:
            assert time.monotonic() < deadline, "the head does not answer"
            time.sleep(0.3)
