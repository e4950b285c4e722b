"""What a preflight finds on a node, without a cluster; with one, see test_nodes.py."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ranks
from tiny import tiny_spec, write_digits

from tltrain.engine import node_check
from tltrain.engine.node_check import DRIVER, FOLDER, Findings, look, meet
from tltrain.engine.preflight import Place, differences
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec

PLACE = Place("0123456789abcdef", "worker-3", "10.0.0.3")


def look_as(me: str, spec: Spec, *, has_weights: bool = False) -> Findings:
    run = RunFolder.at(spec.storage, spec.name)
    return look(spec.model_dump_json(), run.uri, "mark", me, has_weights=has_weights)


def keys(findings: Findings) -> list[str]:
    return [problem.key for problem in findings.problems]


def test_a_node_that_sees_what_the_driver_sees_has_no_problem_and_leaves_its_mark(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path)
    mine, theirs = look_as(DRIVER, spec), look_as("node", spec)
    assert differences(PLACE, mine, theirs) == []
    assert RunFolder.at(spec.storage, spec.name).folder.child(FOLDER).names() == ["mark-driver", "mark-node"]


def test_all_that_is_wrong_on_a_node_is_told_at_once_with_its_name(tmp_path: Path) -> None:
    missing = {
        "data.train": str(tmp_path / "gone"),
        "data.test": str(tmp_path / "gone.csv"),
        "model.weights": str(tmp_path / "gone.pth"),
    }
    spec = tiny_spec(tmp_path, missing)
    found = look_as("node", spec)
    assert keys(found) == ["data.train", "data.test", "model.weights", "storage"]
    problems = differences(PLACE, Findings(versions=found.versions), found)
    assert all(str(problem).startswith("node worker-3 (10.0.0.3, 01234567)") for problem in problems)
    assert all(problem.action for problem in problems)


def test_a_node_with_another_storage_writes_nothing_into_it(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path)
    found = look_as("node", spec)
    assert keys(found) == ["storage"]
    assert "this is another folder" in found.problems[0].what
    assert not (tmp_path / "runs").exists()


def test_a_storage_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    assert keys(look_as(DRIVER, tiny_spec(tmp_path))) == ["storage"]


def test_other_data_under_the_same_path_is_told_with_counts(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path)
    mine = look_as(DRIVER, spec)
    write_digits(tmp_path, train=90)
    (problem,) = differences(PLACE, mine, look_as("node", spec))
    assert problem.key == "data.train"
    assert "(90 images) than the driver (96 images)" in problem.what


@pytest.mark.parametrize("name", ["python", "torch", "torchvision", "tltrain"])
def test_another_version_is_told_with_both(tmp_path: Path, name: str) -> None:
    mine = look_as(DRIVER, tiny_spec(tmp_path))
    theirs = replace(mine, versions={**mine.versions, name: "0.0.1"})
    (problem,) = differences(PLACE, mine, theirs)
    assert problem.what == f"it has {name} 0.0.1, and the driver has {mine.versions[name]}"


def test_another_code_of_the_same_version_is_another_version(tmp_path: Path) -> None:
    copy = tmp_path / "tltrain"
    shutil.copytree(node_check.PACKAGE_DIR, copy)
    assert node_check.code_version(copy) == node_check.code_version()
    with (copy / "errors.py").open("a") as file:
        file.write("# changed\n")
    assert node_check.code_version(copy) != node_check.code_version()


@pytest.mark.parametrize("is_cached", [True, False])
def test_weights_are_in_the_cache_or_must_be_reachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cached: bool
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    spec = tiny_spec(tmp_path, {"model.weights": "http://127.0.0.1:9/shuffle.pth"})
    if is_cached:
        (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
        (tmp_path / "hub" / "checkpoints" / f"{cached_prefix(spec)}-shuffle.pth").touch()
    assert keys(look_as(DRIVER, spec)) == ([] if is_cached else ["model.weights"])
    assert keys(look_as(DRIVER, spec, has_weights=True)) == []


def cached_prefix(spec: Spec) -> str:
    from tltrain.models.state import cached_name

    return cached_name(spec.model.weights).partition("-")[0]


def test_nodes_that_reach_each_other_meet(tmp_path: Path) -> None:
    port = node_check._free_port()
    assert run_apart(port, "127.0.0.1") == ["", ""]


def run_apart(port: int, host: str) -> list[str]:
    processes = [ranks.start(1, meet_alone, rank, port, host) for rank in range(2)]
    try:
        return [queue.get(timeout=60)[2] for _, queue in processes]
    finally:
        for started, _ in processes:
            ranks.stop(started)


def meet_alone(group: Any, rank: int, port: int, host: str) -> str:
    return meet(rank, 2, host, port, 5.0)


def test_a_node_that_waits_for_one_that_never_comes_says_so_in_time() -> None:
    error = meet(1, 2, "127.0.0.1", node_check._free_port(), 1.0)
    assert error
    assert "\n" not in error
