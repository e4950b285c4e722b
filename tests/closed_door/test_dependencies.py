"""Dependencies: no lower bound allows a release with a known hole, and what is built holds the package alone."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = Path(__file__).resolve().parent.parent.parent


def table() -> list[tuple[str, Version]]:
    """Package and first release without known holes, as docs/security.md lists them."""
    rows = (PROJECT / "docs" / "security.md").read_text("utf-8").partition("| package |")[2].partition("\n\n")[0]
    found = re.findall(r"^\| `([a-z-]+)` \| ([0-9.]+) \|", rows, re.MULTILINE)
    return [(name, Version(version)) for name, version in found]


def requirements() -> list[Requirement]:
    """Every requirement of pyproject.toml, extras included."""
    text = (
        (PROJECT / "pyproject.toml")
        .read_text("utf-8")
        .partition("dependencies = [")[2]
        .partition("[project.scripts]")[0]
    )
    return [Requirement(found) for found in re.findall(r'"([a-z][^"]*)"', text)]


def lower_bound(requirement: Requirement) -> Version | None:
    bounds = [Version(part.version) for part in requirement.specifier if part.operator in (">=", "==")]
    return max(bounds, default=None)


@pytest.mark.parametrize(("name", "fixed"), table(), ids=lambda value: str(value))
def test_no_bound_allows_a_release_with_a_known_hole(name: str, fixed: Version) -> None:
    named = [requirement for requirement in requirements() if requirement.name == name]
    # Python 3.10 gets no new releases of some packages any more; docs/security.md says so.
    current = [each for each in named if each.marker is None or each.marker.evaluate({"python_version": "3.12"})]
    assert current, f"{name} is no dependency"
    for requirement in current:
        bound = lower_bound(requirement)
        assert bound is not None
        assert bound >= fixed, f"{requirement} allows releases before {fixed}"


def test_there_are_holes_to_look_for() -> None:
    assert {name for name, _ in table()} >= {"torch", "ray", "pyarrow", "pillow", "filelock"}


def test_every_requirement_has_a_lower_bound() -> None:
    assert len(requirements()) > 20
    assert [str(each) for each in requirements() if lower_bound(each) is None] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, built from a copy of what git has."""
    folder = tmp_path_factory.mktemp("built")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0"):
        source = PROJECT / name
        if source.is_file():
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    for kind in ("sdist", "wheel"):
        code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
        subprocess.run(
            [sys.executable, "-c", code, str(folder)], cwd=folder / "source", capture_output=True, check=True
        )
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "tltrain/run.py" in names
    own = [name for name in names if not name.startswith(("tltrain/", "tltrain-"))]
    assert own == []
    allowed = (
        ".py",
        ".css",
        ".js",
        "py.typed",
        "METADATA",
        "WHEEL",
        "RECORD",
        "entry_points.txt",
        "top_level.txt",
        "LICENSE",
    )
    assert [name for name in names if not name.endswith(allowed)] == []
    assert not [name for name in names if "test" in name.lower() or "__pycache__" in name]
    assert wheel.stat().st_size < 1 << 20


@pytest.mark.slow
def test_the_source_distribution_holds_no_data_and_no_secret(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert "pyproject.toml" in names
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders <= {"tltrain", "tltrain.egg-info"}
    assert not [name for name in names if name.endswith((".parquet", ".png", ".safetensors", ".pth", ".env"))]
