"""Two sweeps at a time on one cluster: neither waits for the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from heads import Head, running_head
from tiny import tiny_spec

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.timeout(600)
def test_a_sweep_ends_while_an_earlier_one_trains_on_beside_it(tmp_path: Path) -> None:
    with running_head(num_cpus=4) as head:
        with start(head, tmp_path, "long", epochs=3000) as long:
            while not (tmp_path / "runs" / "long" / "trials.json").exists():
                assert long.poll() is None
                time.sleep(0.5)
            with start(head, tmp_path, "short", epochs=2) as short:
                assert short.wait(timeout=240) == 0
            assert long.poll() is None
            long.send_signal(signal.SIGTERM)
            long.wait()
        assert long.returncode == 128 + signal.SIGTERM
    assert json.loads((tmp_path / "runs" / "short" / "run.json").read_text())["state"] == "finished"


@contextmanager
def start(head: Head, folder: Path, name: str, *, epochs: int) -> Iterator[subprocess.Popen[bytes]]:
    """The sweep of two learning rates on the cluster of `head`; killed at the end of the block if it still runs."""
    sweep = {"space": {"optim.learning_rate": {"grid": [0.05, 0.02]}}, "search": "grid"}
    spec = tiny_spec(folder, {"train.epochs": epochs, "sweep": sweep}, name=name)
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(spec.model_dump(mode="json", exclude_unset=True)))  # JSON is YAML
    environment = os.environ | head.environment | {"RAY_ADDRESS": head.address}
    with subprocess.Popen([sys.executable, "-m", "tltrain.run", str(file)], env=environment) as process:
        try:
            yield process
        finally:
            process.kill()
