"""`tltrain predict`: what it prints where, its exit codes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trained import train_tiny

from tltrain.cli.main import main
from tltrain.cli.prediction import table_lines
from tltrain.run_folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A small finished run."""
    return train_tiny(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def images(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three images and a broken one."""
    assert run.folder.local_path is not None
    contents = pq.read_table(run.folder.local_path.parent.parent / "test.parquet").column("image").to_pylist()
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(contents[number])
    (folder / "broken.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["tltrain", *arguments])
    with pytest.raises(SystemExit) as done:
        main()
    return done.value.code if isinstance(done.value.code, int) else 0


def test_one_image_is_shown_with_its_five_most_probable_classes(
    run: RunFolder, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(monkeypatch, "predict", run.uri, "images/0.png")

    shown = capsys.readouterr()
    assert (code, shown.err) == (0, "")
    heading, *rows = shown.out.splitlines()
    assert heading.split() == ["image", "class", "probability"]
    assert len(rows) == 5
    assert rows[0].startswith("images/0.png")
    shares = [float(row.split()[-2]) for row in rows]
    assert shares == sorted(shares, reverse=True)


def test_bad_images_are_told_on_stderr_and_the_exit_code_says_so(
    run: RunFolder, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(monkeypatch, "predict", run.uri, "images", "--json")

    shown = capsys.readouterr()
    fields = json.loads(shown.out)
    assert code == 4
    assert shown.err.startswith("1 of the images could not be read:\n  broken.png: cannot be decoded")
    assert [row["id"] for row in fields["predictions"]] == ["0.png", "1.png", "2.png"]
    assert fields["predictions"][0]["top"][0].keys() == {"class", "probability"}
    assert [bad["id"] for bad in fields["bad"]] == ["broken.png"]


def test_a_file_is_written_and_what_came_of_it_is_printed(
    run: RunFolder, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(monkeypatch, "predict", run.uri, "images", "--out", "out.csv")

    shown = capsys.readouterr()
    assert code == 4
    assert shown.out.startswith("Images      3 classified in ")
    assert shown.out.endswith("images/s\nWritten     " + str(images.parent / "out.csv") + "\n")
    assert f"All of them are listed in {images.parent / 'out.bad.csv'}" in shown.err
    assert call(monkeypatch, "predict", run.uri, "images", "--out", "out.csv") == 2
    assert "is there already. Choose another path, or overwrite it with --force." in capsys.readouterr().err
    assert call(monkeypatch, "predict", run.uri, "images", "--out", "out.csv", "--force", "--json") == 4
    fields = json.loads(capsys.readouterr().out)
    assert (fields["num_images"], fields["num_bad"], fields["bad"][0]["id"]) == (3, 1, "broken.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("jobs/data", "--workers", "2"), "--workers is for --ray"),
        (("jobs/data", "--force"), "--force is for --out"),
        (("gone.png",), "gone.png does not exist. Check the path."),
        (("images/*.jpg",), "no images match images/*.jpg"),
        (("images", "--out", "x.xlsx"), "written as .parquet or .csv"),
    ],
)
def test_mistakes_are_named(
    run: RunFolder,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert call(monkeypatch, "predict", run.uri, *arguments) in (2, 4)
    assert message in " ".join(capsys.readouterr().err.split())


def test_many_images_are_not_shown_in_a_table(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.folder.local_path is not None

    assert call(monkeypatch, "predict", run.uri, str(run.folder.local_path.parent.parent / "test.parquet")) == 2
    assert "45 images are too many for a table, which takes 20. Add --out" in capsys.readouterr().err


def test_a_table_fits_the_terminal() -> None:
    columns: dict[str, Any] = {"id": ["folder/" * 20 + "x.png"], "prediction": ["a class" * 10], "probability": [1.0]}

    assert 70 < max(map(len, table_lines(pa.table(columns), 80))) <= 80
