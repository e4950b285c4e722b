"""Ctrl-C and SIGTERM: at once, or at the next step with a checkpoint; the second one at once. Errors from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_spec

import tltrain.run as far_side
from tltrain import stopping
from tltrain.errors import LostError
from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml, load_spec
from tltrain.train.checkpoint import Checkpoints
from tltrain.train.lane import Lane

ENDS: dict[int, type[BaseException]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}
TIMES = ("train_images_per_s", "epoch_s")


@pytest.fixture(autouse=True)
def handlers_as_they_were() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ENDS}
    yield
    assert {number: signal.getsignal(number) for number in ENDS} == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@contextlib.contextmanager
def ended_by(number: int, expected: list[str]) -> Iterator[list[str]]:
    """Handle signals in a `with` block that `number` has to end, after it has noted what is `expected`."""
    notes: list[str] = []
    with pytest.raises(ENDS[number]) as caught, stopping.handled():
        yield notes
    assert notes == expected
    assert not isinstance(caught.value, SystemExit) or caught.value.code == 143
    assert stopping.wished() == 0


@pytest.mark.parametrize("number", ENDS)
def test_what_does_not_look_is_ended_at_once(number: int) -> None:
    with ended_by(number, []) as notes:
        send(number)
        notes.append("it went on")


@pytest.mark.parametrize("number", ENDS)
def test_what_looks_is_told_and_ends_in_its_own_time(number: int) -> None:
    with ended_by(number, ["it went on"]) as notes, stopping.deferred():
        send(number)
        assert stopping.wished() == number
        notes.append("it went on")
        stopping.end(number)


@pytest.mark.parametrize("second", ENDS)
def test_a_second_signal_ends_at_once(second: int) -> None:
    with ended_by(second, ["first"]) as notes, stopping.deferred():
        send(signal.SIGINT)
        notes.append("first")
        send(second)
        notes.append("second")


def test_a_wish_that_nobody_followed_is_followed_where_the_looking_ends() -> None:
    with ended_by(signal.SIGINT, ["looking"]) as notes:
        with stopping.deferred():
            send(signal.SIGINT)
            notes.append("looking")
        notes.append("it went on")


def wait_for_ever() -> None:
    """Read what never comes, as code that takes each error for its own: it waits with it, and goes on after it."""
    empty, _keeps_it_open = os.pipe()
    with stopping.handled():
        """What is handled once more, inside, stays so after it."""
    try:
        os.read(empty, 1)
    except Exception as error:
        raise AssertionError("taken for an error of the read") from error


@pytest.mark.timeout(60)
@pytest.mark.parametrize("is_deferred", [True, False])
def test_the_main_thread_raises_what_another_thread_gives_it_up_with(is_deferred: bool) -> None:
    gone = LostError("the images are gone", "Look there")
    threading.Timer(0.5, stopping.give_up, [gone]).start()
    noted = stopping.deferred() if is_deferred else contextlib.nullcontext()
    with pytest.raises(LostError) as raised, stopping.handled(), noted:
        wait_for_ever()
    assert raised.value is gone
    test_what_does_not_look_is_ended_at_once(signal.SIGTERM)  # as before


UNHANDLED = """
import threading, time
from tltrain.errors import LostError
from tltrain.stopping import give_up

threading.Thread(target=give_up, args=[LostError("the images are gone")]).start()
time.sleep(3600)
"""
DEAF = """
import threading, time
from tltrain.errors import LostError
from tltrain.stopping import give_up, handled

def give_up_again_and_again():
    while True:
        time.sleep(0.5)
        give_up(LostError("the images are gone"))

with handled():
    threading.Thread(target=give_up_again_and_again).start()
    while True:
        try:
            time.sleep(3600)
        except BaseException as error:
            print("deaf to", error, flush=True)
"""


@pytest.mark.parametrize("program", [UNHANDLED, DEAF], ids=["unhandled", "deaf"])
def test_what_nobody_raises_ends_the_program(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == LostError.exit_code
    assert "the images are gone" in done.stderr
    assert ("deaf to the images are gone" in done.stdout) == (program == DEAF)


@pytest.mark.parametrize("number", ENDS)
def test_a_run_that_is_told_to_stop_loses_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    spec = tiny_spec(tmp_path, {"checkpoint.every_epochs": 2})  # 5 steps an epoch
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_yaml(spec))
    steps, update = list[int](), Lane.update

    def told_at_seven(lane: Lane, step: int) -> None:
        update(lane, step)
        steps.append(step + 1)
        if step + 1 == 7:
            send(number)

    run = RunFolder.at(spec.storage, spec.name)
    with monkeypatch.context() as patch:
        patch.setattr(Lane, "update", told_at_seven)
        with pytest.raises(ENDS[number]) as ended:
            far_side.execute(load_spec(path), local=True)
        assert not isinstance(ended.value, SystemExit) or ended.value.code == 143
        assert run.state()["state"] == "interrupted"
        assert Checkpoints(run.checkpoints, keep=1).steps()[-1] == 7
        assert far_side.execute(load_spec(path), local=True) == 0
    assert steps == list(range(1, 11))
    assert rows(run) == rows(run_alone(tmp_path))


def run_alone(folder: Path) -> RunFolder:
    spec = tiny_spec(folder, {"checkpoint.every_epochs": 2}, name="alone")
    path = folder / "alone.yaml"
    path.write_text(dump_yaml(spec))
    assert far_side.execute(load_spec(path), local=True) == 0
    return RunFolder.at(spec.storage, spec.name)


def rows(run: RunFolder) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in run.metrics()]
