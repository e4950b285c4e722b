"""What a job's environment tells: secrets by reference, whose values are never shown."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tltrain.environment import SECRETS_VARIABLE, take_secrets
from tltrain.errors import ResourceError


def test_secrets_are_read_where_the_process_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("from a file\n")
    monkeypatch.setenv("OF_THE_NODE", "from the node")
    monkeypatch.setenv(SECRETS_VARIABLE, json.dumps({"ONE": f"file:{tmp_path}/key", "TWO": "env:OF_THE_NODE"}))
    for name in ("ONE", "TWO"):
        monkeypatch.setenv(name, "to be replaced")

    take_secrets()

    assert (os.environ["ONE"], os.environ["TWO"]) == ("from a file", "from the node")


def test_all_secrets_that_are_missing_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRETS_VARIABLE, json.dumps({"ONE": f"file:{tmp_path}/key", "TWO": "env:NOT_SET_ANYWHERE"}))

    with pytest.raises(ResourceError) as caught:
        take_secrets()

    assert [problem.what.split(" is ")[0] for problem in caught.value.problems] == ["the secret ONE", "the secret TWO"]


def test_without_secrets_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRETS_VARIABLE, raising=False)
    before = dict(os.environ)

    take_secrets()

    assert dict(os.environ) == before
