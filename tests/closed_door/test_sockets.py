"""What tltrain starts listens on this machine's own interface alone, wants a token, and leaves nothing for others."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from sockets import is_loopback, listening

from tltrain.jobs import local_cluster
from tltrain.jobs.local_state import read_state, state_dir, token_path, without_ray
from tltrain.jobs.processes import Process, family

pytestmark = [pytest.mark.ray, pytest.mark.slow]
GCS_METHODS = (
    "NodeInfoGcsService/GetAllNodeInfo",
    "JobInfoGcsService/GetAllJobInfo",
    "InternalKVGcsService/InternalKVKeys",
)


def test_what_listens_is_found_so_that_these_tests_can_fail() -> None:
    for kind, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with socket.socket(kind) as listener:
            listener.bind((address, 0))
            listener.listen()
            assert listening([os.getpid()])[listener.getsockname()[1]] == address
    assert [is_loopback(each) for each in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::")] == [
        *(True, True, True, False, False)
    ]


def status_of(url: str, method: str, headers: dict[str, str]) -> int:
    """The status of a request, without one of the system's proxies."""
    body = json.dumps({"entrypoint": "touch /tmp/never"}).encode() if method in ("POST", "PUT") else None
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def grpc_status(address: str, method: str, token: str | None) -> grpc.StatusCode:
    """What a service of Ray's answers to an empty request."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{method}")(b"", metadata=metadata, timeout=10)
        except grpc.RpcError as error:
            return error.code()  # pyright: ignore[reportAttributeAccessIssue]
    return grpc.StatusCode.OK


def open_to_others(folder: Path) -> list[str]:
    """What below a folder others may read, write or enter, where they may enter the folder itself; and that itself."""
    if not stat.S_IMODE(folder.stat().st_mode) & 0o077:
        return []
    return [str(path) for path in [folder, *folder.rglob("*")] if path.lstat().st_mode & 0o077]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """The name of a local cluster that was started by the program under an open umask."""
    (tmp_path / "closed.yaml").write_text("kind: local\nnum_cpus: 1\nnum_gpus: 0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        command = [sys.executable, "-m", "tltrain", "cluster", "up", str(tmp_path / "closed.yaml")]
        subprocess.run(command, env=without_ray(os.environ), check=True, umask=0)
        try:
            yield "closed"
        finally:
            local_cluster.down("closed")


def test_a_cluster_listens_where_it_says_and_answers_nobody_without_its_token(head: str) -> None:
    state = read_state(head)
    assert state is not None
    token = token_path(head).read_text().strip()
    members = family(state.processes)
    found = listening(process.pid for process in members)
    port = int(state.url.rpartition(":")[2])

    assert {port, int(state.gcs_address.rpartition(":")[2])} <= found.keys()
    assert {port: address for port, address in found.items() if not is_loopback(address)} == {}

    paths = (
        "version",
        "jobs/",
        "jobs/x",
        "jobs/x/logs",
        "jobs/x/stop",
        "packages/gcs/x.zip",
        "v0/nodes",
        "serve/applications/",
    )
    wrong = {"Authorization": f"Bearer {'0' * len(token)}"}
    for path in paths:
        for method in ("GET", "POST", "PUT", "DELETE"):
            assert status_of(f"{state.url}/api/{path}", method, {}) == 401, (method, path)
            assert status_of(f"{state.url}/api/{path}", method, wrong) == 403, (method, path)
    assert status_of(f"{state.url}/api/version", "GET", {"Authorization": f"Bearer {token}"}) == 200
    for method in GCS_METHODS:
        assert grpc_status(state.gcs_address, method, None) is grpc.StatusCode.UNAUTHENTICATED, method
        assert grpc_status(state.gcs_address, method, "wrong") is grpc.StatusCode.UNAUTHENTICATED, method
    assert grpc_status(state.gcs_address, GCS_METHODS[0], token) is grpc.StatusCode.OK

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [state_dir(head), *state_dir(head).iterdir()]}
    assert modes.pop(state_dir(head).name) == 0o700
    assert modes == dict.fromkeys(modes, 0o600)
    assert {"token", "cluster.json", "head.log"} <= modes.keys()
    assert open_to_others(Path(state.temp_dir)) == []
    assert not any(
        token.encode() in Path(f"/proc/{process.pid}/cmdline").read_bytes() for process in members if process.is_alive
    )


# Starts the cluster of `tltrain run` on this machine, with one task in it, and says where until it is told to go on.
PRIVATE = """
import os, sys
os.umask(0)
from tltrain.engine.cluster import connected
with connected():
    import ray
    ray.get(ray.remote(lambda: os.getpid()).remote())
    print(ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"], flush=True)
    sys.stdin.readline()
"""


def test_the_private_cluster_of_a_run_listens_on_loopback_and_wants_its_token(tmp_path: Path) -> None:
    environment = without_ray(os.environ) | {"TMPDIR": tempfile.mkdtemp(prefix="p", dir="/tmp")}
    with subprocess.Popen(
        [sys.executable, "-c", PRIVATE], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            gcs_address, token = process.stdout.readline().split()
            first = Process.of(process.pid)
            assert first is not None
            time.sleep(2)
            members = family([first])
            found = listening([process.pid, *(member.pid for member in members)])

            assert int(gcs_address.rpartition(":")[2]) in found
            assert {port: address for port, address in found.items() if not is_loopback(address)} == {}
            for method in GCS_METHODS:
                assert grpc_status(gcs_address, method, None) is grpc.StatusCode.UNAUTHENTICATED
            assert grpc_status(gcs_address, GCS_METHODS[0], token) is grpc.StatusCode.OK
            assert [open_to_others(folder) for folder in Path(environment["TMPDIR"]).glob("tltrain-ray-*")] == [[]]
            lines = [Path(f"/proc/{member.pid}/cmdline") for member in members]
            assert not any(token.encode() in line.read_bytes() for line in lines if line.exists())
        finally:
            process.stdin.close()
            process.wait(timeout=60)
    assert list(Path(environment["TMPDIR"]).glob("tltrain-ray-*")) == []
    Path(environment["TMPDIR"]).rmdir()
