"""Storage that fails in the middle of a run: it ends well or with one clear message, and goes on exactly."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from s3_proxy import CUTS_UPLOADS, FAILS, IS_LATE, TROUBLES, Proxy, misbehaving
from tiny import tiny_spec

from tltrain.errors import StorageError
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.storage import Folder
from tltrain.train.checkpoint import Checkpoints
from tltrain.train.distributed import Group
from tltrain.train.lane import Lane
from tltrain.train.session import fine_tune

ALONE = Group(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))
SETTINGS = {"checkpoint.every_steps": 2, "checkpoint.keep": 1}
TIMES = ("train_images_per_s", "epoch_s")
FOR_EVER = 10**9


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[Proxy]:
    with misbehaving(s3_endpoint) as running:
        yield running


@pytest.fixture
def far(proxy: Proxy, s3_endpoint: str, s3_uri: str) -> Folder:
    """A folder of S3 by way of the proxy."""
    return Folder.open(s3_uri.replace(s3_endpoint, proxy.address))


def directly(far: Folder, proxy: Proxy, s3_endpoint: str) -> Folder:
    return Folder.open(far.uri.replace(proxy.address, s3_endpoint))


OLD, NEW = b"old" * 1000, os.urandom(200_000)


@pytest.mark.parametrize("kind", TROUBLES)
def test_a_short_trouble_of_s3_costs_nothing(far: Folder, proxy: Proxy, kind: str) -> None:
    far.write_bytes("file", OLD)
    trouble = proxy.begin(kind, 1)
    far.write_bytes("file", NEW)
    assert trouble.happened == 1
    assert far.read_bytes("file") == NEW


@pytest.mark.parametrize("kind", [FAILS, pytest.param(CUTS_UPLOADS, marks=pytest.mark.slow)])
def test_a_long_trouble_of_s3_is_told_once_and_leaves_the_old_file(
    far: Folder, proxy: Proxy, s3_endpoint: str, kind: str
) -> None:
    far.write_bytes("file", OLD)
    trouble = proxy.begin(kind, FOR_EVER)
    with pytest.raises(StorageError) as error:
        far.write_bytes("file", NEW)
    (problem,) = error.value.problems
    assert str(far) in str(problem)
    assert problem.action
    assert trouble.happened >= 1
    assert directly(far, proxy, s3_endpoint).read_bytes("file") == OLD


@pytest.mark.parametrize("new", [OLD[:-1], OLD + b"new", b""], ids=["shorter", "longer", "empty"])
def test_a_file_that_is_replaced_while_it_is_read_is_the_new_one(
    far: Folder, proxy: Proxy, s3_endpoint: str, new: bytes
) -> None:
    beside = directly(far, proxy, s3_endpoint)
    far.write_bytes("file", OLD)
    asked = proxy.begin(IS_LATE, 1, method="GET", part="file", first=lambda: beside.write_bytes("file", new))
    assert far.read_bytes("file") == new
    assert asked.happened == 1


def test_a_file_that_is_replaced_again_and_again_is_read_once_that_ends_or_said_to_be(
    far: Folder, proxy: Proxy, s3_endpoint: str
) -> None:
    beside, count = directly(far, proxy, s3_endpoint), itertools.count(1)

    def replace() -> None:
        beside.write_bytes("file", b"x" * next(count))

    far.write_bytes("file", OLD)
    proxy.begin(IS_LATE, 5, method="GET", part="file", first=replace)
    assert far.read_bytes("file") == b"x" * 5
    proxy.begin(IS_LATE, FOR_EVER, method="GET", part="file", first=replace)
    with pytest.raises(StorageError, match="replaced each of the 20 times"):
        far.read_bytes("file")


@pytest.mark.slow
@pytest.mark.parametrize("times", [2, FOR_EVER], ids=["for a moment", "for ever"])
@pytest.mark.parametrize("kind", TROUBLES)
def test_a_run_on_s3_ends_well_or_clearly_and_goes_on_exactly(
    tmp_path: Path, far: Folder, proxy: Proxy, s3_endpoint: str, kind: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(tmp_path, SETTINGS | {"storage": far.uri})
    run = RunFolder.at(spec.storage, spec.name)
    with at_step(5, lambda: proxy.begin(kind, times, part="checkpoints/")), contextlib.suppress(StorageError):
        fine_tune(spec, run, ALONE)
    proxy.begin(kind, 0)
    direct = RunFolder(directly(run.folder, proxy, s3_endpoint))
    whole = Checkpoints(direct.checkpoints, keep=9)
    for step in whole.steps():  # what says that it is whole can be read
        whole.load(step)
    fine_tune(spec, run, ALONE)
    assert_equal(direct, clean_run(tmp_path))


@contextlib.contextmanager
def at_step(step: int, act: Callable[[], Any]) -> Iterator[None]:
    """Call `act` before optimiser step `step` (0-based) of a `with` block."""
    update = Lane.update

    def acting(lane: Lane, at: int) -> None:
        if at == step:
            act()
        update(lane, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lane, "update", acting)
        yield


def clean_run(folder: Path) -> RunFolder:
    spec = tiny_spec(folder, SETTINGS, name="clean")
    run = RunFolder.at(spec.storage, spec.name)
    fine_tune(spec, run, ALONE)
    return run


def assert_equal(run: RunFolder, clean: RunFolder) -> None:
    assert digest(run) == digest(clean)
    assert run.checkpoints.names() == clean.checkpoints.names()
    assert rows(run) == rows(clean)


def digest(run: RunFolder) -> str:
    return hashlib.sha256(run.model.read_bytes("model.safetensors")).hexdigest()


def rows(run: RunFolder) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in run.metrics()]


@pytest.mark.slow
def test_a_run_on_a_disk_that_is_full_says_so_and_goes_on_where_there_is_room(tmp_path: Path, small_disk: Path) -> None:
    spec = tiny_spec(tmp_path, SETTINGS | {"storage": str(small_disk)})
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    run = RunFolder.at(spec.storage, spec.name)
    ballast = small_disk / "ballast"
    with at_step(5, lambda: fill(ballast)), pytest.raises(StorageError, match=r"No space left.*Free some space"):
        fine_tune(spec, run, ALONE)
    assert not [path for path in small_disk.rglob("*.tmp")]
    ballast.unlink()
    fine_tune(spec, run, ALONE)
    assert_equal(run, clean_run(tmp_path))


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def train_unprivileged(group: Group, spec: Spec, lose_permission: bool) -> str:
    """Train as nobody; before the sixth step the run folder becomes read-only, where `lose_permission`."""
    run = RunFolder.at(spec.storage, spec.name)
    if lose_permission:
        with at_step(5, lambda: lock(Path(run.uri))):
            return message(lambda: fine_tune(spec, run, group))
    os.setgid(65534)
    os.setuid(65534)
    return message(lambda: fine_tune(spec, run, group))


def lock(folder: Path) -> None:
    """Take the right to write from all folders of a run, and this process's right to do so nevertheless."""
    for path in (folder, *(each for each in folder.rglob("*") if each.is_dir())):
        path.chmod(0o555)
    os.setgid(65534)
    os.setuid(65534)


def message(act: Callable[[], Any]) -> str:
    try:
        act()
    except StorageError as error:
        return str(error)
    return ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
@pytest.mark.parametrize(
    "is_lost_midway",
    [pytest.param(False, marks=pytest.mark.slow, id="from the start"), pytest.param(True, id="in the middle")],
)
def test_a_run_that_may_not_write_says_so_and_goes_on_when_it_may(tmp_path: Path, is_lost_midway: bool) -> None:
    open_to_all(tmp_path)
    spec = tiny_spec(tmp_path, SETTINGS)
    folder = Path(spec.storage)
    folder.mkdir(mode=0o755)
    (told,) = ranks.run(1, train_unprivileged, spec, is_lost_midway)
    assert str(folder / "tiny") in told
    assert "Permission denied" in told
    assert "Give this user permission" in told
    assert len(told.splitlines()) == 1
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    run = RunFolder.at(spec.storage, spec.name)
    fine_tune(spec, run, ALONE)
    assert_equal(run, clean_run(tmp_path))


def open_to_all(folder: Path) -> None:
    """Let everybody enter the folders of pytest above a test's own."""
    for path in (folder, *folder.parents):
        if "pytest-of" in str(path):
            path.chmod(0o755)


@pytest.mark.slow
def test_a_read_only_disk_is_named_before_any_training(tmp_path: Path, small_disk: Path) -> None:
    spec = tiny_spec(tmp_path, {"storage": str(small_disk)})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match=r"Read-only file system.*Give this user permission"):
        fine_tune(spec, RunFolder.at(spec.storage, spec.name), ALONE)


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda data: None,
    "emptied": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "a bit flipped": lambda data: bytes([data[0] ^ 8]) + data[1:],
}
FILES = ("COMMIT", "manifest.json", "info.json", "lane-0.json", "lane-0.safetensors")


@pytest.fixture(scope="module")
def half_a_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder]:
    """A folder with a run that was cut off after its checkpoint of step 6 of 10, and a clean one beside it."""
    folder = tmp_path_factory.mktemp("half")
    spec = tiny_spec(folder, SETTINGS | {"checkpoint.keep": 2}, name="half")
    with at_step(7, stop), pytest.raises(InterruptedError):
        fine_tune(spec, RunFolder.at(spec.storage, spec.name), ALONE)
    return folder, clean_run(folder)


def stop() -> None:
    raise InterruptedError


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_whatever_happens_to_a_file_of_the_newest_checkpoint_the_run_ends_the_same(
    half_a_run: tuple[Path, RunFolder], tmp_path: Path, name: str, damage: str
) -> None:
    folder, clean = half_a_run
    shutil.copytree(folder / "runs" / "half", tmp_path / "runs" / "half")
    newest = tmp_path / "runs" / "half" / "checkpoints" / "6" / name
    changed = DAMAGES[damage](newest.read_bytes())
    newest.unlink() if changed is None else newest.write_bytes(changed)
    spec = tiny_spec(folder, SETTINGS | {"checkpoint.keep": 2, "storage": str(tmp_path / "runs")}, name="half")
    run = RunFolder.at(spec.storage, spec.name)
    fine_tune(spec, run, ALONE)
    assert digest(run) == digest(clean)
    assert rows(run) == rows(clean)
