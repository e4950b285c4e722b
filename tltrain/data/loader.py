"""Batches of uint8 images from loader processes, for training over all epochs and for evaluation."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tltrain.data.base import Split
from tltrain.data.decode import decode
from tltrain.data.decoded import DecodedImages, is_deterministic
from tltrain.data.loader_processes import loaded
from tltrain.data.mixing import Mixing, draw, mix
from tltrain.data.order import eval_positions, global_order, rank_positions, sample_seed, steps_per_epoch
from tltrain.data.preprocessing import Preprocessing
from tltrain.data.transforms import Transform, evaluation_transform, training_transform
from tltrain.data.waiting import Patience
from tltrain.environment import num_cores
from tltrain.errors import DataError, Problem
from tltrain.spec.schema import DataSpec

__all__ = [
    "Batch", "eval_batches", "global_order", "rank_positions", "resolve_loader_workers", "steps_per_epoch",
    "train_batches",
]  # fmt: skip

MAX_AUTO_WORKERS = 8
_AUGMENT, _MIX = 0, 1
_SHOWN = 10


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's part of one global batch.

    images: uint8 [b, 3, H, W]. labels, partner_labels: int64 [b]. mix: float32 [b], share of `labels` in the
    target, the rest is `partner_labels`' (1 without mixing). weights: float32 [b], 0 for padding, else 1.
    ids: int64 [b], positions in the split. step: optimiser step within the epoch. count: real samples in the
    global batch.
    """

    images: Tensor
    labels: Tensor
    partner_labels: Tensor
    mix: Tensor
    weights: Tensor
    ids: Tensor
    epoch: int
    step: int
    count: int

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device; copies from pinned memory do not wait.

        `ids` stay in the host's memory, where they are looked up: to get them back, it would wait for the device.
        """
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, ids=self.ids)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory (called by DataLoader)."""
        return self._map(Tensor.pin_memory)

    def __reduce__(self) -> tuple[Any, ...]:
        # Every tensor that comes from a loader process keeps a file open. The small ones travel by value instead.
        small = [getattr(self, name).numpy() for name in _SMALL]
        return _rebuild, (self.images, small, self.epoch, self.step, self.count)

    def _map(self, function: Any) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: function(v) for k, v in values.items() if isinstance(v, Tensor)})


_SMALL = ("labels", "partner_labels", "mix", "weights", "ids")


def _rebuild(images: Tensor, small: list[np.ndarray], epoch: int, step: int, count: int) -> Batch:
    labels, partner_labels, mix, weights, ids = (torch.from_numpy(array) for array in small)
    return Batch(images, labels, partner_labels, mix, weights, ids, epoch, step, count)


@dataclass(frozen=True, eq=False)
class _Request:
    """What a loader process is asked for: positions int64 [b], weights float32 [b], kept bool [b].

    view: which of an image's random views, the epoch where each has its own.
    """

    view: int
    epoch: int
    step: int
    count: int
    positions: np.ndarray
    weights: np.ndarray
    kept: np.ndarray | None = None


class _Reader(Dataset[Any]):
    """Makes the batch of a request. Lives in the loader processes."""

    def __init__(
        self, split: Split, transform: Transform, seed: int, mixing: Mixing | None, kept: Tensor | None
    ) -> None:
        self._split = split
        self._transform = transform
        self._seed = seed
        self._mixing = mixing if len(split) > 1 else None
        self._kept = kept

    def __getitem__(self, request: _Request) -> Batch | DataError:
        # DataLoader would turn a raised error into another with a traceback for a message.
        try:
            return self._batch(request)
        except DataError as error:
            return error

    def _batch(self, request: _Request) -> Batch:
        count = len(request.positions)
        partners = request.positions.copy()
        shares = np.ones(count, dtype=np.float32)
        images: list[Tensor] = []
        bad: dict[Problem, None] = {}
        for i, position in enumerate(request.positions.tolist()):
            try:
                if self._mixing:
                    image, partners[i], shares[i] = self._mixed(self._mixing, position, request.view)
                else:
                    image = self._image(position, request.view, request.kept is not None and bool(request.kept[i]))
                images.append(image)
            except DataError as error:
                bad |= dict.fromkeys(error.problems)
        if bad:
            raise DataError(_told(list(bad)))
        labels = self._split.labels
        return Batch(
            torch.utils.data.default_collate(images),
            torch.from_numpy(labels[request.positions]),
            torch.from_numpy(labels[partners]),
            torch.from_numpy(shares),
            torch.from_numpy(request.weights),
            torch.from_numpy(request.positions),
            request.epoch,
            request.step,
            request.count,
        )

    def _image(self, position: int, view: int, is_kept: bool = False) -> Tensor:
        """Return uint8 [3, H, W], drawn from a generator that only (seed, position, view) decide."""
        if self._kept is not None and is_kept:
            return self._kept[position]
        image = decode(self._split.read(position), self._split.identity(position))
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reseed GPUs too, which fork_rng(devices=[]) does not put back.
            torch.default_generator.manual_seed(sample_seed(self._seed, position, view, _AUGMENT))
            result = self._transform(image)
        if self._kept is not None:
            self._kept[position] = result
        return result

    def _mixed(self, mixing: Mixing, position: int, view: int) -> tuple[Tensor, int, float]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(sample_seed(self._seed, position, view, _MIX))
            how = draw(mixing, position, len(self._split))
        image, share = mix(self._image(position, view), self._image(how.partner, view), how)
        return image, how.partner, share


def _told(problems: list[Problem]) -> list[Problem]:
    """Name the first bad images of a batch and count the others, with a way to find all of them."""
    last, more = problems[:_SHOWN][-1], len(problems) - _SHOWN
    what = last.what.rstrip(".") + (f"; and {more} more in this batch" if more > 0 else "")
    action = f"{last.action}. `tltrain data check` names all of them, and data.on_bad_image: skip leaves them out"
    return [*problems[:_SHOWN][:-1], replace(last, what=what, action=action)]


def train_batches(
    split: Split,
    p: Preprocessing,
    data: DataSpec,
    *,
    seed: int,
    batch_size: int,
    rank: int,
    world_size: int,
    start_epoch: int,
    start_step: int,
    num_epochs: int,
    num_workers: int,
    pin_memory: bool,
    decoded: DecodedImages | None = None,
    views: int | None = None,
    patience: Patience | None = None,
) -> Generator[Batch, None, None]:
    """Yield this rank's batches from (start_epoch, start_step) to the end of epoch num_epochs - 1.

    batch_size: images per step over all ranks. One set of loader processes serves all epochs, and reads ahead
    over their ends. What a sample looks like depends on (seed, position, epoch) alone. torch's global
    generator is not drawn from. decoded: images kept over the epochs, for data without augmentation. views: the
    number of random looks of an image, which epochs take in turn; None for a new one in each. Raises DataError for
    a bad image, LostError where loader processes are lost.
    """
    assert decoded is None or is_deterministic(data), "augmented images cannot be kept"
    n = len(split)

    def requests() -> Iterator[_Request]:
        first_step = start_step
        for epoch in range(start_epoch, num_epochs):
            order = global_order(n, seed, epoch)
            for step in range(first_step, steps_per_epoch(n, batch_size)):
                positions, weights = rank_positions(order, step, batch_size, rank, world_size)
                view = epoch if views is None else epoch % views
                yield _Request(view, epoch, step, min(batch_size, n - step * batch_size), positions, weights)
            first_step = 0

    kept = decoded.images if decoded else None
    reader = _Reader(split, training_transform(p, data.augment), seed, Mixing.of(data), kept)
    return _batches(reader, requests(), split, decoded, seed, num_workers, pin_memory, patience)


def eval_batches(
    split: Split,
    p: Preprocessing,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    num_workers: int,
    pin_memory: bool,
    decoded: DecodedImages | None = None,
    patience: Patience | None = None,
) -> Iterator[Batch]:
    """Yield this rank's batches of an evaluation: positions rank, rank + world_size, ... each once, unpadded.

    batch_size: images per step over all ranks. Ranks may differ in the number of batches. decoded: images
    kept for the next evaluation. Raises DataError for a bad image, LostError where loader processes are lost.
    """
    n = len(split)
    per_step = -(-batch_size // world_size) * world_size

    def requests() -> Iterator[_Request]:
        for step in range(steps_per_epoch(n, per_step)):
            positions = eval_positions(n, step, batch_size, rank, world_size)
            if len(positions):
                weights = np.ones(len(positions), dtype=np.float32)
                yield _Request(0, 0, step, min(per_step, n - step * per_step), positions, weights)

    reader = _Reader(split, evaluation_transform(p), 0, None, decoded.images if decoded else None)
    return _batches(reader, requests(), split, decoded, 0, num_workers, pin_memory, patience)


def position_batches(
    split: Split,
    p: Preprocessing,
    positions: Iterable[np.ndarray],
    *,
    num_workers: int,
    pin_memory: bool,
    decoded: DecodedImages | None = None,
    patience: Patience | None = None,
) -> Iterator[Batch]:
    """Yield a batch for each array of `positions`, int64 [b], as an evaluation would see these images."""
    requests = (_Request(0, 0, 0, len(part), part, np.ones(len(part), dtype=np.float32)) for part in positions)
    reader = _Reader(split, evaluation_transform(p), 0, None, decoded.images if decoded else None)
    return _batches(reader, requests, split, decoded, 0, num_workers, pin_memory, patience)


def _batches(
    reader: _Reader,
    requests: Iterable[_Request],
    split: Split,
    decoded: DecodedImages | None,
    seed: int,
    num_workers: int,
    pin_memory: bool,
    patience: Patience | None,
) -> Generator[Batch, None, None]:
    marked = requests if decoded is None else _marked(requests, decoded)
    fork_safe = split.source.fork_safe
    how = {"seed": seed, "num_workers": num_workers, "pin_memory": pin_memory, "patience": patience}
    for batch in loaded(reader, marked, fork_safe, **how):
        if isinstance(batch, DataError):
            raise batch
        if decoded is not None:
            decoded.filled[batch.ids.numpy()] = True
        yield batch


def _marked(requests: Iterable[_Request], decoded: DecodedImages) -> Iterator[_Request]:
    """Tell the loader processes, with each request, which of its images are kept by now."""
    for request in requests:
        yield replace(request, kept=decoded.filled[request.positions])


def resolve_loader_workers(
    setting: int | Literal["auto"], *, cpus_per_worker: int = 1, local_world_size: int = 1
) -> int:
    """Return the number of loader processes of one training worker.

    `auto` is the worker's share of this node's CPUs (or cpus_per_worker, if that is more), less one for
    training itself; at least 1 and at most MAX_AUTO_WORKERS.
    """
    if setting != "auto":
        return setting
    share = max(num_cores() // local_world_size, cpus_per_worker)
    return min(max(share - 1, 1), MAX_AUTO_WORKERS)
