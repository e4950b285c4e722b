"""The real program under SIGTERM and Ctrl-C: alone, under torchrun and on Ray, it loses no step and goes on exactly."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from programs import Program, ended, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

TWO_RANKS = ("--standalone", "--nproc-per-node", "2")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_a_program_alone_loses_no_step(tmp_path: Path, number: int, code: int) -> None:
    program = Program(tmp_path / "struck")
    process = program.start("--local")
    program.wait_for_step(7)
    began = time.monotonic()
    process.send_signal(number)
    returned, shown = ended(process)
    assert returned == code, shown
    assert time.monotonic() - began < 20
    assert "stopping after this step" in shown
    assert "Run the same command again" in shown
    assert "Traceback" not in shown
    check_goes_on(program, tmp_path, "--local")


def check_goes_on(program: Program, folder: Path, *options: str, launcher: tuple[str, ...] = ()) -> None:
    """No step is lost: it goes on with the next one, and ends as one that was left alone."""
    assert program.run.state()["state"] == "interrupted"
    assert ended(program.start(*options, launcher=launcher))[0] == 0
    assert program.steps() == list(range(1, 21))
    alone = Program(folder / "alone", {"resources": program.spec.resources.model_dump()}, pause_s=0.0)
    assert ended(alone.start(*options, launcher=launcher))[0] == 0
    assert program.digest() == alone.digest()
    assert program.rows() == alone.rows()


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    program = Program(tmp_path / "struck", pause_s=30.0)
    process = program.start("--local")
    program.wait_for_step(1)
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    returned, shown = ended(process)
    assert returned == 130, shown
    assert time.monotonic() - began < 10


def test_two_ranks_of_torchrun_end_after_the_same_step(tmp_path: Path) -> None:
    program = Program(tmp_path / "struck", {"resources.num_workers": 2})
    process = program.start(launcher=TWO_RANKS)
    program.wait_for_step(7)
    os.kill(program.pid(1), signal.SIGTERM)  # one of them alone
    wait_until(lambda: program.run.state()["state"] == "interrupted")
    ended(process)
    assert program.steps(0) == program.steps(1)
    check_goes_on(program, tmp_path, launcher=TWO_RANKS)


@pytest.mark.ray
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_on_ray_the_workers_lose_no_step(tmp_path: Path, number: int, code: int, num_workers: int) -> None:
    program = Program(tmp_path / "struck", {"resources.num_workers": num_workers}, pause_s=0.3)
    process = program.start()
    program.wait_for_step(7)
    os.killpg(process.pid, number)  # as a terminal does, and timeout(1)
    returned, shown = ended(process)
    assert returned == code, shown
    assert "Traceback" not in shown
    assert program.run.state()["state"] == "interrupted"
    taken = program.steps()
    returned, shown = ended(program.start())
    assert returned == 0, shown
    assert program.steps() == [*taken, *range(taken[-1] + 1, 21)]
