"""What this machine has, without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tltrain import machine


@pytest.mark.parametrize(("visible", "number"), [("", 0), ("0", 1), ("0,1, 2", 3), ("-1", 0), ("1,-1,2", 1)])
def test_visible_devices_are_counted_as_cuda_counts_them(
    visible: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert machine.num_gpus() == number


def test_gpus_are_those_that_the_driver_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "gpus")

    assert machine.num_gpus() == 2


def test_without_a_driver_the_program_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.num_gpus() == 0

    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")
    program.chmod(0o755)
    assert machine.num_gpus() == 1
