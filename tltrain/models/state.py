"""State dicts from files and URLs, read without ever running code, and loaded into a network key by key."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import urllib.request
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tltrain.errors import DataError, Problem

_TIMEOUT_S = 60  # without a byte from the server
_SHOWN = 10
_log = logging.getLogger(__name__)

_CONVERT = (
    "If you trust it, read it once with torch.load(..., weights_only=False) and write its state_dict with "
    "safetensors.torch.save_file"
)


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a PyTorch file (.pt, .pth, ...), on the CPU.

    Wrappers such as `{"state_dict": ...}` and the prefix `module.` are taken off.

    Raises:
        DataError: the file cannot be read, or is a pickle of more than tensors. No code in it is ever run.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _load_pytorch(path)
    except (OSError, SafetensorError) as error:
        raise DataError(Problem(f"the weights cannot be read: {error}", "Check the file", str(path))) from error
    return _unwrapped(state, path)


def fetch(url: str, file_name: str, sha256_prefix: str = "") -> Path:
    """Return the file at `url`, downloaded once per node into the folder of torch.hub's checkpoints.

    Processes that ask at the same time wait for the first one.

    Raises:
        DataError: it cannot be fetched, or its SHA-256 does not begin with `sha256_prefix`.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", file_name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                _download(url, path, sha256_prefix)
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{url} cannot be fetched: {reason}",
            f"Fetch it elsewhere and put it at {path}, or set model.weights to a local file or to `random`",
        ) from error
    return path


def cached_name(url: str) -> str:
    """Return a file name for a user's URL; URLs that end alike have different ones."""
    name = urlsplit(url).path.rpartition("/")[2] or "weights"
    return f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"


def load_state(module: nn.Module, state: Mapping[str, Tensor], head_name: str, source: str) -> bool:
    """Copy a state dict into `module`; return whether that included the head.

    A head of another size, or none at all, leaves the module's own head as it is.

    Args:
        module: the network.
        state: its parameters and buffers by dotted name.
        head_name: dotted name of the layer whose size depends on the classes.
        source: where the state comes from, for messages.

    Raises:
        DataError: any other name is missing, unexpected or has another shape.
    """
    own = module.state_dict()
    head = {name for name in own if name.startswith(f"{head_name}.")}
    if not _same_head({name: own[name] for name in head}, state):
        _log.info("%s: its head is left out, for it has another number of classes", source)
        state = {name: tensor for name, tensor in state.items() if name not in head}
    else:
        head = set()
    _refuse_differences(own, state, head, source)
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    return not head


def _load_pytorch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a foreign file: what a broken one raises is anybody's guess
        reason = str(error).strip().partition("\n")[0]
        what = f"this is no file of plain tensors, and nothing else is read: {reason}"
        raise DataError(Problem(what, _CONVERT, str(path))) from error


def _unwrapped(state: object, path: Path) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise DataError(Problem("this is no state dict: names with a tensor each", _CONVERT, str(path)))
    prefix = "module." if all(str(name).startswith("module.") for name in state) else ""
    return {str(name).removeprefix(prefix): tensor for name, tensor in state.items()}


def _download(url: str, path: Path, sha256_prefix: str) -> None:
    _log.info("fetching %s", url)
    request = urllib.request.Request(url, headers={"User-Agent": "tltrain"})
    digest = hashlib.sha256()
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with (
            urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply,
            os.fdopen(descriptor, "wb") as file,
        ):
            while chunk := reply.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
        if not digest.hexdigest().startswith(sha256_prefix):
            raise DataError(f"{url} is damaged: its SHA-256 begins with {digest.hexdigest()[:16]}", "Try again")
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _same_head(head: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    """Whether the state has a head with as many outputs."""
    return all(name in state and state[name].shape[:1] == tensor.shape[:1] for name, tensor in head.items())


def _refuse_differences(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], head: Collection[str], source: str
) -> None:
    # Files from before BatchNorm counted batches lack that counter, which stays at zero then.
    missing = [n for n in own if n not in state and n not in head and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [n for n, t in state.items() if n in own and t.shape != own[n].shape]
    differences = [
        *(f"{name} is missing" for name in missing),
        *(f"{name} is not in the network" for name in unexpected),
        *(f"{n} has shape {list(state[n].shape)}, not {list(own[n].shape)}" for n in shapes),
    ]
    if differences:
        more = f", and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise DataError(
            Problem(
                f"these are weights of another network: {'; '.join(differences[:_SHOWN])}{more}",
                "Set model.name to the network that the weights belong to",
                source,
                "model.weights",
            )
        )
