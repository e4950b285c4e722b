"""The ledger: written before anything is sent, kept from others, and right with several processes at it."""

from __future__ import annotations

import concurrent.futures
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tltrain.errors import SpecError, StorageError
from tltrain.jobs import ledger as ledger_module
from tltrain.jobs.ledger import Job, Ledger, new_attempt
from tltrain.jobs.states import Cause, State
from tltrain.jobs.upload import Package

PACKAGE = Package(b"content", ())


def job(own_id: str = "tiny-012345", **changes: object) -> Job:
    request = {"workers": 1, "cpus": 1, "gpus": 0}
    attempts = (new_attempt(own_id, 1),)
    fields = ("tiny", "/runs", "local", "/local.yaml", PACKAGE.name, request, 0, None, 1.0, attempts)
    return replace(Job(own_id, *fields), **changes)  # type: ignore[arg-type]


def test_what_is_added_is_read_back(tmp_path: Path) -> None:
    written = job(max_duration_s=5.0, priority=3)
    with Ledger(tmp_path / "a") as ledger:
        ledger.add(written, PACKAGE)
    with Ledger(tmp_path / "a") as ledger:
        assert ledger.jobs() == [written]
        assert ledger.package_content(written) == b"content"
        ledger.update(written.latest, state=State.FAILED, cause=Cause.DATA, reason="bad", ended_at=2.0)
        assert ledger.find(written.id).latest == replace(
            written.latest, state=State.FAILED, cause=Cause.DATA, reason="bad", ended_at=2.0
        )


def test_nobody_else_can_read_it_even_under_an_open_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Ledger(tmp_path / "new" / "tltrain") as ledger:
            ledger.add(job(), PACKAGE)
            found = [path for path in (tmp_path / "new").rglob("*")]
            assert len(found) >= 5, "the folder, its ledger with -wal and -shm, the uploads and one of them"
            for path in found:
                assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    finally:
        os.umask(before)


def test_job_is_found_by_the_first_letters_that_are_its_own(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        for own_id in ("tiny-012345", "tiny-0199aa", "tiny-01"):
            ledger.add(job(own_id), PACKAGE)

        assert ledger.find("tiny-012").id == "tiny-012345"
        assert ledger.find("tiny-01").id == "tiny-01", "a whole id is its own, even where others begin with it"
        with pytest.raises(SpecError, match="3 jobs begin with 'tiny'"):
            ledger.find("tiny")
        with pytest.raises(SpecError, match="no job 'x'"):
            ledger.find("x")
        with pytest.raises(SpecError, match="begin with ''"):
            ledger.find("")


def test_looking_for_one_job_among_many_reads_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    make = ledger_module._job

    def noting(row: Any, attempts: Any) -> Job:
        read.append(row["id"])
        return make(row, attempts)

    with Ledger(tmp_path) as ledger:
        for number in range(20):
            ledger.add(job(f"tiny-0000{number:02}"), PACKAGE)
        monkeypatch.setattr(ledger_module, "_job", noting)

        assert len(ledger.find("tiny-000007").attempts) == 1
        assert read == ["tiny-000007"]


def test_waiting_attempt_is_claimed_by_one_of_many(tmp_path: Path) -> None:
    waiting = job(attempts=(new_attempt("tiny-012345", 1, waits=True),))
    with Ledger(tmp_path) as ledger:
        ledger.add(waiting, PACKAGE)

    def claim(_: int) -> bool:
        with Ledger(tmp_path) as ledger:
            return ledger.take_from_queue(waiting.latest)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(claim, range(16))) == [False] * 15 + [True]


def test_attempt_of_a_number_is_recorded_once(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.add(job(), PACKAGE)
        second = new_attempt("tiny-012345", 2, sets=["train.accumulation_steps=2"])

        assert [ledger.add_attempt(second), ledger.add_attempt(second)] == [True, False]
        assert ledger.find("tiny").latest == second


def test_what_was_seen_earlier_does_not_replace_what_was_recorded_since(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger, Ledger(tmp_path) as other:
        ledger.add(job(), PACKAGE)
        seen = ledger.find("tiny").latest
        other.update(seen, only_as_seen=True, state=State.SUCCEEDED)
        ledger.update(seen, only_as_seen=True, state=State.STARTING, reason="it prepares")
        assert ledger.find("tiny").latest == replace(seen, state=State.SUCCEEDED)


def test_upload_goes_with_the_last_job_that_has_it(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        first, second = job("tiny-000001"), job("tiny-000002")
        for each in (first, second):
            ledger.add(each, PACKAGE)
        ledger.remove(first)
        assert ledger.package_content(second) == b"content"
        ledger.remove(second)
        assert ledger.jobs() == []
        assert list((tmp_path / "uploads").iterdir()) == []


def test_file_that_is_no_ledger_is_a_storage_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_text("no database at all, " * 100)

    with pytest.raises(StorageError, match=r"jobs\.sqlite: the ledger of jobs cannot be used"):
        Ledger(tmp_path)
