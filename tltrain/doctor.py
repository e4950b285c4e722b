"""Is this machine fit to train and to reach its clusters? One finding per check, with advice where it is not."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from tltrain.environment import num_cores
from tltrain.errors import TltrainError
from tltrain.jobs.clusters import load_cluster
from tltrain.jobs.endpoint import Endpoint, ray_program, reach
from tltrain.jobs.local_state import TOKEN_FILE, read_state, state_dir
from tltrain.jobs.ray_jobs import RayJobs
from tltrain.machine import num_gpus, open_file_limits, shared_memory
from tltrain.storage import Folder

State = Literal["ok", "warning", "problem"]
GIB = 2**30
MIN_FREE, MIN_SHARED, MIN_MEMORY, MIN_OPEN_FILES = 2 * GIB, GIB, 2 * GIB, 4096
ANSWER_TIMEOUT_S = 5.0
_SHOWN = ("torch", "torchvision", "ray", "pyarrow", "pillow")


@dataclass(frozen=True)
class Finding:
    """What one check found, and, where that is not ok, one line on what to do."""

    check: str
    state: State
    what: str
    advice: str = ""


def examine(storage: str, cluster: str | None = None) -> Iterator[Finding]:
    """Yield what every check finds, one after the other; none of them raises.

    storage: the folder or address where runs are to go. cluster: one to be reached, besides the local ones that are
    up. Nothing is left behind.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [
        _versions,
        _extras,
        _devices,
        _memory,
        _shared_memory,
        _open_files,
        _weights,
        lambda: _storage(storage),
        _ray,
        lambda: _clusters(cluster),
        _tokens,
    ]
    for check in checks:
        yield from check()


def _versions() -> Iterator[Finding]:
    versions, wrong = {}, []
    for requirement in _requirements():
        try:
            versions[requirement.name] = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(versions[requirement.name], prereleases=True):
            wrong.append(f"{requirement.name} {versions[requirement.name]} is not {requirement.specifier}")
    if wrong:
        yield Finding("versions", "problem", "; ".join(wrong), "pip install --upgrade tltrain")
    else:
        shown = [f"{name} {versions[name]}" for name in _SHOWN if name in versions]
        yield Finding("versions", "ok", f"tltrain {importlib.metadata.version('tltrain')}, {', '.join(shown)}")


def _requirements(extra: str = "") -> list[Requirement]:
    """What an installation needs; with `extra`, what that extra adds."""
    given = [Requirement(text) for text in importlib.metadata.requires("tltrain") or ()]
    if not extra:
        return [one for one in given if one.marker is None or one.marker.evaluate({"extra": ""})]
    with_it = [one for one in given if one.marker and one.marker.evaluate({"extra": extra})]
    return [one for one in with_it if one.marker and not one.marker.evaluate({"extra": ""})]


def _extras() -> Iterator[Finding]:
    names = importlib.metadata.metadata("tltrain").get_all("Provides-Extra") or []
    missing = [name for name in names if name != "dev" and not all(map(_is_installed, _requirements(name)))]
    there = [name for name in names if name != "dev" and name not in missing]
    what = f"installed: {', '.join(there) or 'none'}"
    if missing:
        what += f"; others: pip install 'tltrain[{','.join(missing)}]'"
    yield Finding("extras", "ok", what)


def _is_installed(requirement: Requirement) -> bool:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(version, prereleases=True)


def _devices() -> Iterator[Finding]:
    cores, gpus = f"{num_cores()} CPU cores", num_gpus()
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("devices", "problem", f"torch cannot be imported: {error}", "pip install --force-reinstall torch")
        return
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        shown = ", ".join(f"{device.name} ({device.total_memory / GIB:.0f} GiB)" for device in devices)
        yield Finding("devices", "ok", f"{cores}, {shown}")
    elif gpus and torch.version.cuda is None:
        advice = "Install torch's CUDA build: https://pytorch.org/get-started/locally"
        yield Finding("devices", "problem", f"there are {gpus} GPUs, and this torch is built without CUDA", advice)
    elif gpus:
        advice = f"Compare `nvidia-smi` with what CUDA {torch.version.cuda} needs, or update the driver"
        yield Finding("devices", "problem", f"there are {gpus} GPUs that torch cannot use", advice)
    else:
        yield Finding("devices", "ok", f"{cores}, no GPU")


def _memory() -> Iterator[Finding]:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return  # not Linux
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    advice = "" if free >= MIN_MEMORY else "End other programs, or lower train.batch_size and resources.num_workers"
    yield Finding("memory", _state(not advice), f"{free / GIB:.1f} GiB free", advice)


def _shared_memory() -> Iterator[Finding]:
    found = shared_memory()
    if found is None:
        return
    total, free = found
    what = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if total < MIN_SHARED:
        advice = "Ray and the loader's processes share images there; in Docker: --shm-size=8g"
    else:
        advice = "" if free >= MIN_SHARED // 2 else "See what fills /dev/shm: ls -lhS /dev/shm"
    yield Finding("shared memory", _state(not advice), what, advice)


def _open_files() -> Iterator[Finding]:
    soft, hard = open_file_limits()
    is_enough = soft == -1 or soft >= MIN_OPEN_FILES
    can_raise = hard == -1 or hard >= MIN_OPEN_FILES
    how = "ulimit -n 65536" if hard == -1 or hard >= 65536 else f"ulimit -n {hard}"
    advice = how if can_raise else "Raise nofile in /etc/security/limits.conf; in Docker: --ulimit nofile=65536"
    what = "no limit" if soft == -1 else f"{soft:,} at a time"
    yield Finding("open files", _state(is_enough), what, "" if is_enough else f"Ray needs more: {advice}")


def _weights() -> Iterator[Finding]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch").expanduser()
    folder = Path(os.environ.get("TORCH_HOME") or cache, "hub", "checkpoints").expanduser()
    files = [path for path in folder.glob("*.pth") if path.is_file()] if folder.is_dir() else []
    size = sum(path.stat().st_size for path in files)
    existing = _nearest(folder)
    if not os.access(existing, os.W_OK):
        advice = "Set TORCH_HOME to a folder that may be written"
        yield Finding("weights cache", "problem", f"{existing} may not be written", advice)
        return
    yield Finding("weights cache", "ok", f"{folder}: {len(files)} networks, {size / 2**20:.0f} MiB")


def _storage(storage: str) -> Iterator[Finding]:
    try:
        folder = Folder.open(storage)
        if folder.local_path is not None:
            yield _local_storage(folder.local_path)
            return
        probe = ".tltrain-doctor"
        folder.write_bytes(probe, b"")
        folder.delete(probe)
    except TltrainError as error:
        yield Finding("storage", "problem", _text(error), error.problems[0].action)
    else:
        yield Finding("storage", "ok", f"{folder} can be written")


def _local_storage(path: Path) -> Finding:
    """Write a nameless file where the storage is or would be made."""
    existing = _nearest(path)
    try:
        with tempfile.TemporaryFile(dir=existing) as stream:
            stream.write(b"\0")
    except OSError as error:
        reason = error.strerror or str(error)
        return Finding("storage", "problem", f"{existing}: {reason}", "Choose another `storage`, or change its rights")
    free = shutil.disk_usage(existing).free
    advice = "" if free >= MIN_FREE else "Free some space, or choose another `storage`"
    return Finding("storage", _state(not advice), f"{path} can be written, {free / GIB:.0f} GiB free", advice)


def _ray() -> Iterator[Finding]:
    try:
        program = ray_program()
    except TltrainError as error:
        yield Finding("ray", "problem", error.problems[0].what, error.problems[0].action)
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        what = f"RAY_ADDRESS is set: runs join the cluster at {address}"
        yield Finding("ray", "warning", what, "unset RAY_ADDRESS to train on this machine")
    else:
        yield Finding("ray", "ok", f"{program}; runs start a Ray of their own")


def _clusters(name: str | None) -> Iterator[Finding]:
    """Ask the local clusters that are up, and the one that is named, whether they answer."""
    for known in _local_clusters():
        try:
            state = read_state(known)
            if state is not None and state.is_alive and known != name:
                token = (state_dir(known) / TOKEN_FILE).read_text("utf-8").strip()
                yield _answer(known, Endpoint(state.url, token))
        except (OSError, TltrainError) as error:
            yield Finding(f"cluster {known}", "problem", str(error), f"tltrain cluster down {known}")
    if name is not None:
        try:
            with reach(load_cluster(name)) as endpoint:
                yield _answer(name, endpoint)
        except TltrainError as error:
            yield Finding(f"cluster {name}", "problem", _text(error), error.problems[0].action)


def _answer(name: str, endpoint: Endpoint) -> Finding:
    try:
        usage = RayJobs(endpoint, timeout_s=ANSWER_TIMEOUT_S).usage()
    except TltrainError as error:
        return Finding(f"cluster {name}", "problem", _text(error), error.problems[0].action)
    has = "" if usage is None else f": {usage.free_cpus:g} of {usage.cpus:g} CPU cores, {usage.gpus:g} GPUs free"
    return Finding(f"cluster {name}", "ok", f"{endpoint.url} answers{has}")


def _local_clusters() -> list[str]:
    folder = state_dir("x").parent
    return sorted(path.parent.name for path in folder.glob("*/cluster.json")) if folder.is_dir() else []


def _tokens() -> Iterator[Finding]:
    """Look whether others may read the tokens that this user's clusters are reached with."""
    tokens = sorted(state_dir("x").parent.glob(f"*/{TOKEN_FILE}"))
    rays = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    tokens += [rays] if rays.is_file() else []
    open_to_others = [path for path in tokens if stat.S_IMODE(path.stat().st_mode) & 0o077]
    for path in open_to_others:
        yield Finding("token", "problem", f"{path} can be read by other users", f"chmod 600 {path}")
    if not open_to_others:
        what = f"{len(tokens)} files that this user alone can read" if tokens else "none yet: a local cluster makes one"
        yield Finding("token", "ok", what)


def _nearest(path: Path) -> Path:
    """Return the folder itself, or the nearest one above it that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def _state(is_fine: bool) -> State:
    return "ok" if is_fine else "warning"


def _text(error: TltrainError) -> str:
    problem = error.problems[0]
    return f"{problem.where}: {problem.what}" if problem.where else problem.what
