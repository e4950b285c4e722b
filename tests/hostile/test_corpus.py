"""Every hostile input of the corpus ends in what the table says: what is read of it, or a line for each problem."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import outcomes
import pytest
from corpus import ARCHIVES, SPECS, TABLES
from hostile_images import IMAGES
from ruamel.yaml import YAML

BUILT_BY_NAME = {"images": IMAGES, "tables": TABLES, "archives": ARCHIVES, "specs": SPECS}


@functools.cache
def table() -> dict[str, dict[str, Any]]:
    return YAML(typ="safe").load((Path(__file__).parent / "expected.yaml").read_text(encoding="utf-8"))


CASES = [(kind, name) for kind, cases in table().items() for name in cases]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda part: part.replace(" ", "-"))
def test_what_comes_of_it_stands_in_the_table(kind: str, name: str, tmp_path: Path) -> None:
    entry = table()[kind][name]
    lines = outcomes.of(kind, name, entry, tmp_path)
    assert len(lines) == len(entry["gives"]), lines
    for line, expected in zip(lines, entry["gives"], strict=True):
        assert line.startswith(expected[:-3]) if expected.endswith("...") else line == expected
        assert line.isprintable()
    assert not Path("/tmp/tltrain-canary").exists(), "what stood in the input was run"


@pytest.mark.parametrize("kind", BUILT_BY_NAME)
def test_every_file_that_is_built_stands_in_the_table(kind: str) -> None:
    assert set(BUILT_BY_NAME[kind]) <= set(table()[kind])
