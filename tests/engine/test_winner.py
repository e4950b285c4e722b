"""The winner's folder of a sweep: what stands in it when a driver ends half-way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tltrain.engine.winner import COPIED, end_winner
from tltrain.run_folder import WINNER, RunFolder
from tltrain.storage import Folder

CALLS_UNTIL_DEATH = 2


class DriverDiedError(Exception):
    """What ends a driver here."""


def test_a_winner_is_finished_only_when_what_people_look_for_stands_in_the_sweeps_folder(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    winner = RunFolder(folder.child(WINNER))
    for name in COPIED:
        winner.folder.write_bytes(name, b"{}")
    writes = 0

    def die() -> None:
        nonlocal writes
        writes += 1
        if writes == CALLS_UNTIL_DEATH:
            raise DriverDiedError

    with pytest.raises(DriverDiedError):
        end_winner(RunFolder(folder.guarded(die)), {"best": None})
    assert winner.state() == {}
    end_winner(RunFolder(folder), {"best": None})
    assert winner.state()["state"] == "finished"
    assert set(COPIED) <= set(folder.names())
