"""The network with its preprocessing as one graph that needs no Python code: images in, probabilities out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from tltrain.data.preprocessing import Preprocessing
from tltrain.data.transforms import normalise
from tltrain.errors import ExportError
from tltrain.models.zoo import TrainedNetwork

INPUT, LOGITS, PROBABILITIES = "images", "logits", "probabilities"
"""Names of what goes in and comes out."""


class Classifier(nn.Module):
    """Resized and cropped images, uint8 [B, 3, S, S], RGB -> logits and probabilities, float32 [B, C] each.

    Probabilities are the softmax of the logits divided by the temperature that was fitted to the model, if one was.
    """

    def __init__(self, module: nn.Module, preprocessing: Preprocessing, temperature: float) -> None:
        super().__init__()
        self.network = module
        self._preprocessing, self._temperature = preprocessing, temperature

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalise the images and classify them."""
        logits = self.network(normalise(images, self._preprocessing))
        return {LOGITS: logits, PROBABILITIES: (logits / self._temperature).softmax(dim=1)}


def classifier(network: TrainedNetwork) -> Classifier:
    """Return the network of a run as a classifier of uint8 images, in evaluation mode."""
    return Classifier(network.module, network.preprocessing, network.temperature).eval()


def export_graph(network: TrainedNetwork) -> ExportedProgram:
    """Return the classifier as a graph of ATen operators that takes batches of any size.

    Raises ExportError where the network's code cannot be turned into one.
    """
    size = network.preprocessing.crop_size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)  # a batch of 1 would be taken for a fixed size
    try:
        program = export(classifier(network), (example,), dynamic_shapes={INPUT: {0: Dim("batch", min=1)}})
    except Exception as error:  # torch gives errors of many kinds, and the network's own code may fail
        first = str(error).strip().partition("\n")[0]
        what = f"torch.export cannot make a graph of the network: {type(error).__name__}: {first}"
        raise ExportError(what, "Choose --format safetensors, which keeps the weights as they are") from error
    _forget_sources(program)
    return program


def _forget_sources(program: ExportedProgram) -> None:
    """Take the places in source files out of the graph: they are those of this machine."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
