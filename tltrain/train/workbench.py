"""What lanes share: data, pretrained network, frozen stages and what is kept of them, batches and validation."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tltrain import stopping
from tltrain.data.bare import bare_eval_batches, bare_train_batches
from tltrain.data.decoded import DecodedImages, is_deterministic, plan_decoded_images
from tltrain.data.loader import Batch, eval_batches, resolve_loader_workers, steps_per_epoch, train_batches
from tltrain.data.loader_processes import within_shared_memory
from tltrain.data.preprocessing import Preprocessing
from tltrain.data.splits import Split, Splits
from tltrain.data.transforms import resolve_preprocessing
from tltrain.data.waiting import Patience
from tltrain.errors import DataError
from tltrain.models.state import load_state
from tltrain.models.zoo import Network, build_network
from tltrain.progress import Meter
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.train.activations import ActivationStore, TapKey, device_kind
from tltrain.train.checkpoint import Checkpoints
from tltrain.train.cohort import Cohort, Validation
from tltrain.train.distributed import Group
from tltrain.train.keeping import Tier
from tltrain.train.kept import KeptTaps
from tltrain.train.lane import Clock, Lane, freeze_depth_at
from tltrain.train.node_folder import NodeFolder, delete_left_behind
from tltrain.train.phases import Phases
from tltrain.train.skipped import Look, usable_splits
from tltrain.train.tap_files import Layout
from tltrain.train.tap_rates import measure_tiers
from tltrain.train.taps import Kept, NothingKept, Taps, can_do_without_images

logger = logging.getLogger(__name__)

GIGABYTE = 10**9


def meter_of(spec: Spec, run: RunFolder, group: Group, name: str = "0") -> Meter:
    """Return what counts the images of a worker group, on the first rank, and tells what any of them waits for."""
    limit_s = spec.resources.collective_timeout_s if group.world_size > 1 else 0.0
    return Meter(run.folder, name, rank=group.rank, limit_s=limit_s)


class Workbench:
    """Everything that lanes with the same data, batches and pretrained network have in common, on one rank."""

    def __init__(
        self,
        spec: Spec,
        run: RunFolder | None,
        group: Group,
        *,
        passes: int,
        store: ActivationStore | None = None,
        meter: Meter | None = None,
        known: Sequence[Look] = (),
    ) -> None:
        """passes: how often the training images will be gone through, at a guess, over all lanes in lockstep.

        run: where the pretrained network is copied to, to go on with; None for a short test that leaves nothing.

        store: kept taps that outlive this workbench; without one it opens its own. meter: counts what is done. known:
        what was found when the images were looked at, on rank 0.
        """
        self.spec, self.group, self.meter = spec, group, meter or Meter()
        self.splits = usable_splits(spec, known, group)
        self.network = load_network(spec, run, group, num_classes=len(self.splits.classes))
        self.preprocessing = resolve_preprocessing(spec.data, self.network.preprocessing)
        self.steps_per_epoch = steps_per_epoch(len(self.splits.train), spec.train.images_per_step)
        local_batch = -(-spec.train.images_per_step // group.world_size)
        part = -(-local_batch // spec.train.accumulation_steps)
        self.taps = Taps(self.network.staged, self.preprocessing, spec, group, part)
        self.phases = Phases(group.device)
        self.cohort = Cohort(spec, self.taps, group, self.steps_per_epoch, self.phases, self.meter)
        self._part, self.passes = part, passes
        self._is_constant = is_deterministic(spec.data)
        self._own_folder = None if store is not None else open_folder(spec, run, group)
        self._store = store or open_store(spec, group, self._own_folder)
        self._all_kept: list[tuple[Split, KeptTaps]] = []
        self._views = None if self._is_constant else spec.cache.views
        self._kept_train: dict[str, Kept] = {}
        self._kept_val = NothingKept() if self.splits.val is None else self._keep("val", self.splits.val, passes)
        limit_s, key = spec.resources.loader_timeout_s, "resources.loader_timeout_s"
        self._patience = Patience(limit_s, key, self.meter.waits, stopping.give_up)
        self._stream: Generator[Batch, None, None] | None = None
        self._stream_at = (-1, -1, -1)
        wanted = resolve_loader_workers(
            spec.data.num_loader_workers,
            cpus_per_worker=spec.resources.cpus_per_worker,
            local_world_size=group.local_world_size,
        )
        batch_bytes = 3 * self.preprocessing.crop_size**2 * local_batch
        self._num_loader_workers = within_shared_memory(
            wanted, batch_bytes=batch_bytes, processes=group.local_world_size
        )

    def make_lane(self, name: str, spec: Spec) -> Lane:
        """Return a new lane on this workbench; `spec` may differ from the workbench's where lanes may differ."""
        clock = Clock(self.steps_per_epoch, spec.train.epochs)
        draws_head = spec.seed != self.spec.seed and self.network.has_new_head
        weights = class_weights(spec, self.splits)
        names = self.splits.train.identity
        return Lane(name, spec, self.network.staged, self.group, clock, weights, draws_head=draws_head, identity=names)

    def epoch_batches(
        self, epoch: int, step: int, depths: Collection[int], *, num_epochs: int, seed: int | None = None
    ) -> Iterator[Batch]:
        """Return the batches of training from `step` of `epoch` on, at least to the end of the epoch.

        seed: of the order and the augmentation, where it is not the workbench's.

        Without images where the taps at `depths` are kept for all of them. Otherwise one set of loader processes
        serves epochs that follow each other, up to `num_epochs`.
        """
        seed = self.spec.seed if seed is None else seed
        if can_do_without_images(depths, self.kept_in(epoch, seed)):
            self.end_stream()
            return bare_train_batches(
                self.splits.train,
                seed=seed,
                batch_size=self.spec.train.images_per_step,
                rank=self.group.rank,
                world_size=self.group.world_size,
                epoch=epoch,
                start_step=step,
            )
        if self._stream is None or self._stream_at != (seed, epoch, step):
            self.end_stream()
            self._stream = self._load(epoch, step, num_epochs, seed)
        self._stream_at = (seed, epoch + 1, 0)
        return self._stream

    def kept_in(self, epoch: int, seed: int | None = None) -> Kept:
        """Return what is kept of the training images as they are in `epoch`; `seed` as in `epoch_batches`."""
        if self._is_constant:
            name, passes = "train", self.passes
        elif self._views is not None:
            seed, view = self.spec.seed if seed is None else seed, epoch % self._views
            name = f"train, view {view} by {self.spec.data.augment} of seed {seed}"
            passes = self.passes // self._views
        else:
            return NothingKept()
        if name not in self._kept_train:
            self._kept_train[name] = self._keep(name, self.splits.train, passes)
        return self._kept_train[name]

    def _load(self, epoch: int, step: int, num_epochs: int, seed: int) -> Generator[Batch, None, None]:
        return train_batches(
            self.splits.train,
            self.preprocessing,
            self.spec.data,
            seed=seed,
            batch_size=self.spec.train.images_per_step,
            rank=self.group.rank,
            world_size=self.group.world_size,
            start_epoch=epoch,
            start_step=step,
            num_epochs=num_epochs,
            num_workers=self._num_loader_workers,
            pin_memory=self.group.device.type == "cuda",
            decoded=self._decoded_train if self._is_constant else None,
            views=self._views,
            patience=self._patience,
        )

    @functools.cached_property
    def _decoded_train(self) -> DecodedImages | None:
        return plan_decoded_images(self.splits.train, self.preprocessing)

    @functools.cached_property
    def validation(self) -> Validation | None:
        """Evaluates lanes on the validation images, where there are some."""
        if self.splits.val is None:
            return None
        return self.evaluation(self.splits.val, self._kept_val)

    def evaluation(self, split: Split, kept: Kept | None = None) -> Validation:
        """Return what evaluates lanes on `split`."""
        kept = kept or NothingKept()
        decoded = plan_decoded_images(split, self.preprocessing)
        place = {"rank": self.group.rank, "world_size": self.group.world_size}

        def batches(depths: Collection[int]) -> Iterator[Batch]:
            if can_do_without_images(depths, kept):
                return bare_eval_batches(split, batch_size=self.spec.train.images_per_step, **place)
            has_all = decoded is not None and bool(decoded.filled[self.group.rank :: self.group.world_size].all())
            return eval_batches(
                split,
                self.preprocessing,
                batch_size=self.spec.train.images_per_step,
                num_workers=0 if has_all else self._num_loader_workers,
                pin_memory=self.group.device.type == "cuda",
                decoded=decoded,
                patience=self._patience,
                **place,
            )

        counted = {"phases": self.phases, "meter": self.meter, "num_images": len(split)}
        return Validation(batches, self.taps, kept, self.spec, self.group, **counted)

    @property
    def num_views(self) -> int:
        """How many looks an image has that are kept; 1 where it looks the same in every epoch."""
        return self._views or 1

    def kept_depths(self) -> dict[str, list[int]]:
        """Return split -> freeze depths at which its taps are kept."""
        depths: dict[str, set[int]] = {"train": set(), "val": set()}
        for _, kept in self._all_kept:
            depths[kept.split.partition(",")[0]] |= kept.arrays().keys()
        return {split: sorted(found) for split, found in depths.items()}

    def depth_of(self, spec: Spec) -> int:
        """Return how many stages a lane of `spec` freezes at first."""
        return self.network.staged.resolve_depth(freeze_depth_at(spec, 0))

    def constant_splits(self) -> list[tuple[Split, KeptTaps]]:
        """Return the splits whose images are the same in every epoch, with what is kept of them."""
        self.kept_in(0)
        return [(split, kept) for split, kept in self._all_kept if kept.split in ("train", "val")]

    def loader_settings(self, split: Split) -> dict[str, Any]:
        """Return how to load images of `split` in any order; on a CPU without loader processes, for all cores work."""
        is_train = split is self.splits.train
        return {
            "num_workers": 0 if self.group.device.type == "cpu" else self._num_loader_workers,
            "pin_memory": self.group.device.type == "cuda",
            "decoded": self._decoded_train if is_train else None,
            "patience": self._patience,
        }

    def _keep(self, name: str, split: Split, passes: int) -> Kept:
        if self.spec.cache.budget_gb == 0 or passes < 2:
            return NothingKept()
        names = [stage.name for stage in self.network.staged.stages]
        kept = KeptTaps(name, len(split), passes, self._store, self._tiers, self._tap_key, names)
        self._all_kept.append((split, kept))
        return kept

    def _tiers(self) -> tuple[Tier, ...]:
        return measure_tiers(self._store.directory, self._store.budget_bytes, self.group.device)

    def _tap_key(self, split: str, depth: int, layout: Layout) -> TapKey:
        return TapKey(
            weights=self._weights_below(depth),
            cut=self.network.staged.stages[depth - 1].name,
            depth=depth,
            preprocessing=self.preprocessing.to_dict(),
            data=self.splits.fingerprint,
            split=split,
            dtype=str(layout.dtype),
            precision=self.spec.train.precision,
            channels_last=self.spec.train.channels_last,
            batch_size=self._part,
            device=device_kind(self.group.device),
        )

    @functools.cache  # noqa: B019  a workbench lives as long as its process
    def _weights_below(self, depth: int) -> str:
        staged = self.network.staged
        state = self.network.module.state_dict()
        return fingerprint({name: tensor for name, tensor in state.items() if staged.stage_of(name) < depth})

    def end_stream(self) -> None:
        """End the loader processes of training; more batches of it start new ones."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def close(self) -> None:
        """End the use of what is kept; every rank calls it."""
        self.end_stream()
        for _, kept in self._all_kept:
            kept.close()
        self.group.barrier()
        if self._own_folder is not None:
            self._own_folder.close()


def open_folder(spec: Spec, run: RunFolder | None, group: Group, *, is_shared: bool = False) -> NodeFolder | None:
    """Return what the processes of a node share: those of one run its taps, those of a sweep (`is_shared`) work too.

    Where they share nothing, what an earlier attempt has left is deleted.
    """
    if run is None:
        return None
    if spec.cache.budget_gb > 0 and (is_shared or (group.local_world_size > 1 and spec.cache.dir is None)):
        return NodeFolder(run.uri)
    delete_left_behind(run.uri, wait_s=0)
    return None


def open_store(spec: Spec, group: Group, folder: NodeFolder | None = None) -> ActivationStore:
    """Return the store of kept taps that `spec.cache` asks for, in `folder` where it names none."""
    cache = spec.cache
    directory = None if folder is None else folder.path
    if cache.dir is not None:
        directory = Path(cache.dir).expanduser()
    return ActivationStore(directory, round(cache.budget_gb * GIGABYTE), pin_memory=group.device.type == "cuda")


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_network(spec: Spec, run: RunFolder | None, group: Group, *, num_classes: int) -> Network:
    """Return the pretrained network: from its weights at first, from the run's own copy when resuming.

    The copy is written once, by rank 0, so a run no longer depends on where its weights came from.
    """
    if run is None:
        return build_network(spec.model, num_classes, seed=spec.seed, allow_code=spec.allow_code)
    frozen = Checkpoints(run.folder.child("pretrained"), keep=1)
    has_copy = group.broadcast(bool(frozen.steps()) if group.is_first else None)
    weights = "random" if has_copy else spec.model.weights
    model = spec.model.model_copy(update={"weights": weights})
    network = build_network(model, num_classes, seed=spec.seed, allow_code=spec.allow_code)
    if has_copy:
        copy = frozen.load(0)
        load_state(network.module, copy.parts["network"], network.head_name, f"{run.uri}/pretrained")
        network.preprocessing = Preprocessing.from_dict(copy.info["preprocessing"])
        network.weights_origin = copy.info["weights_origin"]
    elif group.is_first:
        info = {"preprocessing": network.preprocessing.to_dict(), "weights_origin": network.weights_origin}
        frozen.save(0, {"network": network.module.state_dict()}, info)
        frozen.wait()
    group.barrier()
    return network


def class_weights(spec: Spec, splits: Splits) -> Tensor | None:
    """Return the weights of the classes in the loss, float32 [num_classes] with mean 1 where positive, or None.

    Raises DataError where `train.class_weights` names a class that does not exist or leaves one out.
    """
    setting = spec.train.class_weights
    if setting == "none":
        return None
    if setting == "balanced":
        counts = torch.bincount(torch.from_numpy(splits.train.labels), minlength=len(splits.classes))
        weights = torch.where(counts > 0, 1 / counts, 0.0)  # a declared class may have no images
    else:
        wrong = set(setting) ^ set(splits.classes)
        if wrong:
            raise DataError(
                f"train.class_weights and the data disagree on {', '.join(sorted(wrong))}",
                f"Give one number for each of {', '.join(splits.classes)}",
            )
        weights = torch.tensor([setting[name] for name in splits.classes], dtype=torch.float32)
    return weights / weights[weights > 0].mean()
