"""torchvision's classification data sets by name: their splits, class names and labels."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import filelock
import numpy as np
from PIL import Image
from torchvision import datasets

from tltrain.data.base import Source, digest
from tltrain.errors import DataError, Problem
from tltrain.spec.names import TORCHVISION_PREFIX
from tltrain.spec.schema import DataSpec

_LABELS = ("targets", "_labels", "labels", "y")
_SAMPLES = ("_samples", "samples")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """Where a data set's files stand under the root and come from, and what torchvision calls its splits.

    splits: our name -> torchvision's; booleans are the argument `train`, names the argument `split`, None
    neither.
    """

    folder: str
    url: str
    splits: Mapping[str, str | bool | None] = field(default_factory=lambda: {"train": "train", "test": "test"})


_FLAG = {"train": True, "test": False}
_ALL_THREE = {"train": "train", "val": "val", "test": "test"}
_WHOLE = {"train": None}
_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
_CLIP = "https://openaipublic.azureedge.net/clip/data"

LAYOUTS: Mapping[str, Layout] = {
    "CIFAR10": Layout("cifar-10-batches-py", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", _FLAG),
    "CIFAR100": Layout("cifar-100-python", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", _FLAG),
    "MNIST": Layout("MNIST/raw", "https://ossci-datasets.s3.amazonaws.com/mnist/", _FLAG),
    "FashionMNIST": Layout("FashionMNIST/raw", "https://github.com/zalandoresearch/fashion-mnist", _FLAG),
    "KMNIST": Layout("KMNIST/raw", "http://codh.rois.ac.jp/kmnist/dataset/kmnist/", _FLAG),
    "QMNIST": Layout("QMNIST/raw", "https://github.com/facebookresearch/qmnist", _FLAG),
    "USPS": Layout("", "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps", _FLAG),
    "SVHN": Layout("", "http://ufldl.stanford.edu/housenumbers/"),
    "STL10": Layout("stl10_binary", "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"),
    "Flowers102": Layout("flowers-102", f"{_OXFORD}/flowers/102/", _ALL_THREE),
    "Food101": Layout("food-101", "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"),
    "OxfordIIITPet": Layout("oxford-iiit-pet", f"{_OXFORD}/pets/", {"train": "trainval", "test": "test"}),
    "StanfordCars": Layout("stanford_cars", "https://github.com/pytorch/vision/issues/7545"),
    "FGVCAircraft": Layout("fgvc-aircraft-2013b", f"{_OXFORD}/fgvc-aircraft/", _ALL_THREE),
    "DTD": Layout("dtd", f"{_OXFORD}/dtd/", _ALL_THREE),
    "GTSRB": Layout("gtsrb", "https://benchmark.ini.rub.de/"),
    "EuroSAT": Layout("eurosat", "https://github.com/phelber/eurosat", _WHOLE),
    "Country211": Layout("country211", f"{_CLIP}/country211.tgz", {**_ALL_THREE, "val": "valid"}),
    "PCAM": Layout("pcam", "https://github.com/basveeling/pcam", _ALL_THREE),
    "RenderedSST2": Layout("rendered-sst2", f"{_CLIP}/rendered-sst2.tgz", _ALL_THREE),
    "FER2013": Layout("fer2013", "https://www.kaggle.com/datasets/msambare/fer2013"),
    "Caltech101": Layout("caltech101", "https://data.caltech.edu/records/mzrjq-6wc02", _WHOLE),
    "Caltech256": Layout("caltech256", "https://data.caltech.edu/records/nyy15-4j048", _WHOLE),
    "Imagenette": Layout("imagenette2", "https://github.com/fastai/imagenette", {"train": "train", "val": "val"}),
    "SUN397": Layout("SUN397", "https://vision.princeton.edu/projects/2010/SUN/", _WHOLE),
}


class TorchvisionSource(Source):
    """One split of a torchvision data set."""

    def __init__(self, name: str, split: str, dataset: Any) -> None:
        """Take a data set without transforms; `split` is torchvision's name of the part."""
        self._name = f"{name}/{split}"
        self._dataset = dataset
        self._order = _stable_order(dataset)
        self.labels = _labels(name, dataset)[self._order]
        self.classes = _class_names(dataset, self.labels)

    def read(self, index: int) -> bytes | Image.Image:
        """Return the file's bytes where torchvision leaves loading to a callable, else its image."""
        try:
            return self._dataset[int(self._order[index])][0]
        except (OSError, SyntaxError, ValueError) as error:
            problem = Problem(f"cannot be read: {error}", "Fetch the data set again", where=self.identity(index))
            raise DataError(problem) from error

    def identity(self, index: int) -> str:
        """Return `NAME/SPLIT#INDEX`."""
        return f"{self._name}#{index}"

    def fingerprint(self) -> str:
        """Return a sha256 over name, split, classes and labels."""
        return digest("torchvision", self.classes, self.labels, names=[self._name])


def open_torchvision(name: str, data: DataSpec, split: Literal["train", "val", "test"]) -> TorchvisionSource:
    """Open one split of a data set that torchvision has, fetched once per root if `data.download` allows it.

    Raises DataError if the name or the split is unknown, or the files are not there and cannot be fetched.
    """
    key = f"data.{split}"
    layout = _layout(name, key)
    if split not in layout.splits:
        raise DataError(Problem(f"{name} has no {split} split", _advice(layout, split), key=key))
    theirs = layout.splits[split]
    arguments: dict[str, Any] = {}
    if theirs is not None:
        arguments["train" if isinstance(theirs, bool) else "split"] = theirs
    part = split if isinstance(theirs, bool) else theirs or "all"
    return TorchvisionSource(name, part, _construct(name, layout, arguments, data, key))


def split_names(name: str) -> list[str]:
    """Return the splits that a data set has, by our names. Raises DataError if it is not known."""
    return list(_layout(name, "data").splits)


def _layout(name: str, key: str) -> Layout:
    if name in LAYOUTS:
        return LAYOUTS[name]
    folded = {known.lower(): known for known in LAYOUTS}
    near = difflib.get_close_matches(name.lower(), folded, n=3)
    action = f"Did you mean {', '.join(folded[n] for n in near)}?" if near else f"Known are {', '.join(LAYOUTS)}"
    raise DataError(Problem(f"{TORCHVISION_PREFIX}{name} is not a data set that is known", action, key=key))


def _advice(layout: Layout, split: str) -> str:
    if len(layout.splits) == 1:
        return f"It is not split at all; set data.{split} to a fraction of the training images, such as 0.1"
    return f"It has {' and '.join(layout.splits)}; set data.{split} to a fraction or to another source"


def _construct(name: str, layout: Layout, arguments: dict[str, Any], data: DataSpec, key: str) -> Any:
    dataset_class = getattr(datasets, name)
    accepted = inspect.signature(dataset_class.__init__).parameters
    root = Path(data.root).expanduser()
    download = data.download and _may_write(root)
    if "loader" in accepted:
        arguments["loader"] = _read_bytes
    if download and ("download" in accepted or "kwargs" in accepted):
        arguments["download"] = True
    try:
        with _one_at_a_time(root, name) if download else contextlib.nullcontext():
            return dataset_class(root=str(root), **arguments)
    except ModuleNotFoundError as error:
        problem = Problem(f"{name} needs the package {error.name}", f"pip install {error.name}", key=key)
        raise DataError(problem) from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = "data.download is false" if not data.download else f"{root} may not be written"
        what = f"{name} could not be fetched" if download else f"{name} is not there or is damaged, and {reason}"
        action = f"Put its files from {layout.url} into {root / layout.folder}"
        raise DataError(Problem(f"{what}: {error}", action, key=key)) from error


def _may_write(root: Path) -> bool:
    """Make the folder if it is not there, and return whether this user may write in it."""
    with contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
    return os.access(root, os.W_OK)


def _read_bytes(path: str | Path) -> bytes:
    return Path(path).read_bytes()


@contextlib.contextmanager
def _one_at_a_time(root: Path, name: str) -> Iterator[None]:
    """Hold the lock under which a data set is fetched and unpacked, so that nobody reads half of it."""
    lock = filelock.FileLock(os.fspath(root / f".{name}.lock"))
    try:
        lock.acquire(timeout=5)
    except filelock.Timeout:
        _logger.info("waiting for another process that prepares %s in %s", name, root)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _stable_order(dataset: Any) -> np.ndarray:
    """Return int64 [N], the order of samples: by path where the data set takes what the file system gives."""
    if isinstance(dataset, datasets.SUN397):
        return np.array(sorted(range(len(dataset)), key=lambda i: str(dataset._image_files[i])), dtype=np.int64)
    return np.arange(len(dataset), dtype=np.int64)


def _labels(name: str, dataset: Any) -> np.ndarray:
    """Return labels, int64 [N], without decoding images where the data set keeps them apart."""
    values = next((getattr(dataset, attribute) for attribute in _LABELS if hasattr(dataset, attribute)), None)
    if values is None:
        samples = next((getattr(dataset, attribute) for attribute in _SAMPLES if hasattr(dataset, attribute)), None)
        values = [sample[1] for sample in (dataset if samples is None else samples)]
        if None in values:
            raise DataError(f"{name} has images without labels", "Fetch the edition of the data set that has them")
    labels = np.asarray(values).astype(np.int64)
    return labels[:, 0] if labels.ndim == 2 else labels  # QMNIST keeps eight numbers per image, the class first


def _class_names(dataset: Any, labels: np.ndarray) -> tuple[str, ...]:
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    if not names:
        return tuple(str(number) for number in range(int(labels.max()) + 1))
    return tuple(name if isinstance(name, str) else name[0] for name in names)
