"""The group of processes that train together: ranks, devices and the few collectives the loop needs."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tltrain.environment import num_cores
from tltrain.errors import ResourceError
from tltrain.machine import devices_text


class Arrivals:
    """How many collectives this process has come to: of ranks that wait for each other, the one with fewest is late."""

    count = 0


@dataclass(frozen=True)
class Group:
    """This process's place among the training processes.

    `rank` counts over all nodes, `local_rank` on this node. With `world_size` 1 no process group is needed.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    arrivals: Arrivals = field(default_factory=Arrivals, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of `values` (any shape, float64 or int64) over all ranks."""
        total = values.to(self.device, copy=True)
        if self.world_size > 1:
            self.arrive()
            dist.all_reduce(total)
        return total

    def maximum(self, value: int) -> int:
        """Return the largest `value` of any rank."""
        return self.largest([value])[0]

    def largest(self, values: Sequence[int]) -> list[int]:
        """Return, for each place, the largest of the ranks' `values` there."""
        if self.world_size == 1:
            return list(values)
        self.arrive()
        largest = torch.tensor(values, dtype=torch.int64, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest.tolist()

    def arrive(self) -> None:
        """Count that this rank has come to a collective."""
        self.arrivals.count += 1

    def gather(self, value: Any) -> list[Any] | None:
        """Return every rank's `value` on rank 0, None elsewhere. For small or rare things: it pickles."""
        if self.world_size == 1:
            return [value]
        self.arrive()
        gathered: list[Any] | None = [None] * self.world_size if self.is_first else None
        dist.gather_object(value, gathered)
        return gathered

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's `value` on every rank."""
        if self.world_size == 1:
            return value
        self.arrive()
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def broadcast_tensors(self, tensors: list[Tensor]) -> None:
        """Overwrite `tensors` in place with those of rank 0."""
        if self.world_size > 1:
            self.arrive()
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            self.arrive()
            dist.barrier()


def choose_device(local_rank: int, use_gpu: bool) -> torch.device:
    """Return the GPU of this local rank, or the CPU.

    Raises ResourceError where a GPU is asked for and this process sees none.
    """
    if not use_gpu:
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ResourceError(
            f"this process is number {local_rank + 1} on its node, which has {count} GPU(s)",
            "Start fewer processes per node or set resources.gpus_per_worker to 0",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def group_from_environment(*, use_gpu: bool, timeout_s: float) -> Group:
    """Return the group described by torchrun's RANK, WORLD_SIZE, ...; a group of one where they are not set.

    Starts the process group (nccl on GPUs, gloo on CPUs) where there is more than one process.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    device = choose_device(local_rank, use_gpu)
    if world_size > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    return Group(rank, world_size, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", world_size)), device)


def mix_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and on their order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return struct.unpack("<Q", digest)[0] >> 1


def seed_everything(device: torch.device, seed: int) -> None:
    """Seed the generators that dropout and stochastic depth draw from on `device`."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


def describe_devices() -> str:
    """Return what this machine has to compute with, as people say it."""
    cuda = torch.cuda
    names = [cuda.get_device_name(index) for index in range(cuda.device_count())] if cuda.is_available() else []
    return devices_text(num_cores(), names)
