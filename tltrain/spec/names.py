"""Names that a spec may use for networks, data sets and tables, known without importing torch."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

TORCHVISION_PREFIX = "torchvision:"
HUGGINGFACE_PREFIX = "huggingface:"
WEBDATASET_PREFIX = "webdataset:"
PYTHON_PREFIX = "python:"
_PREFIX = re.compile(f"{TORCHVISION_PREFIX}|{HUGGINGFACE_PREFIX}|{WEBDATASET_PREFIX}|{PYTHON_PREFIX}")
_SPLIT = re.compile(r":[\w.-]+$")

# The classification sets of torchvision.datasets that can be loaded.
TORCHVISION_DATA_SETS = (
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "FashionMNIST",
    "KMNIST",
    "QMNIST",
    "USPS",
    "SVHN",
    "STL10",
    "Flowers102",
    "Food101",
    "OxfordIIITPet",
    "StanfordCars",
    "FGVCAircraft",
    "DTD",
    "GTSRB",
    "EuroSAT",
    "Country211",
    "PCAM",
    "RenderedSST2",
    "FER2013",
    "Caltech101",
    "Caltech256",
    "Imagenette",
    "SUN397",
)

ARCHIVE_SUFFIX = ".tar"

# Files that are read as tables of images and labels; any other source is a folder, an archive or has a prefix.
TABLE_SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".ipc", ".csv", ".tsv")

OWN_MODELS = ("efficientnet_lite0",)
TIMM_PREFIX = "timm/"

_BUILDER = re.compile(r"^@register_model\([^)]*\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


def source_parts(source: str) -> tuple[str, str, str]:
    """The prefix of a source, the path or name behind it, and the `:SPLIT` of a Hugging Face data set."""
    found = _PREFIX.match(source)
    prefix = found.group() if found else ""
    name = source[len(prefix) :]
    split = _SPLIT.search(name) if prefix == HUGGINGFACE_PREFIX else None
    return (prefix, name[: split.start()], split.group()) if split else (prefix, name, "")


@cache
def model_names() -> tuple[str, ...]:
    """Every classifier of the installed torchvision, and our own; empty where there is no torchvision."""
    torchvision = importlib.util.find_spec("torchvision")
    if torchvision is None or not torchvision.submodule_search_locations:
        return ()
    found: set[str] = set(OWN_MODELS)
    for folder in torchvision.submodule_search_locations:
        for source in sorted(Path(folder, "models").glob("*.py")):
            found.update(_BUILDER.findall(source.read_text(encoding="utf-8")))
    return tuple(sorted(found))
