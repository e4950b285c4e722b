"""The verbs around images: streams, exit codes, and what 80 columns hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from tltrain.cli.main import main


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes with three small images each, in the current directory."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        folder = tmp_path / "photos" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 20), (40 * number, 0, 0)).save(folder / f"{number}.png")
    return tmp_path / "photos"


def tltrain_exits(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the program in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["tltrain", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_check_prints_what_there_is(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tltrain_exits(monkeypatch, "data", "check", "photos") == 0

    out, err = capsys.readouterr()
    assert err == ""
    assert "all 2            6" in out
    assert "width    20 to 25 pixels, median 22.5\n  height   20 pixels\n" in out
    assert max(map(len, out.splitlines())) <= 80


def test_check_of_broken_images_names_them_and_exits_with_4(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        (photos / "cat" / f"bad{number:02d}.jpg").write_bytes(b"no image")

    assert tltrain_exits(monkeypatch, "data", "check", "photos", "--page", "p.html", "--json") == 4

    out, err = capsys.readouterr()
    findings = json.loads(out)
    assert len(findings["splits"]["train"]["bad"]) == 12
    assert err.splitlines()[0] == "Wrote p.html"
    assert err.splitlines()[1].startswith("error: data.train: 12 of 18 images cannot be used, such as cat/bad00.jpg")
    assert "cat/bad11.jpg" in Path("p.html").read_text()

    assert tltrain_exits(monkeypatch, "data", "check", "photos") == 4
    out = capsys.readouterr().out
    assert "bad09.jpg" in out
    assert "bad10.jpg" not in out
    assert "and 2 more; --json and --page name all" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("photos", "--split", "tets"), 2, "--split tets: tets is no split"),
        (("photos", "--split", "val"), 2, "photos has no split val"),
        (("photos", "--split", "test=nowhere"), 4, "nowhere does not exist"),
        (("nowhere",), 4, "nowhere does not exist"),
        (("photos", "--set", "data.labels=x"), 2, "data.labels"),
    ],
)
def test_what_cannot_be_checked_is_one_clear_message(
    arguments: tuple[str, ...],
    code: int,
    words: str,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tltrain_exits(monkeypatch, "data", "check", *arguments) == code

    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


def test_init_looks_at_a_folder_and_keeps_a_file_that_is_there(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tltrain_exits(monkeypatch, "init", "--from", "imagefolder", "photos") == 0
    assert "tltrain run spec.yaml" in capsys.readouterr().err
    assert tltrain_exits(monkeypatch, "validate", "spec.yaml") == 0
    assert tltrain_exits(monkeypatch, "init", "--from", "imagefolder", "photos") == 2
    assert "is there already" in capsys.readouterr().err
    assert tltrain_exits(monkeypatch, "init", "x.yaml", "--from", "imagefolder", "nowhere") == 4
    assert not Path("x.yaml").exists()


def test_pack_writes_a_source_and_says_what_was_there(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tltrain_exits(monkeypatch, "data", "pack", "photos", "packed") == 0
    assert capsys.readouterr().out.startswith("train: 6 images in 1 shards")
    assert tltrain_exits(monkeypatch, "data", "pack", "photos", "packed", "--json") == 0
    assert json.loads(capsys.readouterr().out)["train"]["num_kept"] == 1
    assert tltrain_exits(monkeypatch, "data", "check", "packed") == 0
    assert tltrain_exits(monkeypatch, "data", "pack", "photos", "packed", "--shard-mb", "1") == 1
    assert "other images, or the same in another way" in capsys.readouterr().err
