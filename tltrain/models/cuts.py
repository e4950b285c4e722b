"""Tracing a network into a graph, finding where it can be cut, and cutting it."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer
from torchvision.ops import Permute

_VIEWS = (
    *("view", "reshape", "permute", "transpose", "t", "flatten", "squeeze", "unsqueeze", "expand"),
    *("chunk", "split", "unbind", "getitem", "contiguous"),
)
_VIEW_MODULES = (nn.Flatten, nn.Identity, nn.Dropout, Permute)


class UntraceableError(Exception):
    """Why a network cannot be drawn as a graph; never seen by a user as it is."""


@dataclass(frozen=True)
class Leaves:
    """What is not traced into, besides the layers of torch.nn and modules without children."""

    modules: Sequence[type[nn.Module]] = ()
    functions: Sequence[Callable[..., Any]] = ()


@dataclass(frozen=True)
class Cut:
    """A place in a graph where one tensor, the tap, is all that is still needed of what came before.

    Nodes at positions below `position` come before the cut, the others after it.
    """

    position: int
    tap: fx.Node


class _Tracer(NodePathTracer):
    """Takes modules without children, and variants of torch.nn's layers, for single layers."""

    proxy_buffer_attributes = True  # else what forward makes of a buffer would become a constant

    def is_leaf_module(self, m: nn.Module, module_qualname: str) -> bool:
        return next(m.children(), None) is None or _is_layer(m) or super().is_leaf_module(m, module_qualname)


class TracedGraph:
    """The calculation of `module` in one mode, as nodes in order of execution.

    Reading a parameter or buffer (`get_attr`) is no step of its own: it is done where the value is used.
    """

    def __init__(self, module: nn.Module, leaves: Leaves, *, training: bool) -> None:
        """Trace `module`, which is left in evaluation mode. Raises UntraceableError."""
        self.module = module
        graph, self.names, self.constants = _trace(module, leaves, training)
        self.input, self.output, self.nodes = _steps(graph)
        self.positions = {node: position for position, node in enumerate(self.nodes)}
        self.last_use = {node: self._last_use(node) for node in [self.input, *self.nodes]}

    @property
    def start(self) -> Cut:
        """The cut before everything, whose tap is the images."""
        return Cut(0, self.input)

    def layer_uses(self) -> dict[str, tuple[int, int]]:
        """First and last position of each layer with parameters, by dotted name, in order of execution.

        Parameters that a module uses itself, rather than by way of a layer, stand there by their own name.
        """
        uses: dict[str, tuple[int, int]] = {}
        for position, node in enumerate(self.nodes):
            for name in self._layers_of(node):
                uses[name] = (uses.get(name, (position, position))[0], position)
        return uses

    def cuts(self, first: int, last: int) -> Iterator[Cut]:
        """Cuts with `first <= position <= last`, the latest one first."""
        for position in range(last, first - 1, -1):
            live = [node for node, use in self.last_use.items() if self._is_live(node, use, position)]
            if len(live) == 1 and _is_tensor(live[0]) and not self._is_overwritten(live[0], position):
                yield Cut(position, live[0])

    def between(self, start: Cut, stop: Cut | None) -> fx.Graph:
        """Return the part from the tap at `start` to the tap at `stop`, or to the output."""
        graph = fx.Graph()
        copies = {start.tap: graph.placeholder("tap")}

        def copy_of(node: fx.Node) -> fx.Node:
            if node not in copies:
                assert node.op == "get_attr", f"{node} crosses the cut at {start.position}"
                copies[node] = graph.node_copy(node)
            return copies[node]

        for node in self.nodes[start.position : None if stop is None else stop.position]:
            copies[node] = graph.node_copy(node, copy_of)
        graph.output(copy_of(self.output if stop is None else stop.tap))
        return graph

    def _layers_of(self, node: fx.Node) -> Iterator[str]:
        if node.op == "call_module" and any(True for _ in self._layer(node).parameters()):
            yield str(node.target)
        for source in node.all_input_nodes:
            if source.op == "get_attr" and is_parameter(self.module, str(source.target)):
                yield str(source.target)

    def _last_use(self, node: fx.Node) -> int:
        uses = [self.positions[user] for user in node.users if user in self.positions]
        return len(self.nodes) if node is self.output else max(uses, default=-1)

    def _is_live(self, node: fx.Node, last_use: int, position: int) -> bool:
        return self.positions.get(node, -1) < position <= last_use

    def _is_overwritten(self, tap: fx.Node, position: int) -> bool:
        """Whether a later step writes into the tap itself, which others may still want to read."""
        aliases = {tap}
        for node in self.nodes[position:]:
            if node.args and node.args[0] in aliases:
                if self._is_in_place(node):
                    return True
                if self._is_view(node):
                    aliases.add(node)
        return False

    def _is_in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self._layer(node), "inplace", False))
        name = _function_name(node)
        return node.kwargs.get("inplace") is True or (name.endswith("_") and not name.startswith("_"))

    def _is_view(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self._layer(node), _VIEW_MODULES)
        return _function_name(node) in _VIEWS

    def _layer(self, node: fx.Node) -> nn.Module:
        return self.module.get_submodule(str(node.target))


@dataclass(frozen=True)
class Window:
    """The places of a graph from position `first` to `last`."""

    graph: TracedGraph
    first: int
    last: int


def common_cut(one: Window, other: Window) -> tuple[Cut, Cut] | None:
    """Return the latest cut in `one` that is also in `other`, as it is found in each.

    A value is known in both graphs by the name of the module that makes it.
    """
    others: dict[str, Cut] = {}
    for cut in other.graph.cuts(other.first, other.last):
        others.setdefault(other.graph.names[cut.tap], cut)
    for cut in one.graph.cuts(one.first, one.last):
        name = one.graph.names[cut.tap]
        if name in others:
            return cut, others[name]
    return None


def _is_layer(module: nn.Module) -> bool:
    """Whether the module is of a class made from one of torch.nn's layers."""
    layers = [base for base in type(module).__mro__ if base.__module__.startswith("torch.nn.modules.")]
    return any(not base.__module__.endswith((".module", ".container")) for base in layers)


def is_parameter(module: nn.Module, name: str) -> bool:
    """Whether `name` is the dotted name of a parameter of `module`."""
    path, _, attribute = name.rpartition(".")
    try:
        return attribute in module.get_submodule(path)._parameters
    except AttributeError:
        return False


def _trace(module: nn.Module, leaves: Leaves, training: bool) -> tuple[fx.Graph, dict[fx.Node, str], dict[str, Tensor]]:
    tracer = _Tracer(leaf_modules=list(leaves.modules), autowrap_functions=tuple(leaves.functions))
    before = set(vars(module))
    defaults = _defaults(module)
    module.train(training)
    try:
        graph = tracer.trace(module, concrete_args=defaults)
    except Exception as error:  # the network's own code runs here on stand-ins, and may raise anything
        raise UntraceableError(f"{type(error).__name__}: {error}") from error
    finally:
        module.eval()
        # Tensors that forward makes of nothing, which the tracer leaves on the module.
        made = {name: vars(module).pop(name) for name in set(vars(module)) - before}
    return graph, dict(tracer.node_to_qualname), _renamed(graph, made, "train" if training else "eval")


def _renamed(graph: fx.Graph, constants: dict[str, Tensor], mode: str) -> dict[str, Tensor]:
    """Give constants a name that tells the modes apart: the tracer numbers them anew in each."""
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in constants:
            node.target = f"_{mode}{node.target}"
    return {f"_{mode}{name}": tensor for name, tensor in constants.items()}


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Return the arguments of forward besides the images, at their defaults."""
    parameters = list(inspect.signature(module.forward).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [p.name for p in named if p.default is p.empty]
    if needed:
        raise UntraceableError(f"forward() needs more than the images: {', '.join(needed)}")
    return {p.name: p.default for p in named}


def _steps(graph: fx.Graph) -> tuple[fx.Node, fx.Node, list[fx.Node]]:
    """Return the images, the logits, and the steps between them."""
    images, *others = [node for node in graph.nodes if node.op == "placeholder"]
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    if not isinstance(output, fx.Node):
        raise UntraceableError("forward() returns more than one tensor")
    # Arguments at their defaults are stand-ins of which nothing but a check of the default is left.
    unwanted = set(others)
    for node in graph.nodes:
        if not unwanted.isdisjoint(node.all_input_nodes):
            unwanted.add(node)
    skipped = ("placeholder", "output", "get_attr")
    return images, output, [node for node in graph.nodes if node.op not in skipped and node not in unwanted]


def _is_tensor(node: fx.Node) -> bool:
    """Whether the value is one tensor: tuples, lists and shapes are picked apart by a plain number."""
    picked_apart = any(u.target is operator.getitem and isinstance(u.args[1], int) for u in node.users)
    return not picked_apart and node.target is not getattr and node.target not in ("size", "dim")


def _function_name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
