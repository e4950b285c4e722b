"""Checkpoints of training state: written in the background, there whole or not at all, verified when read."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn

import safetensors.torch

from tltrain.errors import CheckpointError, Problem
from tltrain.storage import Folder
from tltrain.train.packing import State, pack, unpack

__all__ = ["Checkpoint", "Checkpoints", "State", "pack", "unpack"]

FORMAT = 1
INFO, MANIFEST, COMMIT = "info.json", "manifest.json", "COMMIT"
_RESERVED_PARTS = ("info", "manifest")
_STEP = re.compile(r"[0-9]+")
_SET_ASIDE = re.compile(r"[0-9]+\.bad")
_SUCCESSOR = re.compile(r"([0-9]+)\.new")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Verified training state as it was after `step` optimiser steps."""

    step: int
    info: dict[str, Any]
    parts: dict[str, State]


class Checkpoints:
    """The checkpoints of one run, in `<folder>/<step>/`.

    Each part of the state is NAME.safetensors and NAME.json; info.json is for what is not a tensor;
    manifest.json has the size and sha256 of them all; COMMIT has the sha256 of the manifest and comes last. A
    folder without COMMIT is no checkpoint. Equal state gives equal bytes. A step that is saved again stays there until
    its successor in `<step>.new` is whole. One process writes, sets aside and deletes; the others may `load`.
    """

    def __init__(self, folder: Folder, keep: int) -> None:
        assert keep >= 1, keep
        self._folder = folder
        self._keep = keep
        self._protected: frozenset[int] = frozenset()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def protect(self, *steps: int) -> None:
        """Never delete the checkpoints of these steps (such as the best one), and no others; from the next save on.

        Not remembered on disk: call it again after a restart.
        """
        self._protected = frozenset(steps)

    def save(self, step: int, parts: Mapping[str, State], info: dict[str, Any], *, background: bool = True) -> None:
        """Copy the state now, write it and then delete old checkpoints.

        In the background, what goes wrong (StorageError) is raised by the next `save` or `wait`. At most one
        write is under way: a second save waits for the first.
        """
        self.wait()
        assert not set(parts) & set(_RESERVED_PARTS), sorted(parts)
        packed = {name: pack(parts[name]) for name in sorted(parts)}
        info_tensors, info_skeleton = pack(info)
        assert not info_tensors, f"info cannot hold tensors: {sorted(info_tensors)}"
        kept = self._protected | {step}
        self._pending = self._writer.submit(self._write, step, packed, info_skeleton, kept)
        if not background:
            self.wait()

    def wait(self) -> None:
        """Return when everything is on disk; raises the error of a write in the background."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, in order."""
        return [step for step in self._all_steps() if self._at(step).exists(COMMIT)]

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of a step. Raises CheckpointError where there is none or it is damaged."""
        for _ in range(2):  # it may be replaced meanwhile
            if _is_whole(self._successor(step)):
                return _read(self._successor(step), step)
            if self._at(step).exists(COMMIT):
                return _read(self._at(step), step)
        there = ", ".join(map(str, self.steps())) or "none"
        what = f"there is no checkpoint of step {step}"
        raise CheckpointError(Problem(what, f"Choose one of those there: {there}", str(self._folder)))

    def newest(self) -> Checkpoint | None:
        """The newest good checkpoint, or None where none was ever completed.

        A damaged one is renamed to `<step>.bad` with a warning and the one before is taken; remains of writes
        that were cut short are deleted. Raises CheckpointError where all are damaged.
        """
        self.wait()
        self._finish_replacing()
        self._delete_remains()
        for step in reversed(self._all_steps()):
            try:
                return _read(self._at(step), step)
            except _DamagedError as error:
                self._set_aside(step, error)
        return self._none_good()

    def prune(self) -> None:
        """Delete what the next save would delete: all but the newest and the protected."""
        self.wait()
        self._prune(self._protected)

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints of later steps, for a run that goes back to `step`."""
        self.wait()
        self._finish_replacing()
        for later in self._all_steps():
            if later > step:
                self._delete(later)

    def _finish_replacing(self) -> None:
        """Put successors that are whole in the place of what they replace; delete those that are not.

        Object stores copy, and then delete: of a successor that is not whole any more there is a whole copy.
        """
        for name in self._folder.names():
            match = _SUCCESSOR.fullmatch(name)
            if match is not None:
                self._take_over(int(match[1]))

    def _take_over(self, step: int) -> None:
        if _is_whole(self._successor(step)):
            self._delete(step)
            self._folder.rename(f"{step}.new", str(step))
        else:
            self._folder.delete(f"{step}.new")

    def _delete_remains(self) -> None:
        for step in self._all_steps():
            if not self._at(step).exists(COMMIT):
                _log.warning("%s was never completed; deleted its remains", self._at(step))
                self._folder.delete(str(step))

    def _none_good(self) -> None:
        damaged = [name for name in self._folder.names() if _SET_ASIDE.fullmatch(name)]
        if damaged:
            what = f"no checkpoint is usable; damaged: {', '.join(damaged)}"
            action = "Restore one under its step's number, or delete this folder to train from the start"
            raise CheckpointError(Problem(what, action, str(self._folder)))

    def _set_aside(self, step: int, error: CheckpointError) -> None:
        what = error.problems[0].what
        _log.warning("%s: %s; renamed to %d.bad, trying the one before", self._at(step), what, step)
        self._folder.delete(f"{step}.bad")
        self._folder.rename(str(step), f"{step}.bad")

    def _all_steps(self) -> list[int]:
        return sorted(int(name) for name in self._folder.names() if _STEP.fullmatch(name))

    def _at(self, step: int) -> Folder:
        return self._folder.child(str(step))

    def _successor(self, step: int) -> Folder:
        return self._folder.child(f"{step}.new")

    def _write(self, step: int, packed: Mapping[str, Any], info: Any, kept: frozenset[int]) -> None:
        self._finish_replacing()
        if self._at(step).exists(COMMIT):
            _write_into(self._successor(step), step, packed, info)
            self._take_over(step)
        else:
            self._delete(step)
            _write_into(self._at(step), step, packed, info)
        self._prune(kept)

    def _prune(self, kept: frozenset[int]) -> None:
        """Delete all but the newest and the kept; remains of writes that failed or were cut short go too."""
        kept = kept | set(self.steps()[-self._keep :])
        for step in self._all_steps():
            if step not in kept:
                self._delete(step)

    def _delete(self, step: int) -> None:
        self._at(step).delete(COMMIT)  # first, so that what a kill leaves is known as remains
        self._folder.delete(str(step))


def _is_whole(folder: Folder) -> bool:
    """Whether COMMIT and all that the manifest lists are there, whatever is in them."""
    names = set(folder.names())
    try:
        return {COMMIT, MANIFEST} <= names and names >= set(json.loads(folder.read_bytes(MANIFEST))["files"])
    except ValueError:  # a manifest that is cut short
        return False


def _write_into(folder: Folder, step: int, packed: Mapping[str, Any], info: Any) -> None:
    """Write a checkpoint, its COMMIT last."""
    files: dict[str, dict[str, Any]] = {}

    def write(name: str, data: bytes) -> None:
        folder.write_bytes(name, data)
        files[name] = {"sha256": _sha256(data), "size": len(data)}

    for name, (tensors, skeleton) in packed.items():
        write(f"{name}.safetensors", safetensors.torch.save(tensors))
        write(f"{name}.json", _to_json(skeleton))
    write(INFO, _to_json(info))
    manifest = _to_json({"format": FORMAT, "step": step, "files": files})
    folder.write_bytes(MANIFEST, manifest)
    folder.write_bytes(COMMIT, f"{_sha256(manifest)}\n".encode())


class _DamagedError(CheckpointError):
    """A committed checkpoint whose files are not what was written."""


def _read(folder: Folder, step: int) -> Checkpoint:
    manifest = _manifest(folder, step)
    data = {name: _verified(folder, name, entry) for name, entry in manifest["files"].items()}
    tensors = {
        name.removesuffix(".safetensors"): safetensors.torch.load(content)
        for name, content in data.items()
        if name.endswith(".safetensors")
    }
    parts = {name: unpack(tensors[name], json.loads(data[f"{name}.json"])) for name in tensors}
    return Checkpoint(step, unpack({}, json.loads(data[INFO])), parts)


def _manifest(folder: Folder, step: int) -> dict[str, Any]:
    data = _present(folder, MANIFEST)
    if _present(folder, COMMIT) != f"{_sha256(data)}\n".encode():
        _damaged(folder, f"{COMMIT} does not match {MANIFEST}")
    manifest = json.loads(data)
    if manifest["format"] > FORMAT:
        what = f"the checkpoint has format {manifest['format']}, and this tltrain reads up to {FORMAT}"
        raise CheckpointError(Problem(what, "Upgrade tltrain here", str(folder)))
    if manifest["step"] != step:
        _damaged(folder, f"it was written as step {manifest['step']}")
    return manifest


def _verified(folder: Folder, name: str, entry: Mapping[str, Any]) -> bytes:
    data = _present(folder, name)
    if len(data) != entry["size"]:
        _damaged(folder, f"{name} has {len(data)} bytes and was written with {entry['size']}")
    if _sha256(data) != entry["sha256"]:
        _damaged(folder, f"{name} has changed since it was written (sha256)")
    return data


def _present(folder: Folder, name: str) -> bytes:
    if not folder.exists(name):
        _damaged(folder, f"{name} is missing")
    return folder.read_bytes(name)


def _damaged(folder: Folder, what: str) -> NoReturn:
    action = "Restore it from a copy or choose another step"
    raise _DamagedError(Problem(f"the checkpoint is damaged: {what}", action, str(folder)))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _to_json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode()
