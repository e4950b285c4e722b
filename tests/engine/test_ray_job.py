"""The same program as a Ray job: submitted to a head that was started with `ray start --head`."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tltrain.run_folder import RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def head() -> Iterator[dict[str, str]]:
    """A head with a token, in a folder of its own; yields the environment of those who talk to it."""
    dashboard, gcs = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PATH"] = f"{BIN}:{environment['PATH']}"  # as in an activated virtual environment
    with tempfile.TemporaryDirectory(prefix="ray-head-", ignore_cleanup_errors=True) as folder:
        command = [str(BIN / "ray"), "start", "--head", "--block", f"--port={gcs}", f"--temp-dir={folder}"]
        command += [f"--dashboard-port={dashboard}", "--num-cpus=2", f"--ray-client-server-port={free_port()}"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{dashboard}"
            wait_for(address, environment["RAY_AUTH_TOKEN"])
            yield environment | {"RAY_API_SERVER_ADDRESS": address}
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its own session: the head and all that it has started
            process.wait(timeout=60)


def wait_for(address: str, token: str) -> None:
    request = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the head does not answer"
            time.sleep(0.5)


def test_a_job_trains_a_shipped_spec_on_the_head(head: dict[str, str], project_dir: Path, tmp_path: Path) -> None:
    entrypoint = ["python", "-m", "tltrain.run", "jobs/fashion-lite0.yaml"]
    entrypoint += ["--set", "train.epochs=1", "--set", "model.freeze_depth=all", "--set", f"storage={tmp_path}"]
    done = subprocess.run(
        [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--", *entrypoint],
        cwd=project_dir,
        env=head,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Test accuracy" in done.stdout
    state = RunFolder.at(str(tmp_path), "fashion-lite0").state()
    assert state["state"] == "finished"
    assert state["evaluation"]["accuracy"] > 0.3
