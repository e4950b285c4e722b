"""Tests of tltrain.models.stages and grouping: names of stages, depths, and cutting a network in two."""

from __future__ import annotations

import functools

import pytest
import torch
import torchvision
from _pytest.mark import ParameterSet
from torch import Tensor, nn
from torch.nn import functional as F

from tltrain.errors import SpecError
from tltrain.models.stages import StagedNetwork
from tltrain.models.zoo import Network, build_network
from tltrain.spec.schema import ModelSpec

# One network per family, and what a person of the field calls its stages.
FAMILIES = {
    "alexnet": "block1 block2 block3 classifier head",
    "convnext_tiny": "stem block1 block2 block3 block4 head",
    "densenet121": ("stem denseblock1 transition1 denseblock2 transition2 denseblock3 transition3 denseblock4 head"),
    "efficientnet_b0": "stem block1 block2 block3 block4 block5 block6 block7 last_conv head",
    "efficientnet_lite0": "stem block1 block2 block3 block4 block5 block6 block7 last_conv head",
    "efficientnet_v2_s": "stem block1 block2 block3 block4 block5 block6 last_conv head",
    "googlenet": "stem inception3 inception4 inception5 head",
    "inception_v3": "stem Mixed_5 Mixed_6 Mixed_7 head",
    "maxvit_t": "stem block1 block2 block3 block4 classifier head",
    "mnasnet0_5": "stem block1 block2 block3 block4 block5 block6 last_conv head",
    "mobilenet_v2": " ".join(["stem", *(f"block{n}" for n in range(1, 18)), "last_conv head"]),
    "mobilenet_v3_small": " ".join(["stem", *(f"block{n}" for n in range(1, 12)), "last_conv classifier head"]),
    "regnet_y_400mf": "stem block1 block2 block3 block4 head",
    "resnet18": "stem layer1 layer2 layer3 layer4 head",
    "shufflenet_v2_x0_5": "stem stage2 stage3 stage4 conv5 head",
    "squeezenet1_1": "stem block1 block2 block3 head",
    "swin_t": "patch_embedding block1 block2 block3 block4 head",
    "swin_v2_t": "patch_embedding block1 block2 block3 block4 head",
    "vgg11": "block1 block2 block3 block4 block5 classifier head",
    "vit_b_32": " ".join(["patch_embedding", *(f"encoder_layer_{n}" for n in range(12)), "head"]),
}
SLOW = ("efficientnet_v2_s", "maxvit_t", "mobilenet_v2", "swin_v2_t", "vit_b_32")
OTHERS = sorted(set(torchvision.models.list_models(module=torchvision.models)) - set(FAMILIES))
LARGER_IMAGES = {"inception_v3": 75, "maxvit_t": 224}


def images(name: str) -> Tensor:
    size = 224 if name.startswith("vit_") else LARGER_IMAGES.get(name, 64)
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def build(name: str) -> Network:
    return build_network(ModelSpec(name=name, weights="random"), 7, seed=0)


@functools.lru_cache(maxsize=1)
def resnet() -> Network:
    return build("resnet18")


def assert_cuts_are_exact(name: str) -> list[str]:
    network = build(name)
    module, staged, batch = network.module, network.staged, images(name)
    names = [stage.name for stage in staged.stages]
    assert len(names) >= 3
    assert len(set(names)) == len(names)
    assert names[-1] == "head"
    assert all(stage.modules and stage.num_parameters > 0 for stage in staged.stages)
    assert sum(stage.num_parameters for stage in staged.stages) == sum(p.numel() for p in module.parameters())
    with torch.no_grad():
        expected = module(batch)
        for depth in (1, len(names) // 2, len(names) - 1):
            prefix, suffix = staged.prefix(0, depth), staged.suffix(depth)
            assert torch.equal(suffix(prefix(batch)), expected), depth
            assert prefix.state_dict().keys().isdisjoint(suffix.state_dict())
            assert prefix.state_dict().keys() | suffix.state_dict().keys() == module.state_dict().keys()
    return names


def cases() -> list[ParameterSet]:
    slow = {*OTHERS, *SLOW}
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in [*FAMILIES, *OTHERS]]


@pytest.mark.parametrize("name", cases())
def test_a_prefix_and_its_suffix_are_the_whole_network_to_the_bit(name: str):
    names = assert_cuts_are_exact(name)
    assert FAMILIES.get(name, " ".join(names)).split() == names


def test_layers_without_parameters_belong_to_the_stage_before():
    prefix = resnet().staged.prefix(0, 1)
    assert [name for name, _ in prefix.named_children()] == ["conv1", "bn1", "relu", "maxpool"]


def test_prefixes_of_neighbouring_stages_can_be_chained():
    staged, batch = resnet().staged, images("resnet18")
    with torch.no_grad():
        chained = staged.prefix(3, 5)(staged.prefix(1, 3)(staged.prefix(0, 1)(batch)))
        assert torch.equal(chained, staged.prefix(0, 5)(batch))
        assert torch.equal(staged.prefix(0, 0)(batch), batch)


def test_a_tap_is_not_changed_by_what_reads_it():
    for name in ("alexnet", "squeezenet1_1", "efficientnet_lite0"):
        staged, batch = build(name).staged, images(name)
        for depth in range(1, len(staged.stages)):
            with torch.no_grad():
                tap = staged.prefix(0, depth)(batch)
                before = tap.clone()
                staged.suffix(depth).train()(tap)
            assert torch.equal(tap, before), (name, depth)


@pytest.mark.parametrize(
    ("freeze_depth", "depth"),
    [(0, 0), (3, 3), (5, 5), ("all", 5), ("stem", 1), ("layer2", 3), ("layer4", 5)],
)
def test_a_depth_is_a_number_a_name_or_all(freeze_depth: int | str, depth: int):
    assert resnet().staged.resolve_depth(freeze_depth) == depth


@pytest.mark.parametrize(
    ("freeze_depth", "said"),
    [
        (6, "5 stages before its head, not 6"),
        ("head", "the head cannot be frozen"),
        ("layr2", "Did you mean 'layer2'?"),
        ("conv1", "one of stem, layer1, layer2, layer3, layer4"),
    ],
)
def test_a_depth_that_is_none_is_refused_with_the_choices(freeze_depth: int | str, said: str):
    with pytest.raises(SpecError) as refusal:
        resnet().staged.resolve_depth(freeze_depth)
    assert said in str(refusal.value)
    assert refusal.value.problems[0].key == "model.freeze_depth"


def test_every_parameter_and_buffer_has_a_stage():
    network = build("maxvit_t")  # has buffers that no layer owns
    names = network.module.state_dict()
    counts = [sum(network.staged.stage_of(name) == index for name in names) for index in range(7)]
    assert sum(counts) == len(names)
    assert min(counts) > 0
    bias = "blocks.2.layers.0.layers.window_attention.attn_layer.1.relative_position_index"
    assert network.staged.stages[network.staged.stage_of(bias)].name == "block3"


class LeNet(nn.Module):
    """A small network as in tutorials: layers side by side, functions between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(16 * 5 * 5, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


def test_a_flat_network_has_a_stage_per_layer():
    staged = StagedNetwork(LeNet())
    assert [stage.name for stage in staged.stages] == ["conv1", "conv2", "fc1", "head"]


def test_numbered_layers_are_grouped_by_poolings():
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2)]
    staged = StagedNetwork(nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2)))
    assert [stage.modules for stage in staged.stages] == [("0", "2"), ("4",), ("7",), ("8",)]
    assert [stage.name for stage in staged.stages] == ["block1", "block2", "block3", "head"]


class Skip(nn.Module):
    """A network whose first value is needed again at the end, so that nothing can be cut between."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.one(x)
        return self.head(self.three(self.two(first)) + first)


def test_stages_with_no_cut_between_them_are_one():
    staged = StagedNetwork(Skip())
    assert [stage.modules for stage in staged.stages] == [("one",), ("two", "three"), ("head",)]


class Overwriting(nn.Module):
    """A network that writes into a value which an earlier step has handed on."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.head(self.three(self.two(x) + self.relu(x.view(-1, 4))))


def test_nothing_is_cut_where_the_tap_would_be_overwritten():
    staged = StagedNetwork(Overwriting())
    assert [stage.modules for stage in staged.stages] == [("one", "two"), ("three",), ("head",)]


class Shared(nn.Module):
    """A network that uses a layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.one(self.two(self.one(x))))


def test_a_layer_that_runs_twice_is_never_cut_from_itself():
    staged = StagedNetwork(Shared())
    assert [stage.modules for stage in staged.stages] == [("one", "two"), ("head",)]


class Branching(nn.Module):
    """A network whose path depends on its values, which a trace cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x) if x.sum() > 0 else x)


def test_a_network_that_cannot_be_traced_can_only_be_trained_whole():
    network = Branching()
    staged = StagedNetwork(network)
    assert [stage.name for stage in staged.stages] == ["backbone", "head"]
    assert staged.head_name == "fc"
    assert staged.resolve_depth(0) == 0
    with pytest.raises(SpecError, match=r"cannot be traced: TraceError.*freeze_depth: 0"):
        staged.resolve_depth("all")
    batch = torch.ones(3, 4)
    suffix = staged.suffix(0)
    assert torch.equal(suffix(staged.prefix(0, 0)(batch)), network(batch))
    assert suffix.state_dict().keys() == network.state_dict().keys()


def test_a_network_without_a_linear_layer_is_refused():
    with pytest.raises(SpecError, match="could be its head"):
        StagedNetwork(nn.Sequential(nn.Flatten(), nn.LayerNorm(4)))


def test_tracing_leaves_nothing_behind_on_the_network():
    network = LeNet()
    before = set(vars(network))
    StagedNetwork(network)
    assert set(vars(network)) == before
    assert not network.training


class Optional(nn.Module):
    """A network with further arguments that have defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0) -> Tensor:
        x = self.one(x) * scale
        return self.head(x if mask is None else x * mask)


def test_arguments_besides_the_images_keep_their_defaults():
    network = Optional()
    staged, batch = StagedNetwork(network), torch.randn(3, 4)
    assert torch.equal(staged.suffix(1)(staged.prefix(0, 1)(batch)), network(batch))
