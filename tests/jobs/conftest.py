"""Fixtures of the tests of jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from job_helpers import Home, home_at


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A user's home of its own, with a fake cluster to submit to."""
    with home_at(tmp_path) as home:
        yield home
