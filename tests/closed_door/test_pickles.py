"""Files from elsewhere that hold a pickle: whatever they are called and whoever reads them, no code in them runs."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from canaries import pickled
from PIL import Image
from safetensors import SafetensorError

from tltrain.data.decode import decode
from tltrain.data.sources import open_source
from tltrain.errors import TltrainError
from tltrain.report.page import build_report
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import DataSpec
from tltrain.storage import Folder

RAY_TYPES = ("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2", "ray.data.arrow_variable_shaped_tensor")
PICKLING_TYPES = ("arrow.py_extension_type", "ray.data.arrow_pickled_object", *RAY_TYPES)
"""Extension types of Arrow whose readers have unpickled what a file says of them."""


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that a canary creates."""
    return tmp_path / "mark"


def image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def opened(source: Path) -> bytes:
    """Open a source and read its first image."""
    source_ = open_source(str(source), DataSpec(train=str(source), val=None), split="train")
    content = source_.read(0)
    assert isinstance(content, bytes)
    decode(content, source_.identity(0))
    return content


def test_the_canary_sings_so_that_these_tests_can_fail(mark: Path) -> None:
    pickle.loads(pickled(mark))

    assert mark.exists()


def checkpoint_with(folder: Path, name: str, content: bytes) -> Folder:
    """A checkpoint of step 1 in which a file has been replaced, and every sum corrected."""
    from tltrain.train.checkpoint import Checkpoints

    checkpoints = Folder.open(str(folder / "checkpoints"))
    Checkpoints(checkpoints, keep=1).save(1, {"lane": {"epoch": 1}}, {"epoch": 1}, background=False)
    step = checkpoints.child("1")
    step.write_bytes(name, content)
    manifest = json.loads(step.read_bytes("manifest.json"))
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    step.write_bytes("manifest.json", json.dumps(manifest).encode())
    step.write_bytes("COMMIT", (hashlib.sha256(step.read_bytes("manifest.json")).hexdigest() + "\n").encode())
    return checkpoints


@pytest.mark.parametrize("name", ["lane.safetensors", "lane.json", "info.json", "lane.pt", "extra.pkl"])
def test_a_checkpoint_with_right_sums_runs_nothing(tmp_path: Path, mark: Path, name: str) -> None:
    from tltrain.train.checkpoint import Checkpoints

    checkpoints = checkpoint_with(tmp_path, name, pickled(mark))
    if name.endswith((".pt", ".pkl")):
        assert Checkpoints(checkpoints, keep=1).load(1).step == 1
    else:
        with pytest.raises((SafetensorError, ValueError)):
            Checkpoints(checkpoints, keep=1).load(1)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../../outside.json", "/etc/passwd", "..", "a/b.json"])
def test_a_checkpoint_that_names_files_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    from tltrain.train.checkpoint import Checkpoints

    checkpoints = checkpoint_with(tmp_path, "info.json", b"{}")
    step = checkpoints.child("1")
    manifest = json.loads(step.read_bytes("manifest.json"))
    manifest["files"][name] = {"sha256": "0" * 64, "size": 0}
    step.write_bytes("manifest.json", json.dumps(manifest).encode())
    step.write_bytes("COMMIT", (hashlib.sha256(step.read_bytes("manifest.json")).hexdigest() + "\n").encode())

    with pytest.raises(TltrainError, match="no name of a file"):
        Checkpoints(checkpoints, keep=1).load(1)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_finished_model_runs_nothing(tmp_path: Path, mark: Path, name: str) -> None:
    from tltrain.inference.finished import open_model

    model = Folder.open(str(tmp_path / "model"))
    model.write_bytes("model.json", b'{"format": 1, "name": "resnet18", "classes": ["a"], "arguments": {}}')
    model.write_bytes("model.safetensors", b"")
    model.write_bytes(name, pickled(mark))

    with pytest.raises(TltrainError):
        open_model(str(tmp_path / "model"))
    assert not mark.exists()


def test_a_model_that_names_code_runs_none(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tltrain.inference.finished import open_model

    (tmp_path / "evil.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    monkeypatch.chdir(tmp_path)
    model = Folder.open(str(tmp_path / "model"))
    card = {"format": 1, "name": None, "factory": "evil:build", "classes": ["a"], "arguments": {}}
    model.write_bytes("model.json", json.dumps(card).encode())
    model.write_bytes("model.safetensors", b"")

    with pytest.raises(TltrainError):
        open_model(str(tmp_path / "model"))
    assert not mark.exists()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("member", ["a.pkl", "a.pickle", "a.pt", "a.pth", "a.pyd", "a.npy", "a.pyc", "__init__.py"])
def test_a_member_of_a_shard_that_others_unpickle_is_not_looked_at(tmp_path: Path, mark: Path, member: str) -> None:
    path = shard(tmp_path / "x.tar", {"a.png": image(), "a.cls": b"0", member: pickled(mark)})

    assert opened(path) == image()
    assert not mark.exists()


@pytest.mark.parametrize("member", ["a.png", "a.cls", "a.json"])
def test_a_pickle_in_place_of_an_image_or_a_label_runs_nothing(tmp_path: Path, mark: Path, member: str) -> None:
    path = shard(tmp_path / "x.tar", {"a.png": image(), "a.json": b'{"label": 0}', member: pickled(mark)})

    with pytest.raises(TltrainError, match="a"):
        opened(path)
    assert not mark.exists()


def table_with(kind: str, mark: Path, column: str) -> pa.Table:
    """A table of one image, in which a column says that it is of an extension type, and has a pickle to say which."""
    metadata = {"ARROW:extension:name": kind, "ARROW:extension:metadata": pickled(mark)}
    columns = {"image": pa.array([image()], pa.binary()), "label": pa.array(["a"])}
    fields = [
        pa.field(name, array.type, metadata=metadata if name == column else None) for name, array in columns.items()
    ]
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields))


def write_arrow(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {"t.parquet": pq.write_table, "t.arrow": write_arrow}


@pytest.mark.parametrize("column", ["image", "label"])
@pytest.mark.parametrize("kind", PICKLING_TYPES)
@pytest.mark.parametrize("name", WRITERS)
def test_a_type_that_arrow_would_unpickle_runs_nothing(
    tmp_path: Path, mark: Path, name: str, kind: str, column: str
) -> None:
    WRITERS[name](table_with(kind, mark, column), tmp_path / name)

    try:
        opened(tmp_path / name)
    except TltrainError as error:
        assert name in str(error)  # noqa: PT017
    assert not mark.exists()


OPEN_BESIDE_RAY_DATA = """
import sys
import ray.data.extensions
from ray.data import DataContext
from tltrain.cli.main import main
sys.argv = ["tltrain", "data", "check", sys.argv[1]]
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("column", ["image", "label"])
@pytest.mark.parametrize("kind", ["ray.data.arrow_pickled_object", *RAY_TYPES])
def test_beside_ray_data_whose_types_arrow_knows_nothing_runs_either(
    tmp_path: Path, mark: Path, kind: str, column: str
) -> None:
    pq.write_table(table_with(kind, mark, column), tmp_path / "t.parquet")

    command = [sys.executable, "-c", OPEN_BESIDE_RAY_DATA, str(tmp_path / "t.parquet")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert not mark.exists()
    assert done.returncode != 0, "it was looked at, and is refused"


@pytest.mark.parametrize("content", ["image", "label"])
def test_a_pickle_in_a_cell_runs_nothing(tmp_path: Path, mark: Path, content: str) -> None:
    columns = {"image": [image()], "label": [b"a"]} | {content: [pickled(mark)]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")

    with pytest.raises(TltrainError):
        opened(tmp_path / "t.parquet")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["predictions.parquet", "trials.json", "evaluation.json", "sharing.json"])
def test_a_report_of_somebody_elses_run_runs_nothing(tmp_path: Path, mark: Path, name: str) -> None:
    run = RunFolder.at(str(tmp_path), "x")
    run.update(name="x", state="finished")
    run.write_spec("name: x\nmodel: {name: resnet18}\ndata: {train: a}\n")
    run.folder.write_bytes(name, pickled(mark))

    try:
        build_report(run)
    except TltrainError as error:
        assert name in str(error)  # noqa: PT017
    assert not mark.exists()
