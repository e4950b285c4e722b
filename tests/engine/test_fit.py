"""Training on a real Ray cluster: worker groups, their losses, and what is refused."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
import ray
from ray._private import state as ray_state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import RayActorError
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from tiny import tiny_spec

from tltrain.engine.cleaner import CleanerCallback, PlacementGroupCleaner
from tltrain.engine.cluster import connected, live_nodes
from tltrain.engine.fit import build_trainer, fit
from tltrain.engine.left_on_nodes import delete_on_nodes
from tltrain.engine.plan import make_request
from tltrain.engine.reserved import placement_groups
from tltrain.errors import DataError, ResourceError, RunError
from tltrain.lease import LEASE_FILE, hold
from tltrain.run_folder import RunFolder
from tltrain.scratch import LOADER
from tltrain.spec.load import dump_yaml
from tltrain.spec.schema import ResourcesSpec, Spec
from tltrain.train.distributed import Group
from tltrain.train.node_folder import NodeFolder
from tltrain.train.session import fine_tune

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]

FRAGILE = '''
"""A network of the user's own whose worker kills itself once, at a given optimiser step."""
import os, signal
from pathlib import Path
import torchvision
from tltrain.train.lane import Lane

update = Lane.update

def deadly_update(lane, step):
    marker = Path({marker!r})
    if step == {step} and lane.group.rank == lane.group.world_size - 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    update(lane, step)

Lane.update = deadly_update

def build(num_classes):
    return torchvision.models.shufflenet_v2_x0_5(num_classes=num_classes)
'''

STUCK = '''
"""A network of the user's own; one of its images is not read at the first time."""
import time
from pathlib import Path
import torchvision
from tltrain.data import loader, waiting

decode = loader.decode
waiting.LOOK_S = 1.0

def stuck_once(content, name):
    try:
        Path({marker!r}).touch(exist_ok=False)
    except FileExistsError:
        return decode(content, name)
    time.sleep(3600)

loader.decode = stuck_once

def build(num_classes):
    return torchvision.models.shufflenet_v2_x0_5(num_classes=num_classes)
'''


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One private cluster for all tests here."""
    with connected():
        yield


def prepared(spec: Spec) -> RunFolder:
    run = RunFolder.at(spec.storage, spec.name)
    run.write_spec(dump_yaml(spec))
    return run


def train(spec: Spec) -> tuple[RunFolder, dict[str, Any]]:
    run = prepared(spec)
    return run, fit(spec, run, poll=lambda: None)


def digest(run: RunFolder) -> str:
    assert run.model.local_path is not None
    return hashlib.sha256((run.model.local_path / "model.safetensors").read_bytes()).hexdigest()


def fine_tune_plainly(group: Group, spec: Spec) -> None:
    fine_tune(spec, RunFolder.at(spec.storage, spec.name), group)


def fragile_spec(folder: Path, name: str, step: int, monkeypatch: pytest.MonkeyPatch) -> Spec:
    module = f"fragile_{name.replace('-', '_')}"
    (folder / f"{module}.py").write_text(FRAGILE.format(marker=str(folder / f"{name}.died"), step=step))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    changes = {
        "allow_code": True,
        "model": {"factory": f"{module}:build", "weights": "random", "freeze_depth": 2},
        "resources.num_workers": 2,
        "checkpoint.every_steps": 2,
    }
    return tiny_spec(folder, changes, name=name)


def test_two_ray_workers_give_the_bits_of_two_plain_processes(cluster: None, tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, {"resources.num_workers": 2}, name="on-ray")
    run, summary = train(spec)
    assert summary["evaluation"]["num_images"] == 45
    assert run.state()["attempts"] == 1
    assert "ray" not in run.folder.names()
    plain = tiny_spec(tmp_path, {"resources.num_workers": 2}, name="plain")
    ranks.run(2, fine_tune_plainly, plain)
    assert digest(run) == digest(RunFolder.at(plain.storage, plain.name))


def test_a_worker_killed_in_mid_epoch_costs_a_restart_and_no_bit(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never, once = (fragile_spec(tmp_path, name, step, monkeypatch) for name, step in (("clean", -1), ("killed", 3)))
    ranks.run(2, fine_tune_plainly, never)
    killed, _ = train(once)
    assert (tmp_path / "killed.died").exists()
    assert killed.state()["attempts"] == 2
    assert digest(killed) == digest(RunFolder.at(never.storage, never.name))
    steps = [(row["lane"], row["step"]) for row in killed.metrics()]
    assert steps == [("lane-0", 5), ("lane-0", 10)]


def test_a_worker_that_reads_images_itself_and_gets_none_is_lost_for_a_reason_that_is_told(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "stuck.py").write_text(STUCK.format(marker=str(tmp_path / "was-stuck")))
    monkeypatch.chdir(tmp_path)
    changes = {
        "allow_code": True,
        "model": {"factory": "stuck:build", "weights": "random", "freeze_depth": 2},
        "resources": {"loader_timeout_s": 3.0},
    }
    stuck, _ = train(tiny_spec(tmp_path, changes, name="stuck-once"))
    assert stuck.state()["attempts"] == 2
    assert "; it had waited for images, of which none have come for 2 s: process " in caplog.text
    assert "(it waits), which reads images itself" in caplog.text
    clean, _ = train(tiny_spec(tmp_path, changes, name="never-stuck"))
    assert clean.state()["attempts"] == 1
    assert digest(stuck) == digest(clean)


def test_an_error_of_the_data_is_raised_as_it_is_and_not_retried(cluster: None, tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, {"data.train": str(tmp_path / "nowhere.parquet")})
    run = prepared(spec)
    with pytest.raises(DataError, match="nowhere"):
        fit(spec, run, poll=lambda: None)
    assert run.state()["attempts"] == 1


def test_a_request_that_can_never_be_met_is_refused_with_the_arithmetic(cluster: None, tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, {"resources": {"num_workers": 64, "gpus_per_worker": 8, "wait_s": 0.1}})
    with pytest.raises(ResourceError, match=r"64 worker\(s\) of 1 CPU \+ 8 GPU .* holds 0"):
        fit(spec, prepared(spec), poll=lambda: None)


def test_workers_write_nothing_more_once_another_attempt_has_taken_over(cluster: None, tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, {"train.epochs": 50}, name="fenced")
    run, left = prepared(spec), []

    def take_over() -> None:
        if run.metrics() and not left:
            lease = run.read_json(LEASE_FILE)
            run.write_json(LEASE_FILE, {**lease, "owner": "another", "attempt": 2})
            left.append(run.folder.read_bytes("run.json"))

    with pytest.raises(RunError, match="another attempt has taken over"), hold(run.folder) as folder:
        fit(spec, RunFolder(folder), poll=take_over)
    assert left == [run.folder.read_bytes("run.json")]
    assert len(run.metrics()) < 50
    assert run.read_json(LEASE_FILE)["owner"] == "another"


@pytest.mark.slow
def test_an_elastic_run_takes_what_the_cluster_has(cluster: None, tmp_path: Path) -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    spec = tiny_spec(tmp_path, {"resources.num_workers": {"min": 1, "max": cpus}, "train.batch_size": 32})
    run, _ = train(spec)
    assert len(run.metrics()) == 2


def start_driver(folder: Path, spec_path: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "tltrain.run", str(spec_path)], cwd=folder, env=environment, start_new_session=True
    )


@pytest.mark.slow
def test_the_driver_killed_and_started_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    changes = {"checkpoint.every_steps": 1, "train.epochs": 6}
    clean, spec = (tiny_spec(tmp_path, changes, name=name) for name in ("driver-clean", "driver-killed"))
    ranks.run(1, fine_tune_plainly, clean)

    path = tmp_path / "killed.yaml"
    path.write_text(dump_yaml(spec))
    driver = start_driver(tmp_path, path)
    killed = RunFolder.at(spec.storage, spec.name)
    deadline = time.monotonic() + 120
    while not killed.metrics() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert killed.state()["state"] == "running"
    assert start_driver(tmp_path, path).wait(timeout=240) == 0
    assert digest(killed) == digest(RunFolder.at(clean.storage, clean.name))
    assert len(killed.metrics()) == 6


def test_what_dying_workers_have_left_on_a_node_is_deleted_there(
    cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = prepared(tiny_spec(tmp_path, name="left"))
    left = NodeFolder(run.uri)
    (left.path / "kept.arrow").write_bytes(b"kept")
    delete_on_nodes(run, wait_s=0)
    assert left.path.exists(), "somebody uses it"
    assert "a process still uses them" in caplog.text
    dying = threading.Timer(1, os.close, [left._users])  # as the end of a process does
    dying.start()
    sockets = Path(tempfile.mkdtemp(prefix=LOADER))
    (sockets / ".held").touch()
    (sockets / "pymp-1").mkdir()
    delete_on_nodes(run)
    dying.join()
    assert not left.path.exists()
    assert not sockets.exists()


def test_rays_cleaner_removes_what_a_dead_controller_had_reserved_and_ends_though_nobody_has_told_it_anything(
    cluster: None, tmp_path: Path
) -> None:
    """One that dies while its workers start tells nobody of what it has reserved, and a driver asks nobody to watch."""
    request = make_request(ResourcesSpec(), live_nodes())
    trainer = build_trainer(
        print, {"lease": {}}, tiny_spec(tmp_path), RunFolder.at(str(tmp_path), "r"), request, name=""
    )
    names = [type(callback) for callback in trainer._create_default_callbacks()]
    assert CleanerCallback in names
    assert PlacementGroupCleanerCallback not in names

    controller: Any = Controller.remote()
    watched, reserved = ray.get([controller.name.remote(), controller.reserve.remote()])
    options = {"check_interval_s": 0.1, "get_actor_timeout_s": 1, "stop_timeout": 2.0}
    detached = ray.remote(num_cpus=0)(PlacementGroupCleaner).options(lifetime="detached")
    cleaner: Any = detached.remote(controller_actor_id=watched, **options)
    ray.get(cleaner.__ray_ready__.remote())
    time.sleep(1)  # in which it looks some times
    assert state_of(cleaner) == "ALIVE"
    ray.kill(controller)
    while state_of(cleaner) != "DEAD":
        time.sleep(0.1)
    assert placement_group_table(reserved)["state"] == "REMOVED"


def test_workers_that_die_just_when_they_begin_leave_nothing_reserved(cluster: None, tmp_path: Path) -> None:
    """Ray Train's controller forgets such a group, and ends by itself."""

    class Dies(WorkerGroupCallback):  # in here, so that Ray sends it as it stands
        def after_worker_group_training_start(self, worker_group: Any) -> None:
            raise RayActorError

    request = make_request(ResourcesSpec(), live_nodes())
    run = RunFolder.at(str(tmp_path), "r")
    trainer = build_trainer(print, {"lease": {}}, tiny_spec(tmp_path), run, request, name="begin")
    trainer.run_config.callbacks = [Dies()]  # pyright: ignore[reportAttributeAccessIssue]
    before = {group.placement_group_id for group in placement_groups()}
    with pytest.raises(TrainingFailedError, match="actor experienced an error"):
        trainer.fit()
    deadline = time.monotonic() + 60  # the cleaner's own process may still be starting
    while True:
        (made,) = (group for group in placement_groups() if group.placement_group_id not in before)
        if made.state == PlacementGroupTableData.REMOVED:
            break
        assert time.monotonic() < deadline, "what was reserved stays so"
        time.sleep(0.1)


@ray.remote(num_cpus=0)
class Controller:
    """An actor that says which one it is, and reserves something."""

    def name(self) -> str | None:
        return ray.get_runtime_context().get_actor_id()

    def reserve(self) -> PlacementGroup:
        reserved = placement_group([{"CPU": 1}])
        ray.get(reserved.ready())
        return reserved


def state_of(actor: Any) -> Any:
    return ray_state.actors(actor._actor_id.hex())["State"]


@pytest.mark.slow
def test_a_ray_that_is_made_differently_inside_keeps_its_own_cleaner() -> None:
    lines = [
        "import sys",
        "sys.modules['tltrain.engine.cleaner'] = None",
        "from tltrain.engine import fit",
        "print(fit.Trainer.__module__.startswith('ray.'))",
    ]
    told = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert told.stdout == "True\n"
