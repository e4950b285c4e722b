"""Measures `tltrain predict` against a plain DataLoader loop with the same model, images and batch size.

    python benchmarks/predict.py                  # the shipped images, a ResNet-18 with random weights
    python benchmarks/predict.py --run runs/quickstart

First a gate: both have to find the same classes and probabilities. Then the arms take turns, forwards and backwards, in
one process, and the ratio tltrain / plain of images per second is taken within each turn. Both times run from opening
the images to the last prediction in a Parquet file; the model is loaded before. Both use the same number of loader
processes and threads.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from tltrain.data.preprocessing import Preprocessing
from tltrain.inference.finished import FinishedModel, open_model
from tltrain.inference.images import open_images
from tltrain.inference.parts import PredictionFile
from tltrain.inference.predict import choose_workers, classify
from tltrain.models.zoo import build_network
from tltrain.spec.schema import ModelSpec
from tltrain.storage import Folder
from tltrain.train.finish import save_model

IMAGES = Path(__file__).resolve().parent.parent / "jobs" / "data" / "fashion-mnist" / "train.parquet"
NUM_CLASSES = 10
TOLERANCE = 1e-5
TARGET_RATIO = 0.9


def main() -> None:
    """Pass the gate, take turns, print the figures."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="predict-") as folder:
        run = arguments.run or write_model(Path(folder), arguments.model, arguments.image_size)
        model, data = open_model(run), cut_data(Path(folder), arguments.images)
        arms = {
            "plain": lambda out: run_plain(model, data, arguments.batch_size, out),
            "tltrain": lambda out: run_tltrain(model, data, arguments.batch_size, out),
        }
        check_gate(arms, Path(folder))
        seconds = take_turns(arms, arguments.repetitions, Path(folder))
    print_summary(model, arguments, seconds)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a finished run, instead of --model with random weights")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    return parser.parse_args()


def write_model(folder: Path, name: str, image_size: int) -> str:
    """Write a model folder with random weights, and return its path."""
    network = build_network(ModelSpec(name=name, weights="random"), NUM_CLASSES, seed=0)
    preprocessing = dataclasses.replace(Preprocessing(), resize_size=image_size, crop_size=image_size)
    card = {
        "name": name,
        "factory": None,
        "arguments": network.arguments,
        "classes": [str(number) for number in range(NUM_CLASSES)],
        "preprocessing": preprocessing.to_dict(),
    }
    save_model(Folder.open(str(folder / "model")), card, network.module.state_dict())
    return str(folder / "model")


def cut_data(folder: Path, num_images: int) -> Path:
    """Write the first shipped images, over and over where there are too few, and return the file."""
    table = pq.read_table(IMAGES)
    copies = -(-num_images // len(table))
    path = folder / "images.parquet"
    pq.write_table(pa.concat_tables([table] * copies).slice(0, num_images), path)
    return path


def run_tltrain(model: FinishedModel, data: Path, batch_size: int, out: Path) -> None:
    """Predict as `tltrain predict --out` does."""
    images = open_images([str(data)])
    workers = choose_workers(len(images.source), batch_size)
    PredictionFile(str(out)).write(
        images,
        model.classes,
        "benchmark",
        batch_size,
        lambda requests: classify(model, images.source, requests, num_workers=workers),
        lambda done, kept: None,
    )


class PlainImages(Dataset[torch.Tensor]):
    """Images of a Parquet file, as one writes it by hand."""

    def __init__(self, path: Path, p: Preprocessing) -> None:
        self.images = pq.read_table(path).column("image")
        self.transform = v2.Compose(
            [
                v2.Resize(p.resize_size, interpolation=v2.InterpolationMode(p.interpolation), antialias=True),
                v2.CenterCrop(p.crop_size),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(p.mean, p.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(io.BytesIO(self.images[index].as_py())).convert("RGB"))


def run_plain(model: FinishedModel, data: Path, batch_size: int, out: Path) -> None:
    """Predict with a plain loop over a DataLoader, the network and images in the same memory format."""
    images = PlainImages(data, model.network.preprocessing)
    is_cuda = model.device.type == "cuda"
    loader = DataLoader(
        images, batch_size=batch_size, num_workers=choose_workers(len(images), batch_size), pin_memory=is_cuda
    )
    rows: list[dict[str, object]] = []
    with torch.inference_mode():
        for batch in loader:
            prepared = batch.to(model.device, non_blocking=True, memory_format=model.memory_format)
            best = model.network.module(prepared).softmax(1).max(1)
            for number, share in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                rows.append({"id": len(rows), "prediction": model.classes[number], "probability": share})
    pq.write_table(pa.Table.from_pylist(rows), out)


def check_gate(arms: dict[str, Callable[[Path], None]], folder: Path) -> None:
    """End the benchmark where the arms do not predict the same. It also warms both up."""
    tables = []
    for name, arm in arms.items():
        arm(folder / f"gate-{name}.parquet")
        tables.append(pq.read_table(folder / f"gate-{name}.parquet").to_pydict())
    plain, ours = tables
    shares = zip(plain["probability"], ours["probability"], strict=True)
    difference = max(abs(a - b) for a, b in shares)
    print(f"gate: {len(plain['id'])} images, probabilities differ by {difference:.1e}", flush=True)
    if plain["prediction"] != ours["prediction"] or difference > TOLERANCE:
        sys.exit("The arms do not predict the same, so their speed is not compared.")


def take_turns(arms: dict[str, Callable[[Path], None]], repetitions: int, folder: Path) -> dict[str, list[float]]:
    """Return seconds of every repetition of each arm; every other turn runs backwards, so that drift hits both."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for repetition in range(repetitions):
        for name in arms if repetition % 2 == 0 else reversed(arms):
            began = time.perf_counter()
            arms[name](folder / f"{name}-{repetition}.parquet")
            seconds[name].append(time.perf_counter() - began)
    return seconds


def print_summary(model: FinishedModel, arguments: argparse.Namespace, seconds: dict[str, list[float]]) -> None:
    """Print images per second of both arms and their ratio: median (smallest to largest)."""
    print(f"{json.dumps(vars(arguments))} on {model.device}, torch {torch.__version__}")
    for name, values in seconds.items():
        rates = [arguments.images / value for value in values]
        print(f"{name:<8} {statistics.median(rates):8.1f} images/s ({min(rates):.1f} to {max(rates):.1f})")
    ratios = [plain / ours for plain, ours in zip(seconds["plain"], seconds["tltrain"], strict=True)]
    median = statistics.median(ratios)
    verdict = "reaches" if median >= TARGET_RATIO else "misses"
    print(f"tltrain / plain {median:.3f} ({min(ratios):.3f} to {max(ratios):.3f}): {verdict} {TARGET_RATIO}")


if __name__ == "__main__":
    main()
