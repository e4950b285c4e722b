"""Are a network's weights on this machine, or can they be fetched? Looks and loads nothing."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import torch

from tltrain.errors import DataError, Problem, TltrainError
from tltrain.models import lite
from tltrain.models.weights import download_of
from tltrain.spec.schema import ModelSpec
from tltrain.storage import Folder

TIMEOUT_S = 10.0


def check_weights(model: ModelSpec) -> None:
    """Raise DataError where the weights are neither here nor to be fetched from here.

    What a network's own builder fetches (timm, a factory of the user's) is not known beforehand and not looked at.
    """
    download = download_of(model)
    if download is not None:
        _check_download(*download)
    elif model.weights == "default":
        if model.name == lite.NAME:
            lite.weights_file()
    elif model.weights != "random":
        _check_path(model.weights)


def _check_download(url: str, name: str) -> None:
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if path.exists():
        return
    request = urllib.request.Request(url, headers={"User-Agent": "tltrain"}, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        what = f"{url} cannot be fetched ({reason}), and {path} is not there"
        action = "Fetch it elsewhere and put it there, or set model.weights to a file that all nodes see or to `random`"
        raise DataError(Problem(what, action, key="model.weights")) from error


def _check_path(weights: str) -> None:
    try:
        folder = None if "://" not in weights else Folder.open(weights)
        is_there = Path(weights).expanduser().exists() if folder is None else bool(folder.names())
    except TltrainError as error:
        raise DataError(Problem(error.problems[0].what, error.problems[0].action, key="model.weights")) from error
    if not is_there:
        what = f"there is no {weights}"
        raise DataError(Problem(what, "Put it where all nodes see it", key="model.weights"))
