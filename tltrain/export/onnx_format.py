"""The format `onnx`: a graph for ONNX Runtime and others, with class names and preprocessing in its metadata."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tltrain.errors import ExportError, SpecError
from tltrain.export.check import Check, Predict, check
from tltrain.export.description import describe_graph, write_description
from tltrain.export.graph import INPUT, LOGITS, PROBABILITIES, export_graph
from tltrain.export.images import Sample
from tltrain.export.trained import Trained

FILE = "model.onnx"
MAX_SINGLE_FILE = 1_900_000_000
"""Bytes of weights above which they stand in a file of their own: protobuf ends at 2 GiB."""


def write_onnx(trained: Trained, folder: Path, sample: Sample) -> Check:
    """Write model.onnx (of a very large network with model.onnx.data) and model.json into `folder`.

    What was written is run by ONNX Runtime and compared with the run's model. Raises SpecError where a package is
    missing, ExportError where the network cannot be exported or differs.
    """
    runtime = import_runtime()
    program = _program(trained)
    program.model.metadata_props.update(metadata(trained))
    weights = trained.network.module.state_dict().values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights)
    program.save(folder / FILE, external_data=size > MAX_SINGLE_FILE)
    write_description(trained, folder)
    predict = _predict_with(runtime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"]))
    return check(trained.network, predict, sample, f"onnxruntime {runtime.__version__}")


def import_runtime() -> Any:
    """Return the module onnxruntime. Raises SpecError where it or what exporting needs is not installed."""
    missing = []
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        what = f"exporting to ONNX needs {', '.join(missing)}, which cannot be imported"
        raise SpecError(what, "pip install 'tltrain[onnx]'")
    return importlib.import_module("onnxruntime")


def metadata(trained: Trained) -> dict[str, str]:
    """Return what stands in the graph's `metadata_props`; `classes`, `preprocessing` and `graph` are JSON."""
    values = {
        "classes": list(trained.network.classes),
        "preprocessing": trained.network.preprocessing.to_dict(),
        "graph": describe_graph(trained),
    }
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    return {"run": trained.name, "architecture": trained.architecture, **texts}


def _program(trained: Trained) -> Any:
    graph = export_graph(trained.network)
    try:
        program = torch.onnx.export(
            graph,
            (),
            input_names=[INPUT],
            output_names=[LOGITS, PROBABILITIES],
            dynamic_shapes={INPUT: {0: "batch"}},
            dynamo=True,
            verbose=False,
        )
    except Exception as error:  # the exporter gives errors of many kinds
        first = str(error).strip().partition("\n")[0]
        raise ExportError(f"torch.onnx cannot export it: {first}", "Choose --format torch or safetensors") from error
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # places in source files of this machine
    return program


def _predict_with(session: Any) -> Predict:
    names = [output.name for output in session.get_outputs()]

    def predict(images: Tensor) -> Mapping[str, Tensor]:
        outputs = session.run(names, {INPUT: images.numpy()})
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return predict
