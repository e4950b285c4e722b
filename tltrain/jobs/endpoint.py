"""Reaching a cluster's Jobs API: its address, its token, and an SSH tunnel for as long as it is needed."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tltrain.errors import Problem, ResourceError, SpecError
from tltrain.jobs.cluster_kinds import AddressCluster, LocalCluster, RayUpCluster, SshTunnel
from tltrain.jobs.clusters import LoadedCluster
from tltrain.jobs.local_state import read_state, token_path, without_ray
from tltrain.spec.yaml_text import printable

logger = logging.getLogger(__name__)

TUNNEL_WAIT_S = 60.0


@dataclass(frozen=True)
class Endpoint:
    """A Jobs API that can be talked to now."""

    url: str
    """Address of the dashboard, such as http://127.0.0.1:8265."""
    token: str | None = field(repr=False)
    """Ray's token, or None where the cluster asks for none."""
    ca_file: Path | None = None
    """Certificates that an https server's is checked against; None takes the system's."""


@contextmanager
def reach(loaded: LoadedCluster) -> Iterator[Endpoint]:
    """A cluster's Jobs API; a tunnel to it is open until the end of the block.

    Raises SpecError where the cluster takes no jobs this way or its token is not to be had, and ResourceError
    where it is not up or cannot be reached.
    """
    cluster = loaded.cluster
    if isinstance(cluster, LocalCluster):
        yield _local(loaded)
    elif isinstance(cluster, AddressCluster):
        token = resolve(cluster.token, str(loaded.path)) if cluster.token else None
        if cluster.ssh_tunnel is None:
            assert cluster.url is not None, "one of url and ssh_tunnel is given"
            yield Endpoint(cluster.url, token, Path(cluster.ca_file) if cluster.ca_file else None)
        else:
            port = free_port()
            with _tunnel(ssh_command(cluster.ssh_tunnel, port), port, loaded.name):
                yield Endpoint(f"http://127.0.0.1:{port}", token)
    elif isinstance(cluster, RayUpCluster):
        token, port = resolve(cluster.token, str(loaded.path)), free_port()
        with _tunnel(dashboard_command(cluster, port), port, loaded.name):
            yield Endpoint(f"http://127.0.0.1:{port}", token)
    else:
        action = f"Print the job and give it to Kubernetes: tltrain manifest SPEC --cluster {loaded.name}"
        raise SpecError(Problem("jobs on Kubernetes are RayJobs, not submitted here", action, str(loaded.path)))


def resolve(reference: str, where: str) -> str:
    """The secret that `env:NAME` or `file:PATH` leads to on this machine. Raises SpecError."""
    source, _, name = reference.partition(":")
    if source == "env":
        secret = os.environ.get(name, "").strip()
        if not secret:
            raise SpecError(Problem(f"the environment variable {name} is not set", "Set it", where, "token"))
        return secret
    try:
        with open(name, encoding="utf-8") as stream:
            if os.fstat(stream.fileno()).st_mode & 0o077:
                logger.warning("%s can be read by other users. Keep it to yourself: chmod 600 %s", name, name)
            secret = stream.read().strip()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is no text"
        problem = Problem(f"the token's file {name} cannot be read: {reason}", "Check the path", where, "token")
        raise SpecError(problem) from error
    if not secret:
        raise SpecError(Problem(f"the token's file {name} is empty", "Put the token in it", where, "token"))
    return secret


def _local(loaded: LoadedCluster) -> Endpoint:
    state = read_state(loaded.name)
    if state is None or not state.is_alive:
        raise ResourceError(f"the cluster {loaded.name} is not up", f"Start it: tltrain cluster up {loaded.name}")
    return Endpoint(state.url, resolve(f"file:{token_path(loaded.name)}", str(loaded.path)))


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ssh_command(tunnel: SshTunnel, port: int) -> list[str]:
    """The command whose life is a tunnel from `port` here to the Jobs API. It never asks for a password."""
    command = ["ssh", "-N", "-T", "-L", f"127.0.0.1:{port}:{tunnel.remote_host}:{tunnel.remote_port}"]
    options = ("BatchMode=yes", "ExitOnForwardFailure=yes", "ConnectTimeout=15", "ServerAliveInterval=15")
    for option in options:
        command += ["-o", option]
    if tunnel.port is not None:
        command += ["-p", str(tunnel.port)]
    if tunnel.identity_file is not None:
        command += ["-i", tunnel.identity_file]
    if tunnel.user is not None:
        command += ["-l", tunnel.user]
    return [*command, "--", tunnel.host]


def ray_program() -> str:
    """The `ray` of this Python's installation. Raises ResourceError where there is none."""
    beside = Path(sys.executable).with_name("ray")
    found = str(beside) if beside.exists() else shutil.which("ray")
    if found is None:
        raise ResourceError("the program `ray` was not found", "Install it here: pip install 'ray[default]'")
    return found


def dashboard_command(cluster: RayUpCluster, port: int) -> list[str]:
    """The command of Ray's launcher whose life is a tunnel from `port` here to the dashboard of its cluster."""
    ports = ["--port", str(port), "--remote-port", str(cluster.remote_port)]
    return [ray_program(), "dashboard", cluster.config, *ports, "--no-config-cache"]


@contextmanager
def _tunnel(command: Sequence[str], port: int, name: str) -> Iterator[None]:
    """Run a command that forwards `port` until the end of the block. Raises ResourceError where it does not."""
    with tempfile.TemporaryFile() as said, _running(command, said) as process:
        deadline = time.monotonic() + TUNNEL_WAIT_S
        while not _listens(port):
            if process.poll() is not None:
                raise _no_tunnel(name, process.returncode, said)
            if time.monotonic() > deadline:
                what = f"no tunnel to {name} within {TUNNEL_WAIT_S:.0f} s"
                raise ResourceError(what, "Check that the host is up and can be reached by ssh")
            time.sleep(0.05)
        yield


@contextmanager
def _running(command: Sequence[str], output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A command that is ended, with what it started, at the end of the block."""
    # Its own session: Ctrl-C is for us, and we close the tunnel. The open pipe keeps Ray's remote shell waiting.
    with subprocess.Popen(
        command,
        env=without_ray(os.environ),
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
            return


def _no_tunnel(name: str, code: int, said: IO[bytes]) -> ResourceError:
    said.seek(0)
    lines = said.read().decode("utf-8", "replace").strip().splitlines()
    reason = printable(lines[-1], 200) if lines else f"it ended with code {code}"
    return ResourceError(f"no tunnel to {name}: {reason}", "Check host, user and key; `ssh HOST true` must work")


def _listens(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0
