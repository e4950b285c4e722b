"""Images from a user's function: only where code is allowed, and its mistakes are told with their line."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from data_helpers import spec
from PIL import Image

from tltrain.data.decode import decode
from tltrain.data.sources import open_source
from tltrain.data.splits import load_splits
from tltrain.errors import SpecError, TltrainError
from tltrain.spec.load import parse_spec

CODE = """
import numpy as np

class Shades:
    classes = ["dark", "light"]

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if not 0 <= index < self.n:
            raise IndexError(index)
        return np.full((6, 5, 3), 40 * index, np.uint8), index % 2

def load(split):
    return Shades({"train": 6, "val": 4, "test": 2}[split])

def plain():
    return Shades(3)

def outside():
    shades = Shades(3)
    shades.labels = [0, 1, 2]
    return shades

def failing():
    raise KeyError("no images today")

def broken():
    return 3
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module with the code above."""
    name = f"own_images_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(CODE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return name


def test_function_gives_each_split(own_code: str) -> None:
    data = spec(f"python:{own_code}:load", val=f"python:{own_code}:load", test=0.2)

    splits = load_splits(data, 0, allow_code=True)

    assert splits.val is not None
    assert splits.test is not None
    assert (len(splits.train), len(splits.val), len(splits.test)) == (4, 4, 2)
    assert splits.val.identity(3) == f"{own_code}:load/val#3"
    image = decode(splits.val.read(3), "x")
    assert image.size == (5, 6)
    assert np.asarray(image).max() == 120
    assert splits.fingerprint == load_splits(data, 0, allow_code=True).fingerprint


def test_code_runs_only_where_it_is_allowed(own_code: str) -> None:
    with pytest.raises(SpecError, match="allow_code: true"):
        open_source(f"python:{own_code}:load", spec(), split="train")
    text = f"name: x\nmodel: {{name: resnet18}}\ndata: {{train: 'python:{own_code}:load'}}\n"
    with pytest.raises(SpecError, match="names Python code to run"):
        parse_spec(text, where="x", base=Path("/"))

    assert parse_spec(f"{text}allow_code: true\n", where="x", base=Path("/")).spec.data.train.startswith("python:")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("outside", "labels 0 to 2 do not fit 2 classes"),
        ("failing", "no images today"),
        ("broken", "Return an object with len"),
        ("lode", "Did you mean load?"),
        ("9", "is no function"),
    ],
)
def test_mistakes_are_told(function: str, words: str, own_code: str) -> None:
    with pytest.raises(TltrainError) as caught:
        open_source(f"python:{own_code}:{function}", spec(), split="train", allow_code=True)

    assert words in str(caught.value)
    assert "data.train" in str(caught.value)


def test_item_that_is_no_image_is_named(own_code: str) -> None:
    source = open_source(f"python:{own_code}:plain", spec(), split="train", allow_code=True)

    assert not source.thread_safe
    assert isinstance(source.read(1), Image.Image)
    with pytest.raises(TltrainError, match=f"{own_code}:plain#7: cannot be read: IndexError"):
        source.read(7)
