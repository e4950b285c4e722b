"""Reaching a cluster: tokens by reference, tunnels that live as long as they are needed, and what is said otherwise."""

from __future__ import annotations

import logging
import os
import stat
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tltrain.errors import ResourceError, SpecError
from tltrain.jobs.cluster_kinds import SshTunnel
from tltrain.jobs.clusters import LoadedCluster, parse_cluster
from tltrain.jobs.endpoint import Endpoint, reach, resolve, ssh_command
from tltrain.jobs.local_state import make_token, state_dir, token_path
from tltrain.jobs.processes import Process

# Forwards `-L ADDRESS:PORT:HOST:PORT` as ssh does, or `--port` as `ray dashboard` does; notes its id and arguments.
FORWARDER = """\
import asyncio, os, sys

args = sys.argv[1:]
here = int(args[args.index("-L") + 1].split(":")[1] if "-L" in args else args[args.index("--port") + 1])
with open(os.environ["NOTES"], "w") as notes:
    print(os.getpid(), *args, file=notes)
if os.environ.get("REFUSE"):
    sys.exit("ray@host: Permission denied (publickey).")

async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()

async def forward(reader, writer):
    there = await asyncio.open_connection("127.0.0.1", int(os.environ["TARGET"]))
    await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))

async def main():
    async with await asyncio.start_server(forward, "127.0.0.1", here) as server:
        await server.serve_forever()

asyncio.run(main())
"""


class Hello(BaseHTTPRequestHandler):
    """Answers every request with `hello`."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[int]:
    """The port of a web server that stands for a dashboard."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hello) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield http.server_port
        http.shutdown()
        thread.join()


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: int) -> Path:
    """Programs that stand for ssh and ray; the file in which they note their id and arguments."""
    for name in ("ssh", "ray"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!{sys.executable}\n{FORWARDER}")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("TARGET", str(server))
    monkeypatch.setenv("RAY_TOKEN", "hunter2")
    monkeypatch.setattr("tltrain.jobs.endpoint.ray_program", lambda: str(tmp_path / "bin/ray"))
    return tmp_path / "notes"


def loaded(text: str, name: str = "lab") -> LoadedCluster:
    return LoadedCluster(name, Path(f"{name}.yaml"), parse_cluster(text, where=f"{name}.yaml", base=Path("/files")))


TUNNELS = [
    "kind: address\nssh_tunnel: {host: head, user: ray, port: 2222, identity_file: /k}\ntoken: env:RAY_TOKEN\n",
    "kind: ray-up\nconfig: up.yaml\ntoken: env:RAY_TOKEN\n",
]


@pytest.mark.parametrize("text", TUNNELS, ids=["address", "ray-up"])
def test_a_tunnel_leads_there_and_is_gone_afterwards(text: str, notes: Path) -> None:
    with reach(loaded(text)) as endpoint:
        assert urllib.request.urlopen(endpoint.url, timeout=10).read() == b"hello"
        assert endpoint.token == "hunter2"
        pid, *arguments = notes.read_text().split()
        process = Process.of(int(pid))
        assert process is not None
        assert not any("hunter2" in argument for argument in arguments)

    assert not process.is_alive


@pytest.mark.parametrize("text", TUNNELS, ids=["address", "ray-up"])
def test_what_keeps_a_tunnel_from_opening_is_told(text: str, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUSE", "1")
    with pytest.raises(ResourceError, match=r"no tunnel to lab: ray@host: Permission denied"), reach(loaded(text)):
        pass


def test_a_tunnel_is_closed_when_the_block_fails(notes: Path) -> None:
    def fail() -> None:
        with reach(loaded(TUNNELS[0])):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert Process.of(int(notes.read_text().split()[0])) is None


def test_ssh_is_told_never_to_ask_and_where_to_log_in() -> None:
    tunnel = SshTunnel(host="head", user="ray", port=2222, identity_file="/k", remote_host="10.0.0.2", remote_port=80)
    command = ssh_command(tunnel, 9000)

    assert command[:2] == ["ssh", "-N"]
    assert "BatchMode=yes" in command
    assert command[command.index("-L") + 1] == "127.0.0.1:9000:10.0.0.2:80"
    assert command[-8:] == ["-p", "2222", "-i", "/k", "-l", "ray", "--", "head"]


def test_an_address_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TOKEN", " hunter2\n")
    text = "kind: address\nurl: https://ray.example.org/x/\ntoken: env:RAY_TOKEN\nca_file: ca.pem\n"
    with reach(loaded(text)) as endpoint:
        assert endpoint == Endpoint("https://ray.example.org/x", "hunter2", Path("/files/ca.pem"))
        assert "hunter2" not in repr(endpoint)


def test_a_local_cluster_that_is_not_up_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(ResourceError, match=r"lab is not up\. Start it: tltrain cluster up lab"):
        reach(loaded("kind: local\n")).__enter__()


def test_kubernetes_takes_manifests() -> None:
    text = "kind: kuberay\nimage: x\ntoken_secret: t\nworker_groups: [{name: x, replicas: 1, cpus: 1, memory: 1Gi}]\n"
    with pytest.raises(SpecError, match="tltrain manifest SPEC --cluster lab"), reach(loaded(text)):
        pass


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("env:NOT_THERE", "the environment variable NOT_THERE is not set"),
        ("file:/not/there", "the token's file /not/there cannot be read: No such file or directory"),
        ("file:/dev/null", "the token's file /dev/null is empty"),
    ],
)
def test_a_token_that_is_not_to_be_had_is_told(reference: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    with pytest.raises(SpecError, match=said):
        resolve(reference, "c.yaml")


def test_a_token_that_others_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    token = tmp_path / "token"
    token.write_text("hunter2\n")
    token.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        assert resolve(f"file:{token}", "c.yaml") == "hunter2"
    assert "chmod 600" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_token_is_private_whatever_the_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    old = os.umask(0)
    try:
        token = token_path("lab")
    finally:
        os.umask(old)

    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    for folder in (state_dir("lab"), state_dir("lab").parent, tmp_path / "state"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    text = token.read_text()
    assert len(text) == 64
    assert not make_token(token)
    assert token.read_text() == text
    assert [path.name for path in token.parent.iterdir()] == ["token"]
