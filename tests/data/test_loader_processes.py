"""Loader processes: as many as memory is enough for, nothing of them is left behind, and their death is named."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from tltrain.data import loader_processes
from tltrain.data.loader_processes import cut_connections_named, dead_loaders_named, loaded, within_shared_memory
from tltrain.errors import LostError
from tltrain.scratch import LOADER

BATCH = 100_000


@pytest.fixture
def scarce(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shared memory of 1 MB."""
    monkeypatch.setattr(loader_processes, "SHARED_MEMORY", small_disk)
    return small_disk


def test_as_many_loader_processes_as_shared_memory_is_enough_for(
    scarce: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert within_shared_memory(3, batch_bytes=BATCH) == 3
        assert not caplog.records
        assert within_shared_memory(8, batch_bytes=BATCH) == 3
        assert within_shared_memory(8, batch_bytes=BATCH, processes=2) == 1
    assert "3 loader processes instead of 8" in caplog.text
    assert "docker run --shm-size" in caplog.text


def test_full_shared_memory_is_done_without(scarce: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(scarce / "full")
    with caplog.at_level(logging.WARNING):
        assert within_shared_memory(2, batch_bytes=BATCH) == 0
    assert "0 loader processes instead of 2" in caplog.text
    assert within_shared_memory(0, batch_bytes=BATCH) == 0


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize(
    ("torch_says", "we_say"),
    [
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", r"process 12 was killed \(Killed\)\..*lower data"),
        ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", r"process 12, 13 has died\..*lower data"),
        (
            "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers ...",
            r"shared memory \(/dev/shm\) is full.*--shm-size",
        ),
    ],
)
def test_the_death_of_a_loader_process_says_what_to_do(torch_says: str, we_say: str) -> None:
    with pytest.raises(LostError, match=we_say), dead_loaders_named():
        raise RuntimeError(torch_says)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="something else"), dead_loaders_named():
        raise RuntimeError("something else")


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_connection_that_breaks_before_the_death_is_known_says_the_same(error: Exception) -> None:
    with pytest.raises(LostError, match=r"has died while it sent a batch\..*lower data"), cut_connections_named([7]):
        raise error


def test_a_connection_that_breaks_as_a_stopped_process_is_ended_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_processes, "ended_here", {8: ("stood still", "Look at what stopped it")})
    with pytest.raises(LostError, match=r"process 8 stood still.*what stopped it"), cut_connections_named([7, 8]):
        raise EOFError


def test_what_a_loader_process_stumbled_over_itself_passes() -> None:
    with pytest.raises(ConnectionResetError), cut_connections_named([7]):
        raise ConnectionResetError("Caught ConnectionResetError in DataLoader worker process 0.")


PROGRAM = """
import multiprocessing, os, signal, sys
import torch
from tltrain.data.loader_processes import loaded
from tltrain.errors import LostError

class Images(list):
    def __getitem__(self, _):
        return torch.zeros(8)

if __name__ == "__main__":
    how, fork_safe = sys.argv[1], sys.argv[2] == "fork"
    batches = loaded(Images(), [0] * 20, fork_safe, seed=0, num_workers=2, pin_memory=False)
    try:
        for number, _ in enumerate(batches):
            if number == 3 and how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if number == 3 and how == "loader killed":
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    except (RuntimeError, LostError):
        print("lost", file=sys.stderr)
"""


class Unsent(Dataset[torch.Tensor]):
    """Its loader process loses the folder of its sockets while it makes a batch."""

    def __getitem__(self, index: int) -> torch.Tensor:
        if index:
            assert tempfile.tempdir is not None
            shutil.rmtree(tempfile.tempdir)
        return torch.zeros(1)


@pytest.mark.timeout(60)
def test_a_loader_process_that_cannot_send_a_batch_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    batches = loaded(Unsent(), [1, 0], True, seed=0, num_workers=1, pin_memory=False)
    with pytest.raises(LostError, match=r"the loader process .* has died"), dead_loaders_named():
        list(batches)


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_nothing_of_loader_processes_is_left_among_temporary_files(tmp_path: Path, start_method: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)

    def left_by(how: str, temporary: str) -> tuple[list[str], str]:
        command = [sys.executable, str(tmp_path / "program.py"), how, start_method]
        environment = os.environ | {"TMPDIR": temporary}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return [name for name in os.listdir(temporary) if name.startswith(("pymp-", LOADER))], ended.stderr

    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as temporary:  # short enough for sockets
        assert left_by("killed", temporary)[0], "until the next one comes"
        assert left_by("to the end", temporary) == ([], "")
        assert left_by("loader killed", temporary) == ([], "lost\n")
