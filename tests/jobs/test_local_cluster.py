"""A head on this machine: up and down as often as one likes, with a token, on loopback, and without a trace left."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tltrain.cli.main import app
from tltrain.errors import ResourceError, StorageError
from tltrain.jobs import local_cluster, processes
from tltrain.jobs.clusters import LoadedCluster, LocalCluster
from tltrain.jobs.endpoint import reach
from tltrain.jobs.local_state import LocalState, read_state, state_dir, token_path
from tltrain.jobs.processes import Process
from tltrain.jobs.start_hook import HOOK, stay_on_loopback

# Stands for `ray start --head --block`: a dashboard that wants the token, and two children, one of which leaves the
# family's session as a job's driver does and takes no notice of SIGTERM.
HEAD = """\
import os, signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

if os.environ.get("HEAD_FAILS"):
    sys.exit("GCS cannot find its socket")
options = dict(arg[2:].partition("=")[::2] for arg in sys.argv[2:])
token = open(os.environ["RAY_AUTH_TOKEN_PATH"]).read()
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

class Dashboard(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.headers["Authorization"] == f"Bearer {token}" else 401)
        self.end_headers()
        self.wfile.write(b'{"data": {"result": {"result": [{"state": "ALIVE"}]}}}')
    def log_message(self, *args):
        pass

signal.signal(signal.SIGTERM, lambda *args: sys.exit(0))
HTTPServer((options["dashboard-host"], int(options["dashboard-port"])), Dashboard).serve_forever()
"""
LOCAL = LocalCluster(kind="local", num_cpus=2, num_gpus=0)


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own for what is remembered of clusters; clusters that a test leaves up are ended."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield tmp_path / "state"
    for folder in (tmp_path / "state/tltrain").glob("*/cluster.json"):
        local_cluster.down(folder.parent.name)


@pytest.fixture
def fake_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of `ray`."""
    program = tmp_path / "ray"
    program.write_text(f"#!{sys.executable}\n{HEAD}")
    program.chmod(0o755)
    monkeypatch.setattr(local_cluster, "ray_program", lambda: str(program))
    monkeypatch.setattr(local_cluster, "END_GRACE_S", 0.5)
    return program


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours that no cluster may touch."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def is_gone(process: Process) -> bool:
    """Whether a process ends within a few seconds: what a killed one leaves behind is there for a moment."""
    deadline = time.monotonic() + 5
    while process.is_alive:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_up_and_down_are_idempotent_and_end_what_was_started_alone(
    fake_ray: Path, bystander: subprocess.Popen[bytes]
) -> None:
    state, is_new = local_cluster.up("lab", LOCAL)
    assert is_new
    assert local_cluster.up("lab", LOCAL) == (state, False)
    assert read_state("lab") == state
    assert len(state.processes) == 3
    assert local_cluster.state_of("lab") == "up"
    assert len({os.getsid(process.pid) for process in state.processes}) == 2

    assert local_cluster.down("lab")

    assert all(is_gone(process) for process in state.processes)
    assert bystander.poll() is None
    assert not Path(state.temp_dir).exists()
    assert local_cluster.state_of("lab") == "down"
    assert not local_cluster.down("lab")


def test_a_head_that_died_is_cleared_away_before_the_next(fake_ray: Path) -> None:
    state, _ = local_cluster.up("lab", LOCAL)
    token = token_path("lab").read_text()
    os.kill(state.processes[0].pid, 9)
    assert is_gone(state.processes[0])

    assert local_cluster.state_of("lab") == "died"
    with pytest.raises(ResourceError, match="lab is not up"):
        reach(LoadedCluster("lab", Path("lab.yaml"), LOCAL)).__enter__()

    again, is_new = local_cluster.up("lab", LOCAL)
    assert is_new
    assert all(is_gone(process) for process in state.processes)
    assert not Path(state.temp_dir).exists()
    assert again.is_alive
    assert token_path("lab").read_text() == token


def test_a_head_that_does_not_start_is_told_with_its_own_words(fake_ray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEAD_FAILS", "1")
    said = r"the head of lab did not start: it ended with code 1: GCS cannot find its socket\. What it wrote is in "
    with pytest.raises(ResourceError, match=said):
        local_cluster.up("lab", LOCAL)
    assert local_cluster.state_of("lab") == "down"
    assert local_cluster.log_path("lab").exists()


def test_an_interrupted_start_leaves_nothing(fake_ray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[LocalState] = []

    def interrupt(*args: object) -> None:
        state = read_state("lab")
        assert state is not None, "the head is remembered before it is up"
        started.append(state)
        raise KeyboardInterrupt

    monkeypatch.setattr(local_cluster, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        local_cluster.up("lab", LOCAL)

    assert is_gone(started[0].processes[0])
    assert not Path(started[0].temp_dir).exists()
    assert local_cluster.state_of("lab") == "down"


def test_a_port_that_is_taken_is_told(fake_ray: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"port {port} cannot be listened on: .* 0 takes a free one"):
            local_cluster.up("lab", LocalCluster(kind="local", dashboard_port=port))


def test_a_damaged_record_is_told(state_home: Path) -> None:
    path = state_dir("lab") / "cluster.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"url": 1}')
    with pytest.raises(StorageError, match=r"cluster\.json: the file cannot be read"):
        read_state("lab")
    path.unlink()


def test_a_later_process_with_the_same_id_is_not_taken_for_the_head(bystander: subprocess.Popen[bytes]) -> None:
    process = Process.of(bystander.pid)
    assert process is not None
    earlier = Process(process.pid, process.started - 1)

    assert not earlier.is_alive
    assert processes.family([earlier]) == set()
    processes.end(earlier, (), grace_s=0.1)
    assert bystander.poll() is None


def test_a_heads_command_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    command = local_cluster.start_command(LocalCluster(kind="local"), temp_dir="/tmp/x", ports={"port": 1})
    own = local_cluster.environment("lab")

    assert "--port=1" in command
    assert not [option for option in command if option.startswith(("--num-cpus", "--num-gpus"))]
    assert token_path("lab").read_text() not in " ".join([*command, *own.values()])
    assert own["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert {name: value for name, value in own.items() if name.startswith("RAY_")} == {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path("lab")),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",
        "RAY_START_HOOK": HOOK,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    module, _, name = HOOK.rpartition(".")
    assert getattr(sys.modules[module], name) is stay_on_loopback


def listening(members: set[Process]) -> list[str]:
    """Return the addresses on which processes listen."""
    pids = {process.pid for process in members}
    listed = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    return [line.split()[3] for line in listed.splitlines() if pids & set(map(int, re.findall(r"pid=(\d+)", line)))]


def status_of(request: urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.ray
def test_a_real_head_listens_on_loopback_alone_and_wants_a_token(tmp_path: Path, state_home: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text("kind: local\nnum_cpus: 2\nnum_gpus: 0\n")
    run = CliRunner()

    up = run.invoke(app, ["cluster", "up", str(path)])
    assert up.exit_code == 0, up.output
    state = read_state("lab")
    assert state is not None
    assert state.url in up.stdout

    family = processes.family(state.processes)
    addresses = listening(family)
    assert len(addresses) > 4
    assert [address for address in addresses if not re.match(r"(127\.0\.0\.1|\[::ffff:127\.0\.0\.1\]):", address)] == []

    for method, resource in (("GET", "jobs/"), ("POST", "jobs/"), ("DELETE", "jobs/x"), ("GET", "version")):
        request = urllib.request.Request(f"{state.url}/api/{resource}", method=method, data=b"{}")
        assert status_of(request) == 401
        request.add_header("Authorization", "Bearer wrong")
        assert status_of(request) == 403
    mode = stat.S_IMODE(token_path("lab").stat().st_mode)
    arguments = [Path(f"/proc/{process.pid}/cmdline").read_bytes() for process in family if process.is_alive]
    assert mode == 0o600
    assert not any(token_path("lab").read_bytes() in each for each in arguments)

    shown = run.invoke(app, ["cluster", "status", str(path), "--json"])
    facts = json.loads(shown.stdout)
    assert (facts["name"], facts["state"], facts["url"], facts["jobs"]) == ("lab", "up", state.url, {})

    down = run.invoke(app, ["cluster", "down", str(path)])
    assert down.exit_code == 0, down.output
    assert all(is_gone(process) for process in family)
    assert not Path(state.temp_dir).exists()
    assert run.invoke(app, ["cluster", "status", str(path)]).stdout.startswith("lab: down\n")
