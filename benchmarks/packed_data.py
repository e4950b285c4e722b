"""Images packed into Parquet and read from S3, beside a folder on disk: opening, reading, and reading with decoding.

    python benchmarks/packed_data.py --images 2000 --epochs 2

The shipped images of Fashion-MNIST are enlarged to 256 pixels and saved as JPEG into a folder. `tltrain data pack`'s
function puts them into a bucket of moto, a server of its own on this machine that speaks S3's protocol. Then two arms
take turns, in an order that is turned round each time: the folder (from the page cache), and the pack, once held in
memory and once mapped from the copy that a large pack gets. Each turn opens the source, then reads every image of each
epoch in a random order through one thread. Prints one JSON object: medians over the turns, in seconds and images/s.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from tltrain.data import shards
from tltrain.data.decode import decode
from tltrain.data.pack import pack_split
from tltrain.data.sources import open_source
from tltrain.data.splits import load_splits
from tltrain.environment import num_cores
from tltrain.spec.schema import DataSpec
from tltrain.storage import Folder

IMAGES = Path(__file__).resolve().parent.parent / "jobs" / "data" / "fashion-mnist" / "train.parquet"
SIDE = 256


def write_folder(folder: Path, num_images: int) -> int:
    """Write images of the shipped set as JPEG, over and over with another quality; return their bytes."""
    table = pq.read_table(IMAGES)
    images, labels = table["image"].to_pylist(), table["label"].to_pylist()
    size = 0
    for number in range(num_images):
        image = decode(images[number % len(images)], "shipped").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        path = folder / str(labels[number % len(images)]) / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90 - number // len(images))
        size += path.stat().st_size
    return size


@contextmanager
def bucket() -> Iterator[str]:
    """Yield the address of an empty bucket on a server that runs for the time of the block."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    program = str(Path(sys.executable).with_name("moto_server"))
    server = subprocess.Popen(
        [program, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/photos", method="PUT")
        for _ in range(100):
            try:
                urllib.request.urlopen(request).close()
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        yield f"s3://photos/packed?scheme=http&endpoint_override=127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def check_same(folder: str, packed: str) -> None:
    """End the benchmark where the pack's images are not those of the folder."""
    one, other = (open_source(uri, DataSpec(train=uri), split="train") for uri in (folder, packed))
    assert len(one) == len(other)
    for index in range(len(one)):
        assert (one.read(index), one.identity(index)) == (other.read(index), other.identity(index))


def one_turn(uri: str, root: Path, epochs: int) -> dict[str, float]:
    """Open a source and read all of it; seconds, and images per second."""
    start = time.perf_counter()
    source = open_source(uri, DataSpec(train=uri, root=str(root)), split="train")
    open_s = time.perf_counter() - start
    order = list(range(len(source)))
    read_s = decode_s = 0.0
    for epoch in range(epochs):
        random.Random(epoch).shuffle(order)
        start = time.perf_counter()
        size = sum(len(content) for content in map(source.read, order) if isinstance(content, bytes))
        read_s += time.perf_counter() - start
        assert size, "nothing was read"
        start = time.perf_counter()
        for index in order:
            decode(source.read(index), "x")
        decode_s += time.perf_counter() - start
    count = epochs * len(order)
    return {
        "open_s": open_s,
        "read_images_per_s": count / read_s,
        "read_and_decode_images_per_s": count / decode_s,
        "open_and_first_epoch_s": open_s + decode_s / epochs,
    }


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description="Packed images on S3 beside a folder on disk.")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    os.environ.update(AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing")
    with tempfile.TemporaryDirectory() as temporary, bucket() as packed:
        folder = Path(temporary, "folder")
        size = write_folder(folder, options.images)
        split = load_splits(DataSpec(train=str(folder), val=None), 0).train
        start = time.perf_counter()
        pack_split(split, split.source.classes, Folder.open(packed), num_threads=num_cores(), shard_bytes=16 << 20)
        pack_s = time.perf_counter() - start
        check_same(str(folder), packed)
        arms = {
            "folder on disk": (str(folder), 1 << 40),
            "pack in memory": (packed, 1 << 40),
            "pack, copied": (packed, 0),
        }
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
        for turn in range(options.turns):
            for name in list(arms) if turn % 2 == 0 else reversed(list(arms)):
                uri, shards.MAX_IN_MEMORY = arms[name]
                turns[name].append(one_turn(uri, Path(temporary, f"root-{turn}"), options.epochs))
        medians = {
            name: {key: round(statistics.median(one[key] for one in measured), 4) for key in measured[0]}
            for name, measured in turns.items()
        }
        about = {"images": options.images, "megabytes": round(size / 1e6, 1), "pack_s": round(pack_s, 2)}
        print(json.dumps({**about, "turns": options.turns, "epochs": options.epochs, "arms": medians}, indent=2))


if __name__ == "__main__":
    main()
