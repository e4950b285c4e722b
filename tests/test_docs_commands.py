"""Every command that the documentation shows is run, page by page, or the table in docs_not_run.yaml says why not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from docs_text import PAGES, PROJECT_DIR, Command, blocks, commands, commands_of
from PIL import Image
from test_docs import covers, not_run

LIMIT_S = 600
MADE_BY_SCRIPTS = ("jobs-transcript.md", "session-transcript.md")  # their commands were run when they were written

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(3600)]


def is_run(command: Command) -> bool:
    """Whether a command is run here."""
    return command.page not in MADE_BY_SCRIPTS and not any(covers(entry, command) for entry in not_run())


def to_run(page: Path) -> list[Command]:
    """Return the commands of a page that are run, in order."""
    return [command for command in commands(page) if is_run(command)]


@dataclass(frozen=True)
class Workspace:
    """A folder such as a reader has: jobs, clusters, examples, photos, a bucket, and two finished runs."""

    folder: Path
    environment: dict[str, str]

    def run(self, command: str) -> None:
        """Run a command line in the folder; it has to end well."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    def write(self, text: str) -> None:
        """Write a block into the file that its first line names, or at its end; a block that names none is left."""
        if file := re.match(r"# (\w+\.(?:py|yaml))\n", text):
            (self.folder / file[1]).write_text(text)
        elif file := re.match(r"# at the end of (\S+)\n", text):
            with (self.folder / file[1]).open("a") as stream:
                stream.write(text)


def write_photos(table: Path, folder: Path, per_class: int) -> None:
    """Write the first images of each class of a shipped table as `folder/CLASS/NUMBER.png`."""
    rows = pq.read_table(table).to_pylist()
    counts: dict[str, int] = {}
    for row in rows:
        label = str(row["label"]).partition("/")[0]
        number = counts[label] = counts.get(label, 0) + 1
        if number <= per_class:
            (folder / label).mkdir(parents=True, exist_ok=True)
            (folder / label / f"{number}.png").write_bytes(row["image"])


def put(endpoint: str, path: str, content: bytes | None = None) -> None:
    """Make a bucket, or put an object into one."""
    url = f"http://{endpoint}/{urllib.parse.quote(path)}"
    headers = {"Content-Type": "application/octet-stream"}  # urllib's own is a form's, for which the server waits
    urllib.request.urlopen(urllib.request.Request(url, content, headers, method="PUT"), timeout=60).close()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, fashion_dir: Path, s3_endpoint: str) -> Iterator[Workspace]:
    folder = tmp_path_factory.mktemp("docs")
    for name in ("jobs", "cluster", "examples"):
        shutil.copytree(PROJECT_DIR / name, folder / name)
    for part, table, per_class in (("train", "train", 20), ("val", "test", 5), ("test", "test", 10)):
        write_photos(fashion_dir / f"{table}.parquet", folder / "photos" / part, per_class)
    shutil.copy(next((folder / "photos" / "test").rglob("*.png")), folder / "photo.png")
    (folder / "new").mkdir()
    Image.open(folder / "photo.png").convert("RGB").save(folder / "new" / "1.jpg")
    put(s3_endpoint, "bucket")
    for photo in (folder / "photos").rglob("*.png"):
        put(s3_endpoint, f"bucket/{photo.relative_to(folder)}", photo.read_bytes())
    put(s3_endpoint, "bucket/fashion-mnist/test.parquet", (fashion_dir / "test.parquet").read_bytes())
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "XDG_"))},
        **{f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "DATA", "CONFIG", "CACHE")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AWS_ENDPOINT_URL": f"http://{s3_endpoint}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": f"{folder}:{PROJECT_DIR}",
    }
    made = Workspace(folder, environment)
    made.run("tltrain run jobs/quickstart.yaml")
    for path in filter(Path.is_file, (folder / "runs" / "quickstart").rglob("*")):
        put(s3_endpoint, f"bucket/{path.relative_to(folder)}", path.read_bytes())
    made.run("tltrain run jobs/fashion-lite0.yaml")
    low = "--set name=fashion-low-rate --set optim.learning_rate=1e-4 --set train.epochs=1"
    made.run(f"tltrain run --local jobs/fashion-lite0.yaml {low}")
    yield made
    made.run("tltrain cluster down local")


@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page)], ids=lambda page: page.name)
def test_commands_of_a_page_end_well(page: Path, workspace: Workspace) -> None:
    if any("--cluster local" in command.text for command in to_run(page)):
        workspace.run("tltrain cluster up local")
    shutil.rmtree(workspace.folder / "runs" / "photos", ignore_errors=True)  # README and the tutorial begin with it
    for block in blocks(page):
        workspace.write(block.text)
        for command in commands_of(block, page):
            if is_run(command):
                workspace.run(command.text)
