"""Exporting a run's model into a folder in one of the formats, kept only if it gives what the model itself gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tltrain.export.check import Check
from tltrain.export.huggingface import write_huggingface
from tltrain.export.images import Sample, find_sample
from tltrain.export.onnx_format import import_runtime, write_onnx
from tltrain.export.output import check_free, new_folder
from tltrain.export.safetensors_format import write_safetensors
from tltrain.export.torch_format import write_torch
from tltrain.export.trained import Trained, open_trained

WRITERS: dict[str, Callable[[Trained, Path, Sample], Check]] = {
    "safetensors": write_safetensors,
    "torch": write_torch,
    "onnx": write_onnx,
    "huggingface": write_huggingface,
}
"""What writes a model into an empty folder in each format, and compares what it wrote with the run's model."""


@dataclass(frozen=True)
class Exported:
    """An export that has been written."""

    name: str
    """Name of the run, or of the sweep whose winner it is."""
    architecture: str
    num_classes: int
    format: str
    out: str
    """Absolute path of the folder."""
    files: dict[str, int]
    """Name -> bytes."""
    check: Check


def export_model(
    run: str, format_name: str, out: Path | None = None, *, force: bool = False, data: str | None = None
) -> Exported:
    """Export the finished model of a run, a sweep or a model folder.

    Args:
        run: path or address of the folder.
        format_name: one of WRITERS.
        out: the folder to write, NAME-FORMAT in the current one if left out.
        force: whether an earlier export may be replaced.
        data: images to check the export on instead of the run's own: a file, folder, pattern or Parquet.

    Raises:
        SpecError: there is no finished model, `out` may not be written, or a package is missing.
        DataError: the model is damaged, or images of `data` cannot be read.
        ExportError: the network cannot be exported in this format, or what was exported differs.
        StorageError: something cannot be read or written.
    """
    if format_name == "onnx":
        import_runtime()
    if out is not None:
        check_free(out, force=force)
    trained = open_trained(run)
    out = out or Path(f"{trained.name}-{format_name}")
    check_free(out, force=force)
    sample = find_sample(trained, data)
    with new_folder(out, force=force) as folder:
        found = WRITERS[format_name](trained, folder, sample)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    num_classes = len(trained.network.classes)
    return Exported(
        trained.name, trained.architecture, num_classes, format_name, str(out.expanduser().absolute()), files, found
    )
