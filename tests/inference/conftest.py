"""One small finished run for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from trained import train_tiny

from tltrain.run_folder import RunFolder


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the images of the run."""
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(scope="session")
def finished_run(digits_folder: Path) -> RunFolder:
    """A finished run on these images; not to be changed."""
    return train_tiny(digits_folder)
