"""Run folders: state and metrics survive what may happen to them, on a local disk and on S3."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tltrain.errors import SpecError, StorageError
from tltrain.run_folder import RunFolder
from tltrain.storage import Folder


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    storage = str(tmp_path / "runs") if request.param == "local" else request.getfixturevalue("s3_uri")
    return RunFolder.at(storage, "flowers")


@pytest.fixture
def local(tmp_path: Path) -> RunFolder:
    return RunFolder.at(str(tmp_path), "flowers")


def row(lane: str, step: int, **more: Any) -> dict[str, Any]:
    return {"lane": lane, "step": step, **more}


def test_a_run_is_found_again_by_its_address(run: RunFolder) -> None:
    run.write_spec("name: flowers\n# ümlaut\n")
    again = RunFolder.open(run.uri)
    assert again == run
    assert again.name == "flowers"
    assert again.spec_text() == "name: flowers\n# ümlaut\n"


def test_what_is_no_run_folder_is_refused_with_the_runs_in_it(run: RunFolder) -> None:
    with pytest.raises(SpecError, match="nothing is there"):
        RunFolder.open(run.uri)
    run.update(state="running")
    parent = run.uri.replace("/flowers", "")
    with pytest.raises(SpecError, match=r"no run folder.*Name one of the runs in it: flowers"):
        RunFolder.open(parent)


def test_a_folder_of_other_things_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(SpecError, match="Name the folder that `tltrain run` printed"):
        RunFolder.open(str(tmp_path))


def test_update_sets_some_fields_and_leaves_the_others(run: RunFolder) -> None:
    assert run.state() == {}
    run.update(state="running", attempts=[1])
    run.update(state="finished", error=None)
    assert run.state() == {"format": 1, "state": "finished", "attempts": [1], "error": None}


def test_a_row_written_again_replaces_the_old_one(run: RunFolder) -> None:
    run.record_metrics([row("b", 2, loss=1.0), row("a", 2, loss=2.0)])
    run.record_metrics([row("a", 1), row("a", 2, loss=3.0)])
    assert run.metrics() == [row("a", 1), row("a", 2, loss=3.0), row("b", 2, loss=1.0)]


def test_rows_beyond_the_checkpoint_are_dropped(run: RunFolder) -> None:
    run.drop_metrics_after(0)
    run.record_metrics([row(lane, step) for lane in "ab" for step in (1, 2, 3)])
    run.drop_metrics_after(2)
    assert run.metrics() == [row("a", 1), row("b", 1), row("a", 2), row("b", 2)]


def test_sub_folders_are_children(run: RunFolder) -> None:
    run.checkpoints.child("10").write_bytes("COMMIT", b"")
    run.model.write_bytes("model.json", b"{}")
    assert run.folder.names() == ["checkpoints", "model"]


ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.integers()), max_size=8)


@given(batches=st.lists(ROWS, max_size=4))
def test_metrics_are_unique_and_the_last_written_wins(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[str, int, int]]]
) -> None:
    run = RunFolder.at(str(tmp_path_factory.mktemp("runs")), "r")
    expected = {}
    for batch in batches:
        run.record_metrics([row(lane, step, value=value) for lane, step, value in batch])
        expected |= {(lane, step): value for lane, step, value in batch}
    assert {(r["lane"], r["step"]): r["value"] for r in run.metrics()} == expected
    assert len(run.metrics()) == len(expected)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_null(local: RunFolder, number: float) -> None:
    local.record_metrics([row("a", 1, loss=number)])
    local.write_json("evaluation.json", {"deep": [{"loss": number}, (1.5, number)]})
    assert local.metrics() == [row("a", 1, loss=None)]
    text = local.folder.read_bytes("evaluation.json").decode()
    assert json.loads(text, parse_constant=pytest.fail) == {"deep": [{"loss": None}, [1.5, None]]}


def test_names_of_files_that_are_not_utf8_survive(local: RunFolder) -> None:
    skipped = [b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), "日本.jpg", "line\u2028break"]
    local.update(skipped=skipped)
    local.record_metrics([row("a", 1, skipped=skipped)])
    assert local.state()["skipped"] == skipped
    assert local.metrics()[0]["skipped"] == skipped


def test_a_torn_last_line_is_left_out_with_a_warning(local: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    local.record_metrics([row("a", 1, name="é"), row("a", 2, name="é")])
    whole = local.folder.read_bytes("metrics.jsonl")
    second = whole.index(b"\n") + 1
    for end in range(second + 1, len(whole) - 1):
        caplog.clear()
        local.folder.write_bytes("metrics.jsonl", whole[:end])
        assert local.metrics() == [row("a", 1, name="é")]
        assert "line 2, which is torn" in caplog.text
    local.record_metrics([row("a", 2)])
    assert local.metrics() == [row("a", 1, name="é"), row("a", 2)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", b'{"lane": "a", "st\n{"lane": "a", "step": 2}\n', "line 1 is no row"),
        ("metrics.jsonl", b"[1]\n", "line 1 is no row"),
        ("metrics.jsonl", b'{"lane": "a"}\n', "lacks a step"),
        ("run.json", b"", "damaged"),
        ("run.json", b'{"format": 1', "damaged"),
        ("run.json", b"\xff\xfe", "damaged"),
        ("run.json", b"{}", "no format number"),
        ("run.json", b"[]", "no format number"),
        ("run.json", b'{"format": 2}', "format 2, and this tltrain reads up to 1. Upgrade"),
    ],
)
def test_damaged_files_are_named(local: RunFolder, name: str, content: bytes, message: str) -> None:
    local.folder.write_bytes(name, content)
    with pytest.raises(StorageError, match=f"flowers/{name}: .*{message}"):
        (local.metrics if name == "metrics.jsonl" else local.state)()


def test_update_does_not_overwrite_a_state_it_cannot_read(local: RunFolder) -> None:
    local.folder.write_bytes("run.json", b'{"format": 2, "new": 1}')
    with pytest.raises(StorageError, match="Upgrade"):
        local.update(state="running")
    assert local.folder.read_bytes("run.json") == b'{"format": 2, "new": 1}'


def test_a_write_that_fails_leaves_state_and_metrics(local: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    local.update(state="running")
    local.record_metrics([row("a", 1)])

    def fail(folder: Folder, name: str, data: bytes) -> None:
        raise StorageError("no space")

    monkeypatch.setattr(Folder, "write_bytes", fail)
    for act in (lambda: local.update(state="failed"), lambda: local.record_metrics([row("a", 2)])):
        with pytest.raises(StorageError):
            act()
    assert local.state()["state"] == "running"
    assert local.metrics() == [row("a", 1)]
