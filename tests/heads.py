"""A Ray head of a test's own: with a token, ports and a folder that nobody else has."""

from __future__ import annotations

import json
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
from typing import Any

import ray.util

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
    address: str
    """Of the cluster, for RAY_ADDRESS."""

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
def running_head(*, num_cpus: int = 2, grows_by: int = 0) -> Iterator[Head]:
    """A head for the length of a `with` block; at its end it is killed with all that it has started.

    grows_by: up to so many more nodes with one CPU each are started by Ray's autoscaler as they are asked for, on this
    machine, and ended when they had no work for some seconds.
    """
    with tempfile.TemporaryDirectory(prefix="ray-head-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        address = f"{ray.util.get_node_ip_address()}:{free_port()}"
        head = Head(f"http://127.0.0.1:{free_port()}", secrets.token_hex(16), Path(folder), address)
        command = [str(BIN / "ray"), "start", "--head", "--block", f"--temp-dir={folder}", f"--num-cpus={num_cpus}"]
        command += [f"--dashboard-port={head.url.rpartition(':')[2]}", f"--port={address.rpartition(':')[2]}"]
        # Else two heads of one machine fight over them.
        command += [f"--{name}={free_port()}" for name in ("ray-client-server-port", "dashboard-agent-listen-port")]
        environment = _environment(head.token)
        if grows_by:
            growth = Path(folder, "autoscaler.yaml")
            growth.write_text(json.dumps(_growth(address, grows_by)))
            command.append(f"--autoscaling-config={growth}")
            environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
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


def _growth(address: str, nodes: int) -> dict[str, Any]:
    """The configuration of an autoscaler whose machines are processes of this one."""
    head = {"resources": {}, "node_config": {}, "max_workers": 0}
    worker = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": nodes}
    nothing: dict[str, Any] = {name: {} for name in ("auth", "docker", "file_mounts")}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    nothing |= {f"{name}_commands": [] for name in commands} | {"cluster_synced_files": []}
    return {
        **nothing,
        "cluster_name": "grows",
        "max_workers": nodes,
        "idle_timeout_minutes": 0.05,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {"ray.head.default": head, "worker": worker},
        "head_node_type": "ray.head.default",
    }


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
