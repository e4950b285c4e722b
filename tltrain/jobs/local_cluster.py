"""A Ray head on this machine: starting it, and ending exactly the processes that belong to it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tltrain.disk import make_folder
from tltrain.errors import Problem, ResourceError, StorageError
from tltrain.jobs import local_state, processes
from tltrain.jobs.clusters import LocalCluster
from tltrain.jobs.endpoint import ray_program
from tltrain.jobs.local_state import LocalState, read_state, write_state
from tltrain.jobs.processes import Process
from tltrain.jobs.start_hook import HOOK, LOOPBACK

START_WAIT_S = 120.0
END_GRACE_S = 15.0
LOG_FILE = "head.log"
_LOCK_WAIT_S = 180.0


def up(name: str, cluster: LocalCluster) -> tuple[LocalState, bool]:
    """Start the head of a local cluster, unless it is up; its state, and whether it was started now.

    Raises ResourceError where it does not start, and StorageError where its state cannot be kept.
    """
    if not Path("/proc/self/stat").exists():
        raise ResourceError("a local cluster needs Linux", "Train with `tltrain run`, or submit to another cluster")
    with _locked(name):
        state = read_state(name)
        if state is not None and state.is_alive:
            return state, False
        if state is not None:
            _clear(name, state)
        return _start(name, cluster), True


def down(name: str) -> bool:
    """End the head of a local cluster and all that it started; False where none was up. Raises StorageError."""
    with _locked(name):
        state = read_state(name)
        if state is None:
            return False
        _clear(name, state)
        return True


def state_of(name: str) -> str:
    """`up`, `down`, or `died` where the head has ended without `down`. Raises StorageError."""
    state = read_state(name)
    return "down" if state is None else "up" if state.is_alive else "died"


def log_path(name: str) -> Path:
    """What the head of a local cluster has written, which need not exist."""
    return local_state.state_dir(name) / LOG_FILE


def start_command(cluster: LocalCluster, *, temp_dir: str, ports: dict[str, int]) -> list[str]:
    """The command that is the head: it runs until it is ended, and ends its children then."""
    command = [ray_program(), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--temp-dir={temp_dir}", f"--dashboard-host={LOOPBACK}"]
    command += [f"--{option}={port}" for option, port in ports.items()]
    command += ["--min-worker-port=0", "--max-worker-port=0"]  # any that are free, whatever else runs here
    if cluster.num_cpus is not None:
        command.append(f"--num-cpus={cluster.num_cpus}")
    if cluster.num_gpus is not None:
        command.append(f"--num-gpus={cluster.num_gpus}")
    return command


def environment(name: str) -> dict[str, str]:
    """The environment of a head, and so of its jobs: with a token, and with this Python first in the path."""
    own = local_state.without_ray(os.environ)
    own["PATH"] = f"{Path(sys.executable).parent}:{own.get('PATH', os.defpath)}"
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(local_state.token_path(name))}
    # A process that joins by address, as the one that takes jobs does, puts the machine's outer address in the place of
    # 127.0.0.1, where nothing listens; it does not where Ray expects no other machines, as on macOS.
    own["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    own["RAY_JOB_STOP_WAIT_TIME_S"] = "30"  # Ray kills a job that is stopped after 3 s, too soon for a checkpoint
    return own | {"RAY_START_HOOK": HOOK, "RAY_USAGE_STATS_ENABLED": "0"}


def _start(name: str, cluster: LocalCluster) -> LocalState:
    ports = _ports(cluster)
    temp_dir = tempfile.mkdtemp(prefix=f"tltrain-c-{name[:14]}-", dir="/tmp")  # short: Ray keeps sockets in it
    url, gcs_address = f"http://{LOOPBACK}:{ports['dashboard-port']}", f"{LOOPBACK}:{ports['port']}"
    # In a folder of its own, for Ray lets every user of the machine into the one that it is given.
    command = start_command(cluster, temp_dir=f"{temp_dir}/ray", ports=ports)
    log = log_path(name)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        process = subprocess.Popen(
            command,
            env=environment(name),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    head = Process.of(process.pid)
    if head is None:
        raise _failed(name, log, "it ended at once")
    state = LocalState(url, gcs_address, (head,), temp_dir, time.time())
    try:
        write_state(name, state)  # before it is up, so that `down` knows of it whatever happens to us
        _wait(name, process, url, log)
        others = processes.family([head]) - {head}
        state = LocalState(url, gcs_address, (head, *sorted(others, key=lambda each: each.pid)), temp_dir, time.time())
        write_state(name, state)
    except BaseException:
        _clear(name, state)
        raise
    return state


def _clear(name: str, state: LocalState) -> None:
    """End what is left of a head and forget it; its token stays for the next one."""
    processes.end(state.processes[0], state.processes[1:], grace_s=END_GRACE_S)
    local_state.forget_state(name)
    shutil.rmtree(state.temp_dir, ignore_errors=True)


def _wait(name: str, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until the head can be given work. Raises ResourceError where it does not get there."""
    token = local_state.token_path(name).read_text("utf-8").strip()
    request = urllib.request.Request(f"{url}/api/v0/nodes", headers={"Authorization": f"Bearer {token}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_WAIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _failed(name, log, f"it ended with code {process.returncode}")
        # A dashboard that is just starting refuses connections, then answers with errors of its own.
        with suppress(OSError, LookupError, TypeError, ValueError):
            with opener.open(request, timeout=5) as answer:
                nodes = json.load(answer)["data"]["result"]["result"]
            if any(node["state"] == "ALIVE" for node in nodes):
                return
        time.sleep(0.1)
    raise _failed(name, log, f"it cannot be given work within {START_WAIT_S:.0f} s")


def _failed(name: str, log: Path, reason: str) -> ResourceError:
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    said = f": {lines[-1].strip()[:300]}" if lines else ""
    return ResourceError(f"the head of {name} did not start: {reason}{said}", f"What it wrote is in {log}")


def _ports(cluster: LocalCluster) -> dict[str, int]:
    """A free port for each of the head's services. Raises ResourceError where the wanted one is taken."""
    wanted = {"dashboard-port": cluster.dashboard_port}
    names = ("port", "dashboard-agent-listen-port")
    with ExitStack() as stack:  # all held at once, so that all differ
        ports: dict[str, int] = {}
        for option, port in {**wanted, **dict.fromkeys(names, 0)}.items():
            listener = stack.enter_context(socket.socket())
            try:
                listener.bind((LOOPBACK, port))
            except OSError as error:
                what = f"port {port} cannot be listened on: {error.strerror}"
                raise ResourceError(what, "Choose another dashboard_port; 0 takes a free one") from error
            ports[option] = listener.getsockname()[1]
        return ports


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """Let one command at a time start or end a cluster."""
    folder = local_state.state_dir(name)
    try:
        make_folder(folder, private=True)
    except OSError as error:
        problem = Problem(f"cannot be made: {error.strerror}", "Check the path", str(folder))
        raise StorageError(problem) from error
    try:
        with FileLock(folder / "lock", timeout=_LOCK_WAIT_S, mode=0o600):
            yield
    except Timeout as error:
        what = f"another command has been starting or ending {name} for {_LOCK_WAIT_S:.0f} s"
        raise ResourceError(what, "Try again when it is done") from error
