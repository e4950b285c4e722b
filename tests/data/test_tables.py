"""Tables: image bytes, paths and structs; class names; what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import encode, spec
from PIL import Image

from tltrain.data.sources import Source, open_source
from tltrain.errors import DataError

A, B = encode(Image.new("L", (4, 4), 1)), encode(Image.new("L", (4, 4), 2))


def opened(path: Path, **settings: object) -> Source:
    return open_source(str(path), spec(**settings), split="train")


def write_parquet(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


def write_file(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def write_stream(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, tuple[str, Callable[[Path, pa.Table], None]]] = {
    "parquet": ("t.parquet", write_parquet),
    "arrow file": ("t.feather", write_file),
    "arrow stream": ("t.arrow", write_stream),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_bytes_are_read_from_every_format(tmp_path: Path, writer: str) -> None:
    name, write = WRITERS[writer]
    write(tmp_path / name, pa.table({"other": [1, 2, 3], "label": ["dog", "cat", "dog"], "image": [A, B, A]}))
    source = opened(tmp_path / name)
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [1, 0, 1]
    assert [source.read(i) for i in range(3)] == [A, B, A]
    assert source.identity(2) == f"{name}#2"
    again = pickle.loads(pickle.dumps(source))
    assert again.read(1) == B
    assert again.fingerprint() == source.fingerprint()


def test_several_chunks_are_one_column(tmp_path: Path) -> None:
    table = pa.table({"image": [bytes([i]) for i in range(100)], "label": [i % 2 for i in range(100)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=7)
    source = opened(tmp_path / "t.parquet")
    assert [source.read(i) for i in range(100)] == [bytes([i]) for i in range(100)]


def test_structs_give_bytes_or_paths(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(A)
    embedded = [{"bytes": A, "path": None}, {"bytes": B, "path": "b.png"}]
    write_parquet(tmp_path / "e.parquet", pa.table({"image": embedded, "label": [0, 1]}))
    assert opened(tmp_path / "e.parquet").read(1) == B
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    named = pa.array([{"bytes": None, "path": "a.png"}] * 2, kind)
    write_parquet(tmp_path / "n.parquet", pa.table({"image": named, "label": [0, 1]}))
    assert opened(tmp_path / "n.parquet").read(1) == A
    assert opened(tmp_path / "n.parquet").identity(1) == "a.png"


def test_integers_are_class_names_in_numerical_order(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t.parquet", pa.table({"image": [A, B, A], "label": [10, 9, 10]}))
    source = opened(tmp_path / "t.parquet")
    assert source.classes == ("9", "10")
    assert source.labels.tolist() == [1, 0, 1]


HUGGING_FACE = {"info": {"features": {"label": {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}}}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tltrain.classes", ["cat", "dog", "owl"]),
        ("classes", ["cat", "dog", "owl"]),
        ("huggingface", HUGGING_FACE),
    ],
)
def test_metadata_names_integer_labels(tmp_path: Path, key: str, value: object) -> None:
    table = pa.table({"image": [A, B], "label": [2, 0]}).replace_schema_metadata({key: json.dumps(value)})
    write_parquet(tmp_path / "t.parquet", table)
    source = opened(tmp_path / "t.parquet")
    assert source.classes == ("cat", "dog", "owl")
    assert source.labels.tolist() == [2, 0]


def test_dictionary_labels_and_other_columns_by_name(tmp_path: Path) -> None:
    kinds = pa.array(["x", "y", "x"]).dictionary_encode()
    write_parquet(tmp_path / "t.parquet", pa.table({"photo": [A, B, A], "kind": kinds}))
    source = opened(tmp_path / "t.parquet", image_column="photo", label_column="kind")
    assert source.labels.tolist() == [0, 1, 0]


def test_csv_paths_are_relative_to_the_csv_and_cells_are_text(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a, 1.png").write_bytes(A)
    text = 'path,label\n"images/a, 1.png",NA\nimages/../images/a%20.png,007\n'
    (tmp_path / "images" / "a%20.png").write_bytes(B)
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8-sig"))
    source = opened(tmp_path / "t.csv")
    assert source.classes == ("007", "NA")
    assert [source.read(i) for i in range(2)] == [A, B]
    assert source.identity(0) == "images/a, 1.png"


def test_csv_of_integers_sorts_them_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(A)
    (tmp_path / "t.tsv").write_text("file_name\tlabel\na.png\t10\na.png\t2\n")
    source = opened(tmp_path / "t.tsv")
    assert source.classes == ("2", "10")
    assert "1 rows name a file that another row names" in source.warnings[0]


def table(**columns: object) -> Callable[[Path], None]:
    return lambda path: write_parquet(path, pa.table(columns))


def metadata(labels: list[object], names: list[str]) -> Callable[[Path], None]:
    built = pa.table({"image": [A] * len(labels), "label": labels})
    return lambda path: write_parquet(path, built.replace_schema_metadata({"classes": json.dumps(names)}))


BAD: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    "no rows": (
        "t.parquet",
        table(image=pa.array([], pa.binary()), label=pa.array([], pa.string())),
        ["no rows"],
    ),
    "columns": (
        "t.parquet",
        table(images=[A], labels=["x"]),
        ["no column of images", "(images?)", "(labels?)"],
    ),
    "null label": ("t.parquet", table(image=[A, B], label=["x", None]), ["1 rows have no label", ": 1)"]),
    "null image": ("t.parquet", table(image=[None, B], label=["x", "y"]), ["1 rows have no image", ": 0)"]),
    "float label": ("t.parquet", table(image=[A], label=[0.5]), ["labels are double"]),
    "image type": ("t.parquet", table(image=[1], label=["x"]), ["column image holds int64"]),
    "struct": ("t.parquet", table(image=[{"data": A}], label=["x"]), ["`bytes` or `path`", "data"]),
    "number out of names": ("t.parquet", metadata([0, 2], ["a", "b"]), ["0 to 2 do not fit 2 class names"]),
    "name out of names": ("t.parquet", metadata(["a", "c"], ["a", "b"]), ["does not hold the labels c"]),
    "not parquet": ("t.parquet", lambda path: path.write_bytes(b"no"), ["cannot be read as its suffix says"]),
    "not arrow": ("t.arrow", lambda path: path.write_bytes(b"no way"), ["cannot be read as its suffix says"]),
    "not utf-8": ("t.csv", lambda path: path.write_bytes(b"path,label\n\xff,1\n"), ["t.csv:2", "no UTF-8 text"]),
    "empty csv": ("t.csv", lambda path: path.write_bytes(b""), ["has no columns"]),
    "csv cell": ("t.csv", lambda path: path.write_text("path,label\na.png,\n"), ["1 rows have no label"]),
    "short row": ("t.csv", lambda path: path.write_text("path,label\na.png\n"), ["1 rows have no label"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_explained(tmp_path: Path, name: str) -> None:
    file_name, write, words = BAD[name]
    write(tmp_path / file_name)
    with pytest.raises(DataError) as caught:
        opened(tmp_path / file_name)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "data.train: " in str(caught.value)


def test_missing_files_are_counted_and_ten_are_named(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,x\n" for i in range(13))
    (tmp_path / "t.csv").write_text("path,label\n" + rows)
    with pytest.raises(DataError, match=r"13 files that are not there: 0.png, .*9.png and 3 more"):
        opened(tmp_path / "t.csv")
