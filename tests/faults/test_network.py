"""A group of two machines whose network fails: cut off for a moment, slow and lossy, or cut off for ever."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from programs import Program, ended, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

CHANGES = {"resources.num_workers": 2, "checkpoint.every_steps": 2}
PORT = "29555"
NOTICED_WITHIN_S = 90.0
"""Seconds until both sides have ended: 40 until the silence is noticed, then torchrun's own end."""


class Machine:
    """A network namespace: all that two processes on two machines do not share, as far as a network can tell."""

    def __init__(self, number: int) -> None:
        self.number, self.address = number, f"10.78.0.{number + 1}"
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        wait_until(self._is_apart, limit_s=10)

    def _is_apart(self) -> bool:
        assert self._holder.poll() is None, "no network namespace"
        return Path(f"/proc/{self._holder.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()

    @property
    def on(self) -> tuple[str, ...]:
        """What a command begins with that runs here."""
        return ("nsenter", "--net", "--target", str(self._holder.pid))

    def run(self, *command: str) -> None:
        subprocess.run([*self.on, *command], check=True)

    def connect(self, other: Machine) -> None:
        """Lay a cable from here to another machine."""
        self.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(other._holder.pid))
        for machine in (self, other):
            machine.run("ip", "address", "add", f"{machine.address}/24", "dev", "eth0")
            machine.run("ip", "link", "set", "lo", "up")
            machine.run("ip", "link", "set", "eth0", "up")

    def lost_packets(self) -> int:
        """How many packets its queue has dropped."""
        command = [*self.on, "tc", "-s", "qdisc", "show", "dev", "eth0"]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return sum(map(int, re.findall(r"dropped (\d+)", shown)))

    def end(self) -> None:
        """End the namespace with its cable."""
        self._holder.kill()
        self._holder.wait()


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    try:
        subprocess.run(
            ["unshare", "--net", "ip", "link", "add", "a0", "type", "veth", "peer", "name", "a1"], check=True
        )
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("network namespaces are not permitted here")
    machines = [Machine(number) for number in range(2)]
    try:
        machines[0].connect(machines[1])
        yield machines
    finally:
        for machine in machines:
            machine.end()


def start(program: Program, machines: list[Machine]) -> list[subprocess.Popen[str]]:
    """Start one rank on each machine, by torchrun."""
    common = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", machines[0].address, "--master-port", PORT)
    return [
        program.start(launcher=(*common, "--node-rank", str(machine.number)), on=machine.on, GLOO_SOCKET_IFNAME="eth0")
        for machine in machines
    ]


def cut_for_10_s(machines: list[Machine]) -> None:
    machines[1].run("ip", "link", "set", "eth0", "down")
    time.sleep(10)
    machines[1].run("ip", "link", "set", "eth0", "up")


def slow_and_lossy(machines: list[Machine]) -> None:
    """A queue of 6 packets before 4 Mbit/s: what waits is late, and what finds the queue full is lost."""
    for machine in machines:
        machine.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "4mbit", "burst", "3kb", "limit", "9kb")


@pytest.fixture
def alone(tmp_path: Path) -> Program:
    """Two ranks of one machine that nothing happens to."""
    program = Program(tmp_path / "alone", CHANGES, pause_s=0.0)
    launcher = ("--standalone", "--nproc-per-node", "2")
    returned, shown = ended(program.start(launcher=launcher))
    assert returned == 0, shown
    return program


@pytest.mark.parametrize("fault", [cut_for_10_s, slow_and_lossy])
def test_a_network_that_fails_for_a_while_costs_time_and_nothing_else(
    machines: list[Machine], alone: Program, tmp_path: Path, fault: Callable[[list[Machine]], None]
) -> None:
    program = Program(tmp_path / "struck", CHANGES, pause_s=0.3)
    processes = start(program, machines)
    program.wait_for_step(5)
    fault(machines)
    assert len(program.steps()) < 20, "nothing was left to be disturbed"
    for process in processes:
        returned, shown = ended(process)
        assert returned == 0, shown
    assert fault is not slow_and_lossy or any(machine.lost_packets() for machine in machines)
    assert (program.digest(), program.rows()) == (alone.digest(), alone.rows())
    assert program.steps(1) == list(range(1, 21)), "no rank was started again"


def test_a_machine_that_is_cut_off_for_ever_is_named_and_the_run_goes_on_exactly(
    machines: list[Machine], alone: Program, tmp_path: Path
) -> None:
    program = Program(tmp_path / "struck", CHANGES, pause_s=0.3)
    processes = start(program, machines)
    program.wait_for_step(7)
    began, pid = time.monotonic(), program.pid(1)
    machines[1].run("ip", "link", "set", "eth0", "down")
    shown = [ended(process) for process in processes]
    assert time.monotonic() - began < NOTICED_WITHIN_S
    assert all(returned != 0 for returned, _ in shown), shown
    state = program.run.state()
    assert (state["state"], state["cause"]) == ("failed", "node lost")
    assert re.search(rf"no sign of life from rank 1 \(process {pid} on .*stopped, or cut off", state["error"][0]), state
    assert "the ranks' store has not answered" in shown[1][1]

    machines[1].run("ip", "link", "set", "eth0", "up")
    for process in start(program, machines):
        returned, text = ended(process)
        assert returned == 0, text
    assert (program.digest(), program.rows()) == (alone.digest(), alone.rows())
