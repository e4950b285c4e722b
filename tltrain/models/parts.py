"""The two parts that a network is cut into: a frozen prefix, and a suffix that trains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, fx, nn

Forward = Callable[[nn.Module, Tensor], Tensor]


class Part(nn.Module):
    """Some layers of a network under their own dotted names, run by one graph per mode."""

    _forward_train: Forward
    _forward_eval: Forward

    def forward(self, tap: Tensor) -> Tensor:
        """Run the part.

        Args:
            tap: the network's value at the part's first cut, float [B, ...]; at cut 0 images [B, 3, H, W].
        """
        return self._forward_train(self, tap) if self.training else self._forward_eval(self, tap)


class FrozenPart(Part):
    """Stays in evaluation mode whatever `train` asks for: BatchNorm statistics are kept, dropout is off."""

    def train(self, mode: bool = True) -> FrozenPart:
        """Do nothing but keep evaluation mode."""
        return super().train(False)


def frozen_part(
    source: nn.Module, names: Collection[str], graph: fx.Graph, constants: Mapping[str, Tensor]
) -> FrozenPart:
    """Return a part that shares the layers of `source` and freezes them.

    Args:
        source: the network.
        names: dotted names of its parameters and buffers that belong to the part.
        graph: what the part does.
        constants: tensors by the names under which the graph reads them.
    """
    part = FrozenPart()
    _assemble(part, source, names, [graph], constants)
    part._forward_train = part._forward_eval = _compiled(part, graph)
    part.requires_grad_(False)
    return part.eval()


def trainable_part(
    source: nn.Module,
    names: Collection[str],
    train_graph: fx.Graph,
    eval_graph: fx.Graph,
    constants: Mapping[str, Tensor],
    trainable: Collection[str],
) -> Part:
    """Return a part with copies of the layers of `source`, in evaluation mode.

    Only the parameters in `trainable` want a gradient; the other arguments are those of `frozen_part`.
    """
    shared = Part()
    _assemble(shared, source, names, [train_graph, eval_graph], constants)
    shared._forward_train, shared._forward_eval = (
        _compiled(shared, train_graph),
        _compiled(shared, eval_graph),
    )
    part = copy.deepcopy(shared)
    for name, parameter in part.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(name in trainable)
    return part.eval()


def read_names(graph: fx.Graph, operation: str) -> set[str]:
    """Return the dotted names that nodes of one operation (`call_module`, `get_attr`) refer to."""
    return {str(node.target) for node in graph.nodes if node.op == operation}


def _compiled(part: Part, graph: fx.Graph) -> Forward:
    """Return the graph as a function of the part that holds its layers, and the tap."""
    # GraphModule gives each graph a class of its own, whose forward reads everything from `self`.
    forward: Any = type(fx.GraphModule(part, graph)).forward
    return forward


def _assemble(
    part: Part,
    source: nn.Module,
    names: Collection[str],
    graphs: list[fx.Graph],
    constants: Mapping[str, Tensor],
) -> None:
    """Hang into `part` what the graphs read, and the parameters and buffers `names`."""
    layers = set().union(*(read_names(graph, "call_module") for graph in graphs))
    read = set().union(*(read_names(graph, "get_attr") for graph in graphs))
    done: list[str] = []
    for path, module in source.named_modules(remove_duplicate=False):
        if any(path.startswith(f"{layer}.") for layer in done):
            continue
        if path in layers:
            _owner(part, path).add_module(path.rpartition(".")[2], module)
            done.append(path)
        else:
            _hang_tensors(part, path, module, {*names, *read})
    for name in read & constants.keys():
        part.register_buffer(name, constants[name], persistent=False)


def _hang_tensors(part: Part, path: str, module: nn.Module, wanted: Collection[str]) -> None:
    for kind in (module._parameters, module._buffers):
        for name, tensor in kind.items():
            full_name = f"{path}.{name}" if path else name
            if tensor is None or full_name not in wanted:
                continue
            owner = _owner(part, full_name)
            if isinstance(tensor, nn.Parameter):
                owner.register_parameter(name, tensor)
            else:
                owner.register_buffer(name, tensor, persistent=name not in module._non_persistent_buffers_set)


def _owner(part: nn.Module, name: str) -> nn.Module:
    """Return the module of `part` that holds what has this dotted name; made where it is missing."""
    owner = part
    for step in name.split(".")[:-1]:
        if step not in owner._modules:
            owner.add_module(step, nn.Module())
        owner = owner.get_submodule(step)
    return owner
