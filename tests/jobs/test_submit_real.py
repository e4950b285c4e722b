"""The verbs against a real head: submit, follow, status, stop, retry, and what is not repeated."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_spec

from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]

BIN = Path(sys.executable).parent
CANARY = "canary-" + secrets.token_hex(8)

# Its backward pass fails in one of two workers.
NETWORK = """
import os

import torch


def build(num_classes: int) -> torch.nn.Module:
    stem = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    net = torch.nn.Sequential()
    net.add_module("stem", stem)
    net.add_module("fc", torch.nn.Linear(4, num_classes))
    net.fc.register_full_backward_hook(fail)
    return net


def fail(*_):
    if os.environ.get("RANK") == "1":
        raise ValueError("a bug of mine")
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Cluster:
    """A head of our own, and a home that knows it as `real`."""

    def __init__(self, home: Path, url: str, token: str) -> None:
        self.home, self.url, self.token = home, url, token
        folder = home / "config" / "tltrain" / "cluster"
        folder.mkdir(parents=True)
        (folder / "token").write_text(token)
        (folder / "token").chmod(0o600)
        (folder / "secret").write_text(CANARY)
        secret = f"secrets: {{MY_SECRET: 'file:{folder}/secret'}}\n"
        (folder / "real.yaml").write_text(f"kind: address\nurl: {url}\ntoken: file:{folder}/token\n{secret}")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `tltrain ARGUMENTS` in the home."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {f"XDG_{name}_HOME": str(self.home / name.lower()) for name in ("DATA", "CONFIG", "STATE")}
        command = [sys.executable, "-m", "tltrain", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, cwd=self.home, stdout=pipe, stderr=pipe, text=True)

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Run `tltrain ARGUMENTS` to its end; returns what it wrote to stdout and stderr."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=200)
        assert process.returncode == code, f"{arguments}: {process.returncode}\n{out}\n{err}"
        return out, err

    def job(self, own_id: str) -> dict[str, Any]:
        return json.loads(self.run("status", own_id, "--json")[0])

    def until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + 90
        while not condition():
            assert time.monotonic() < deadline, what
            time.sleep(0.3)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    dashboard, token = free_port(), secrets.token_hex(16)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PATH"] = f"{BIN}:{environment['PATH']}"
    with tempfile.TemporaryDirectory(prefix="ray-jobs-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [str(BIN / "ray"), "start", "--head", "--block", f"--port={free_port()}", f"--temp-dir={folder}"]
        command += [f"--dashboard-port={dashboard}", "--num-cpus=2", f"--ray-client-server-port={free_port()}"]
        command += [f"--dashboard-agent-listen-port={free_port()}"]  # else two heads of one machine fight over it
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{dashboard}"
            wait_for(url, token)
            yield Cluster(tmp_path_factory.mktemp("home"), url, token)
        finally:
            process.terminate()
            process.wait(timeout=60)


def wait_for(url: str, token: str) -> None:
    request = urllib.request.Request(f"{url}/api/version", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the head does not answer"
            time.sleep(0.3)


@pytest.mark.slow
def test_submit_follow_status_stop_retry_and_a_failure(cluster: Cluster) -> None:
    home = cluster.home
    digits = home / "digits"
    (home / "tiny.yaml").write_text(dump_yaml(tiny_spec(digits, {"train.epochs": 2})))

    # Right after the head's start, followed to the end; the data travels with it.
    upload = ["--upload", str(digits / "train.parquet"), "--upload", str(digits / "test.parquet")]
    out, err = cluster.run("submit", "tiny.yaml", "--cluster", "real", *upload)
    own_id = id_in(err)
    assert f"{own_id} submitted to real ({cluster.url})" in err
    assert f"tltrain stop {own_id}" in err
    assert err.rstrip().endswith(f"{own_id} SUCCEEDED")
    assert "Test accuracy" in out
    run = RunFolder.at(str(digits / "runs"), "tiny").state()
    assert (run["state"], run["job"]) == ("finished", f"{own_id}-1")
    assert cluster.run("logs", own_id)[0] == out
    assert cluster.run("logs", "-f", own_id)[0] == out

    # A longer one: detached, stopped, and gone on with. Stopping is no failure.
    (home / "long.yaml").write_text(dump_yaml(tiny_spec(digits, {"train.epochs": 4000}, name="long")))
    _, err = cluster.run("submit", "long.yaml", "--cluster", "real", "-d")
    own_id = id_in(err)
    cluster.until(lambda: cluster.job(own_id)["state"] == "RUNNING", "it does not run")
    listed = json.loads(cluster.run("jobs", "--json")[0])
    assert [job["id"] for job in listed] == [own_id]
    began = time.monotonic()
    cluster.run("status", own_id)
    assert time.monotonic() - began < 3.0, "1.5 s on a machine that is free"
    cluster.run("stop", "long-")
    assert cluster.job(own_id)["state"] == "STOPPED"
    follower = cluster.start("retry", own_id)
    cluster.until(lambda: cluster.job(own_id)["state"] == "RUNNING", "it does not go on")
    follower.send_signal(2)  # Ctrl-C
    _, err = follower.communicate(timeout=30)
    assert follower.returncode == 130
    assert f"{own_id} goes on without this terminal. Stop it: tltrain stop {own_id}" in err
    job = cluster.job(own_id)
    assert (job["state"], len(job["attempts"])) == ("RUNNING", 2)
    cluster.run("stop", own_id)

    # A bug of the user's: its line comes first, and it is not repeated.
    (home / "mynet.py").write_text(NETWORK)
    changes = {"model.name": None, "model.factory": "mynet:build", "model.freeze_depth": 0, "allow_code": True}
    bad = tiny_spec(digits, {**changes, "resources": {"num_workers": 2}}, name="bad")
    (home / "bad.yaml").write_text(dump_yaml(bad))
    _, err = cluster.run("submit", "bad.yaml", "--cluster", "real", "--upload", "mynet.py", code=1)
    assert "Rank 1 failed first: ValueError: a bug of mine\n  mynet.py:" in err
    assert "Not repeated: user code" in err
    own_id = id_in(err)
    assert (cluster.job(own_id)["cause"], len(cluster.job(own_id)["attempts"])) == ("user code", 1)

    cluster.run("rm", own_id)
    assert own_id not in cluster.run("jobs", "-a")[0]
    seen = cluster.run("jobs", "-a", "--json")[0] + api(cluster, "/api/jobs/")
    files = b"".join(path.read_bytes() for path in (home / "data").rglob("*") if path.is_file())
    for secret in (CANARY, cluster.token):
        assert secret not in seen
        assert secret.encode() not in files


def id_in(err: str) -> str:
    """Return the id of the job that `tltrain submit` named."""
    return next(line for line in err.splitlines() if "submitted to" in line).split()[0]


def api(cluster: Cluster, path: str) -> str:
    request = urllib.request.Request(cluster.url + path, headers={"Authorization": f"Bearer {cluster.token}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()
