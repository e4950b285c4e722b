"""YAML tags that would run code: refused wherever YAML is read, and nothing of them runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tltrain.errors import SpecError
from tltrain.jobs.clusters import parse_cluster
from tltrain.jobs.launcher import read_launcher_file
from tltrain.spec.load import load_spec, parse_spec

SPEC = "name: x\nmodel: {name: resnet50}\ndata: {train: a}\nstorage: "
TAGS = [
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['MARK']]",
    "!!python/object/apply:os.system ['touch MARK']",
    "!!python/object/new:os.system ['touch MARK']",
    "!!python/object/apply:subprocess.check_output [[touch, MARK]]",
    "!!python/object:subprocess.Popen {args: touch MARK}",
    "!!python/name:os.system",
    "!!python/module:os",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch MARK']",
    "!include /etc/passwd",
    "!env HOME",
]
READERS: dict[str, Callable[[str, Path], object]] = {
    "spec": lambda value, folder: parse_spec(SPEC + value, where="x", base=folder),
    "a key of a spec": lambda value, folder: parse_spec(f"{SPEC}runs\n? {value}\n: 1\n", where="x", base=folder),
    "--set": lambda value, folder: parse_spec(SPEC + "runs", where="x", base=folder, sets=[f"storage={value}"]),
    "cluster": lambda value, folder: parse_cluster(
        f"kind: ray-up\ntoken: env:T\nconfig: {value}", where="x", base=folder
    ),
    "launcher": lambda value, folder: read_launcher_file(str(written(folder, f"provider: {{type: aws}}\nx: {value}"))),
    "spec file": lambda value, folder: load_spec(written(folder, SPEC + value)),
}


def written(folder: Path, text: str) -> Path:
    path = folder / "file.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_is_refused_and_runs_nothing(reader: str, tag: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(SpecError):
        READERS[reader](tag.replace("MARK", str(mark)), tmp_path)
    assert not mark.exists()


def test_without_a_tag_each_is_read_so_that_these_tests_can_fail(tmp_path: Path) -> None:
    for name, read in READERS.items():
        if name != "a key of a spec":
            assert read("harmless", tmp_path) is not None
