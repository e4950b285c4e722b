"""Writes docs/session-transcript.md, a session from a fresh install: `python docs/make_session_transcript.py`."""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path

from transcript import Session

PROJECT = Path(__file__).resolve().parent.parent
INTRODUCTION = """\
# A session from a fresh install

Every command was run, and what it printed stands below it, by `python docs/make_session_transcript.py`. `...` stands
for what was left out, `PROJECT` for the folder that was cloned. The [tutorial](tutorial.md) explains it all.
"""
PHOTO = """\
import pyarrow.parquet as pq

row = pq.read_table("jobs/data/fashion-mnist/test.parquet").to_pylist()[0]
open("photo.png", "wb").write(row["image"])
print("photo.png is a picture of:", row["label"])
"""


def record(folder: Path, project: Path) -> str:
    """Clone a project, install it, run the quickstart, look at its report, and use its model. Return the page."""
    shown_as = {str(project): "PROJECT", f"{folder}/": "", str(folder): "."}
    outside = Session(folder, folder / "home", shown_as)
    outside.run("git", "clone", str(project), "tltrain")
    clone = folder / "tltrain"
    session = Session(clone, folder / "home", {str(clone): ".", **shown_as}, path=clone / ".venv" / "bin")
    session.run("make", "install", last=2)
    session.run("make", "quickstart")
    session.run("tltrain", "report", "runs/quickstart")
    session.say("A photo to try the model on; one of the test images will do:")
    (clone / "photo.py").write_text(PHOTO)
    session.run("python", "photo.py")
    session.run("tltrain", "predict", "runs/quickstart", "photo.png")
    session.say("The model for other programs, and one that reads it:")
    session.run("tltrain", "export", "runs/quickstart", "--format", "safetensors")
    session.run("python", "examples/predict_safetensors.py", "quickstart-safetensors", "photo.png")
    machine = f"\nThis was {platform.system()} on {platform.machine()} with Python {platform.python_version()}.\n"
    return INTRODUCTION + machine + outside.text + session.text


def main() -> None:
    """Record the session in a temporary folder, with a clone of this project, or of one named as an argument."""
    project = Path(sys.argv[1]).resolve() if sys.argv[1:] else PROJECT
    with tempfile.TemporaryDirectory(prefix="tltrain-", ignore_cleanup_errors=True) as folder:
        page = record(Path(folder), project)
    (PROJECT / "docs" / "session-transcript.md").write_text(page)


if __name__ == "__main__":
    main()
