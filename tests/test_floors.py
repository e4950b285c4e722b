"""The floors of the package: what each room imports, and at which moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE_DIR = Path(__file__).resolve().parent.parent / "tltrain"
NEAR_SIDE = (
    "errors",
    "disk",
    "arrow_files",
    "spec",
    "storage",
    "lease",
    "run_folder",
    "report",
    "jobs",
    "messages",
    "stopping",
    "progress",
    "track",
    "terminal",
    "attempt",
    "header",
    "output",
    "following",
    "run",
    "api",
    "cli",
)
HEAVY = {"torch", "torchvision", "timm", "ray"}
WITHOUT_RAY = (*NEAR_SIDE, "models", "data", "inference", "train")

# Makes every import of the packages in `blocked` fail, as on a machine where they are not installed.
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is imported here")

sys.meta_path.insert(0, Blocked())
"""

# Runs `python -m tltrain` and looks at what has been imported by the end. Finding a package is not importing it.
RUN_VERB = """
import runpy
import sys

try:
    runpy.run_module("tltrain", run_name="__main__")
except SystemExit as done:
    assert not done.code, done.code
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""


def modules_of(*rooms: str) -> list[str]:
    """Return the dotted names of all modules of these rooms, as their files say."""
    paths = [path for path in PACKAGE_DIR.rglob("*.py") if path.relative_to(PACKAGE_DIR).parts[0] in rooms]
    paths += [PACKAGE_DIR / f"{room}.py" for room in rooms if (PACKAGE_DIR / f"{room}.py").is_file()]
    names = [".".join(path.relative_to(PACKAGE_DIR.parent).with_suffix("").parts) for path in sorted(paths)]
    return [name.removesuffix(".__init__") for name in names]


def run_python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter and return what it printed; its errors fail the test."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_DIR.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def import_all(modules: list[str], blocked: set[str]) -> None:
    """Import modules one after the other in an interpreter that cannot import the blocked packages."""
    imports = "\n".join(f"import {module}" for module in modules)
    run_python(f"blocked = {blocked!r}\n{BLOCK}\n{imports}")


@pytest.mark.parametrize("room", WITHOUT_RAY)
def test_room_exists(room: str) -> None:
    assert modules_of(room), f"tltrain.{room} has no modules: this test looks at the wrong place"


def test_near_side_imports_neither_torch_nor_ray() -> None:
    import_all(modules_of(*NEAR_SIDE), blocked=HEAVY)


def test_training_works_where_ray_is_not_installed() -> None:
    import_all(modules_of(*WITHOUT_RAY), blocked={"ray"})


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("validate", "jobs/quickstart.yaml"),
        ("schema",),
        ("data", "check", "jobs/data/fashion-mnist/test.parquet"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_verb_imports_neither_torch_nor_ray(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PACKAGE_DIR.parent)

    printed = run_python(f"heavy = {HEAVY!r}\n{RUN_VERB}", *arguments)

    assert printed


def test_blocked_import_fails_so_that_these_tests_can_fail() -> None:
    with pytest.raises(AssertionError, match="ray is imported here"):
        import_all(["ray"], blocked={"ray"})


def test_import_contracts_hold(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--cache-dir", str(tmp_path)]

    done = subprocess.run(command, cwd=PACKAGE_DIR.parent, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stdout + done.stderr
