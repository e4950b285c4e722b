"""docs/security.md: every threat of its table names tests, and these are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent
PAGE = (PROJECT / "docs" / "security.md").read_text("utf-8")


def rows() -> list[list[str]]:
    """The rows of the table of threats: threat, control, tests."""
    table = PAGE.partition("| threat |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]


def functions_of(path: Path) -> list[str]:
    tree = ast.parse(path.read_text("utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def test_there_are_threats() -> None:
    assert len(rows()) >= 15
    assert all(len(row) == 3 for row in rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_a_threat_names_tests_that_are_there(row: list[str]) -> None:
    named = [name for name in re.findall(r"`([^`]+)`", row[2]) if name.endswith(".py")]
    assert named
    for name in named:
        path = PROJECT / name
        assert path.is_file(), f"{name} is not there; name it from the project's folder on"
        assert functions_of(path), f"{name} holds no test"


def test_every_file_of_the_closed_door_stands_in_the_table() -> None:
    named = " ".join(row[2] for row in rows())
    files = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != Path(__file__).name]
    assert [name for name in files if name not in named] == []
