"""The stages of a network, and the network cut in two at any of them."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.nn import functional as F

from tltrain.errors import Problem, SpecError
from tltrain.models.cuts import Cut, Leaves, TracedGraph, UntraceableError, Window, common_cut, is_parameter
from tltrain.models.grouping import Group, Pooling, group_layers
from tltrain.models.parts import FrozenPart, frozen_part, read_names, trainable_part

_POOLING_LAYERS = (nn.MaxPool2d, nn.AvgPool2d)
_POOLING_FUNCTIONS = (F.max_pool2d, F.avg_pool2d)


@dataclass(frozen=True)
class Stage:
    """One of the ordered parts of a network that are frozen or trained as a whole."""

    name: str
    modules: tuple[str, ...]
    """Dotted names of its layers with parameters, and of parameters that belong to no layer."""
    num_parameters: int


@dataclass
class _Plan:
    """Groups of layers with the cut before each, in both graphs."""

    eval_graph: TracedGraph
    train_graph: TracedGraph
    groups: list[Group] = field(default_factory=list)
    cuts: list[tuple[Cut, Cut]] = field(default_factory=list)


class StagedNetwork:
    """A network with its stages; the last one is the head.

    A network that cannot be traced has the stages `backbone` and `head` and no cut between them.
    """

    stages: tuple[Stage, ...]
    head_name: str
    """Dotted name of the layer that makes the logits."""

    def __init__(self, module: nn.Module, leaves: Leaves | None = None) -> None:
        """Trace `module` in both modes and leave it in evaluation mode.

        Args:
            module: takes images, float32 [B, 3, H, W], and returns logits, float32 [B, num_classes].
            leaves: what is not to be traced into.
        """
        self._module = module
        self._trainable = {name for name, p in _parameters(module) if p.requires_grad}
        self._plan: _Plan | None = None
        self.why_uncut = ""
        """Why the network has no cuts; empty where it has some."""
        try:
            self._plan = _plan(module, leaves or Leaves())
            groups = self._plan.groups
        except UntraceableError as error:
            self.why_uncut = str(error)
            groups = _untraced_groups(module)
        self.head_name = next(name for name in reversed(groups[-1].layers) if _is_classifier(module, name))
        self._stage_of = _assign(module, groups)
        self.stages = tuple(self._stage(index, group) for index, group in enumerate(groups))

    def resolve_depth(self, freeze_depth: int | str) -> int:
        """Return how many stages are frozen: 0 up to all but the head.

        Args:
            freeze_depth: a number, the name of the last frozen stage, or `all` for all but the head.

        Raises:
            SpecError: no such stage, too many, or a network without cuts.
        """
        depth = self._depth_of(freeze_depth)
        if depth > 0 and self._plan is None:
            raise _depth_error(
                f"this network cannot be cut, because it cannot be traced: {self.why_uncut}",
                "Set freeze_depth: 0 to train all of it",
            )
        return depth

    def prefix(self, start: int, stop: int) -> FrozenPart:
        """Return stages [start, stop), frozen: tap at cut `start` -> tap at cut `stop`, float [B, ...].

        Cut 0 is the normalised images, float32 [B, 3, H, W]. The layers are the network's own. The part always
        runs in evaluation mode.
        """
        assert 0 <= start <= stop < len(self.stages)
        if self._plan is None:
            assert start == stop, "a network without cuts has no prefix"
            graph = fx.Graph()
            graph.output(graph.placeholder("tap"))
            return frozen_part(self._module, (), graph, {})
        cuts = self._plan.cuts
        graph = self._plan.eval_graph.between(cuts[start][0], cuts[stop][0])
        return frozen_part(self._module, self._names(start, stop), graph, self._plan.eval_graph.constants)

    def suffix(self, depth: int) -> nn.Module:
        """Return stages [depth, end) with parameters and buffers of their own, in evaluation mode.

        It takes the tap at cut `depth` and returns logits, float [B, num_classes]. Its state_dict has the
        network's dotted names. Parameters that the training pass never uses want no gradient.
        """
        assert 0 <= depth < len(self.stages)
        if self._plan is None:
            assert depth == 0, "a network without cuts has no shorter suffix"
            return _copied_whole(self._module, self._trainable)
        plan, (eval_cut, train_cut) = self._plan, self._plan.cuts[depth]
        train_graph = plan.train_graph.between(train_cut, None)
        return trainable_part(
            self._module,
            self._names(depth, len(self.stages)),
            train_graph,
            plan.eval_graph.between(eval_cut, None),
            {**plan.train_graph.constants, **plan.eval_graph.constants},
            self._trainable & self._used(train_graph),
        )

    def stage_of(self, parameter_or_buffer_name: str) -> int:
        """Return the index of the stage that a parameter or buffer belongs to, by its dotted name."""
        return self._stage_of[parameter_or_buffer_name]

    def _depth_of(self, freeze_depth: int | str) -> int:
        names = [stage.name for stage in self.stages[:-1]]
        if freeze_depth == "all":
            return len(names)
        if isinstance(freeze_depth, str) and freeze_depth in names:
            return names.index(freeze_depth) + 1
        if isinstance(freeze_depth, int) and 0 <= freeze_depth <= len(names):
            return freeze_depth
        choice = f"Choose 0 to {len(names)}, `all`, or one of {', '.join(names)}"
        if freeze_depth == self.stages[-1].name:
            raise _depth_error("the head cannot be frozen, for it is new", choice)
        if isinstance(freeze_depth, int):
            raise _depth_error(f"the network has {len(names)} stages before its head, not {freeze_depth}", choice)
        nearest = difflib.get_close_matches(freeze_depth, [*names, "all"], n=1)
        meant = f"Did you mean {nearest[0]!r}? " if nearest else ""
        raise _depth_error(f"the network has no stage {freeze_depth!r}", meant + choice)

    def _stage(self, index: int, group: Group) -> Stage:
        parameters = self._module.named_parameters()
        return Stage(group.name, group.layers, sum(p.numel() for n, p in parameters if self._stage_of[n] == index))

    def _names(self, start: int, stop: int) -> set[str]:
        return {name for name, stage in self._stage_of.items() if start <= stage < stop}

    def _used(self, graph: fx.Graph) -> set[str]:
        """Return the names of the parameters that a graph reads."""
        layers = read_names(graph, "call_module")
        names = {f"{layer}.{name}" for layer in layers for name, _ in _parameters(self._module.get_submodule(layer))}
        return names | read_names(graph, "get_attr")


def _plan(module: nn.Module, leaves: Leaves) -> _Plan:
    """Return the groups of layers between which there is a cut. Raises UntraceableError."""
    eval_graph = TracedGraph(module, leaves, training=False)
    train_graph = TracedGraph(module, leaves, training=True)
    eval_uses, train_uses = eval_graph.layer_uses(), train_graph.layer_uses()
    if eval_uses.keys() != train_uses.keys():
        different = sorted(eval_uses.keys() ^ train_uses.keys())
        raise UntraceableError(f"these layers are only used in one of training and evaluation: {different[:3]}")
    layers = list(eval_uses)
    head = _head_position(module, layers)
    backbone = group_layers(module, layers[:head], _poolings(eval_graph, eval_uses)) if head else []
    plan = _Plan(eval_graph, train_graph, cuts=[(eval_graph.start, train_graph.start)])
    for group in [*backbone, Group("head", tuple(layers[head:]))]:
        _add(plan, group, eval_uses, train_uses)
    return plan


Uses = dict[str, tuple[int, int]]


def _add(plan: _Plan, group: Group, eval_uses: Uses, train_uses: Uses) -> None:
    """Add a group to the plan as a stage, or to the stage before it where no cut is between them."""
    if not plan.groups:
        plan.groups.append(group)
        return
    before = [layer for earlier in plan.groups for layer in earlier.layers]
    cut = common_cut(_window(plan.eval_graph, eval_uses, before), _window(plan.train_graph, train_uses, before))
    if cut is None:
        earlier = plan.groups.pop()
        name = "head" if group.name == "head" else earlier.name
        plan.groups.append(Group(name, earlier.layers + group.layers))
    else:
        plan.groups.append(group)
        plan.cuts.append(cut)


def _window(graph: TracedGraph, uses: Uses, before: Sequence[str]) -> Window:
    """Return the places after the last use of the layers `before` and before the first use of all others."""
    earlier = set(before)
    first = max(uses[layer][1] for layer in earlier) + 1
    return Window(graph, first, min(use[0] for layer, use in uses.items() if layer not in earlier))


def _poolings(graph: TracedGraph, uses: Uses) -> list[Pooling]:
    poolings = []
    for position, node in enumerate(graph.nodes):
        layer = graph.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, _POOLING_LAYERS) or node.target in _POOLING_FUNCTIONS:
            before = sum(first < position for first, _ in uses.values())
            poolings.append(Pooling(graph.names[node].rpartition(".")[0], before))
    return poolings


def _is_classifier(module: nn.Module, layer: str) -> bool:
    return not is_parameter(module, layer) and isinstance(module.get_submodule(layer), nn.Linear | nn.Conv2d)


def _head_position(module: nn.Module, layers: Sequence[str]) -> int:
    """Return where the head begins: at the last classifier, or at the first of several side by side."""
    positions = [index for index, layer in enumerate(layers) if _is_classifier(module, layer)]
    if not positions:
        what = "the network has no Linear or Conv2d layer that could be its head"
        raise SpecError(Problem(what, key="model.factory"))
    head = positions[-1]
    while head - 1 in positions and _shape(module, layers[head - 1]) == _shape(module, layers[head]):
        head -= 1
    return head


def _shape(module: nn.Module, layer: str) -> torch.Size:
    return module.get_parameter(f"{layer}.weight").shape


def _untraced_groups(module: nn.Module) -> list[Group]:
    layers = [
        name for name, layer in module.named_modules() if name and any(True for _ in layer.parameters(recurse=False))
    ]
    head = _head_position(module, layers)
    return [Group("backbone", tuple(layers[:head])), Group("head", tuple(layers[head:]))]


def _assign(module: nn.Module, groups: Sequence[Group]) -> dict[str, int]:
    """Return the stage of each parameter and buffer; unused ones go with the layers nearest to them."""
    stages: dict[str, int] = {}
    for index, group in enumerate(groups):
        for layer in group.layers:
            steps = layer.split(".")
            for length in range(len(steps), -1, -1):
                stages.setdefault(".".join(steps[:length]), index)
    tensors = [*_parameters(module), *module.named_buffers(remove_duplicate=False)]
    return {name: _nearest(name, stages) for name, _ in tensors}


def _nearest(name: str, stages: dict[str, int]) -> int:
    while name not in stages:
        name = name.rpartition(".")[0]
    return stages[name]


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters(remove_duplicate=False)


def _copied_whole(module: nn.Module, trainable: Collection[str]) -> nn.Module:
    whole = copy.deepcopy(module)
    for name, parameter in _parameters(whole):
        parameter.requires_grad_(name in trainable)
    return whole.eval()


def _depth_error(what: str, action: str) -> SpecError:
    return SpecError(Problem(what, action, key="model.freeze_depth"))
