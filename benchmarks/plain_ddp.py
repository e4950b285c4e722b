"""Fine-tunes a torchvision classifier with plain DistributedDataParallel: what tltrain is measured against.

    torchrun --standalone --nproc-per-node 2 benchmarks/plain_ddp.py \\
        --data jobs/data/fashion-mnist/train.parquet

Rank 0 prints one line of JSON: images per second of every epoch and of the steady part, the loss of every
step and epoch, and when the first step had ended. It is meant to be hard to beat: images are decoded by
persistent loader workers and travel as bytes, and the loop never waits for the device.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB in 0..1


class ParquetImages(Dataset[tuple[Tensor, int]]):
    """Images of a Parquet file, decoded when asked for: uint8 [3, size, size] and the class's number."""

    def __init__(self, path: str, size: int, keep_decoded: bool) -> None:
        table = pq.read_table(path, columns=["image", "label"])
        self._images = table["image"].combine_chunks()
        labels = table["label"].to_pylist()
        self.classes = json.loads(table.schema.metadata[b"tltrain.classes"])
        position = {name: index for index, name in enumerate(self.classes)}
        self._labels = [position[label] for label in labels]
        self._transform = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
        num_kept = len(labels) if keep_decoded else 0
        self._kept = torch.empty((num_kept, 3, size, size), dtype=torch.uint8).share_memory_()
        self._is_kept = torch.zeros(len(labels), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self._is_kept[index]:
            return self._kept[index], self._labels[index]
        with Image.open(io.BytesIO(self._images[index].as_py())) as file:
            image = self._transform(file.convert("RGB"))
        if len(self._kept):
            self._kept[index] = image
            self._is_kept[index] = True
        return image, self._labels[index]


@dataclass
class Stopwatch:
    """When the first step had ended, and the speed of all steps but the first few."""

    skip_steps: int
    first_step_at: float = 0.0
    _num_steps: int = 0
    _steady_images: int = 0
    _steady_since: float = 0.0

    def after_step(self, num_images: int) -> None:
        """Count one step of `num_images` images over all ranks."""
        self._num_steps += 1
        if self._num_steps == 1:
            self.first_step_at = time.time()
        if self._num_steps == self.skip_steps:
            self._steady_since = time.perf_counter()
        elif self._num_steps > self.skip_steps:
            self._steady_images += num_images

    def steady_images_per_s(self) -> float | None:
        """Return images per second since the skipped steps; None where there were no others."""
        return self._steady_images / (time.perf_counter() - self._steady_since) if self._steady_images else None


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="Parquet file with columns image (bytes) and label (class name)")
    parser.add_argument("--model", default="resnet18", help="a torchvision classifier")
    parser.add_argument("--weights", help="safetensors file with its initial weights; without it: random")
    parser.add_argument("--head-only", action="store_true", help="train the last layer alone")
    parser.add_argument("--image-size", type=int, default=64, help="side in pixels")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step over all ranks")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--loader-workers", type=int, default=1, help="decoding processes per rank")
    parser.add_argument("--keep-decoded", action="store_true", help="decode each image once, not every epoch")
    parser.add_argument("--skip-steps", type=int, default=5, help="steps before the steady part")
    parser.add_argument("--started-at", type=float, help="when the command was started, seconds since 1970")
    parser.add_argument("--save", help="safetensors file for the trained weights")
    return parser.parse_args()


def choose_device() -> torch.device:
    """Return this rank's GPU where every rank of the node can have one, the CPU otherwise."""
    if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def build_model(arguments: argparse.Namespace, num_classes: int) -> nn.Module:
    """Return the network on the CPU, frozen up to its last layer where that is asked for."""
    torch.manual_seed(arguments.seed)
    model = torchvision.models.get_model(arguments.model, weights=None, num_classes=num_classes)
    if arguments.weights:
        model.load_state_dict(load_file(arguments.weights))
    if not arguments.head_only:
        return model.train()
    head = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None][-1]
    model.requires_grad_(False)
    head.requires_grad_(True)
    return model.eval()  # frozen BatchNorm keeps its statistics


def make_loader(arguments: argparse.Namespace, dataset: ParquetImages, device: torch.device) -> DataLoader:
    """Return a loader of this rank's share of every batch, in an order given by the seed and the epoch."""
    return DataLoader(
        dataset,
        batch_size=arguments.batch_size // dist.get_world_size(),
        sampler=DistributedSampler(dataset, shuffle=True, seed=arguments.seed),
        num_workers=arguments.loader_workers,
        persistent_workers=arguments.loader_workers > 0,
        pin_memory=device.type == "cuda",
    )


class Trainer:
    """The model under DDP, its optimiser, and what was measured."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device) -> None:
        self.device = device
        self.memory_format = torch.channels_last if arguments.channels_last else torch.contiguous_format
        dataset = ParquetImages(arguments.data, arguments.image_size, arguments.keep_decoded)
        model = build_model(arguments, len(dataset.classes))
        self.model = model.to(device).to(memory_format=self.memory_format)
        self.ddp = DistributedDataParallel(self.model, device_ids=[device.index] if device.type == "cuda" else None)
        self.loader = make_loader(arguments, dataset, device)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=arguments.learning_rate, momentum=arguments.momentum)
        self.stopwatch = Stopwatch(arguments.skip_steps)
        self.losses: list[Tensor] = []  # of every step on this rank, on the device
        self._mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
        self._std = torch.tensor(STD, device=device).view(3, 1, 1)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Train on this rank's part of a batch: `images` uint8 [b, 3, size, size], `labels` int64 [b]."""
        images = images.to(self.device, non_blocking=True).contiguous(memory_format=self.memory_format)
        outputs = self.ddp(images.float().div_(255).sub_(self._mean).div_(self._std))
        loss = nn.functional.cross_entropy(outputs, labels.to(self.device, non_blocking=True))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.detach())
        self.stopwatch.after_step(len(labels) * dist.get_world_size())

    def epoch(self, number: int) -> float:
        """Train one pass over the images and return the images per second of it, over all ranks."""
        started = time.perf_counter()
        sampler = self.loader.sampler
        assert isinstance(sampler, DistributedSampler)
        sampler.set_epoch(number)
        for images, labels in self.loader:
            self.step(images, labels)
        synchronize(self.device)
        return sampler.total_size / (time.perf_counter() - started)

    def mean_losses(self) -> list[float]:
        """Return the loss of every step, averaged over the ranks."""
        losses = torch.stack(self.losses).double()
        dist.all_reduce(losses)
        return (losses / dist.get_world_size()).tolist()


def synchronize(device: torch.device) -> None:
    """Wait for the work that a GPU has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def train(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Train all epochs and return what was measured, the same on all ranks up to timing."""
    trainer = Trainer(arguments, device)
    epochs = [trainer.epoch(number) for number in range(arguments.epochs)]
    steady = trainer.stopwatch.steady_images_per_s()
    losses = trainer.mean_losses()
    if arguments.save and dist.get_rank() == 0:
        save_file({name: tensor.contiguous() for name, tensor in trainer.model.state_dict().items()}, arguments.save)
    steps = len(losses) // arguments.epochs
    return {
        "model": arguments.model,
        "head_only": arguments.head_only,
        "device": str(device),
        "world_size": dist.get_world_size(),
        "images_per_s": steady,
        "epoch_images_per_s": epochs,
        "first_step_at": trainer.stopwatch.first_step_at,
        "time_to_first_step_s": arguments.started_at and trainer.stopwatch.first_step_at - arguments.started_at,
        "epoch_losses": [sum(losses[start : start + steps]) / steps for start in range(0, len(losses), steps)],
        "step_losses": losses,
    }


def main() -> None:
    """Join the process group, train, and print the measurements on rank 0."""
    arguments = parse_arguments()
    device = choose_device()
    torch.backends.cudnn.benchmark = True  # all batches have one size
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        measured = train(arguments, device)
        if dist.get_rank() == 0:
            print(json.dumps(measured))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
