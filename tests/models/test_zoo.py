"""Tests of tltrain.models.zoo, weights and architectures: a network from a spec, and from a finished run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from tltrain.data.preprocessing import Preprocessing
from tltrain.errors import DataError, SpecError
from tltrain.models import weights
from tltrain.models.zoo import Network, build_network, check_image_size, initialise_head, load_trained
from tltrain.spec.schema import ModelSpec

SMALL = "shufflenet_v2_x0_5"


def build(num_classes: int = 5, *, seed: int = 0, allow_code: bool = False, **fields: Any) -> Network:
    defaults: dict[str, Any] = {"weights": "random"} if "factory" in fields else {"name": SMALL, "weights": "random"}
    spec = ModelSpec(**defaults | fields)
    return build_network(spec, num_classes, seed=seed, allow_code=allow_code)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def save_run(folder: Path, network: Network, classes: list[str], **changes: Any) -> Path:
    """Write what a finished run leaves behind."""
    model = folder / "model"
    model.mkdir(parents=True)
    card = {"name": SMALL, "factory": None, "arguments": network.arguments, "classes": classes}
    card |= {"preprocessing": network.preprocessing.to_dict(), "run": folder.name} | changes
    (model / "model.json").write_text(json.dumps(card))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors(network.module).items()}, model / "model.safetensors"
    )
    return folder


def test_random_weights_are_a_function_of_the_seed_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, other = build(seed=3), build(seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert same(tensors(one.module), tensors(build(seed=3).module))
    assert not same(tensors(one.module), tensors(other.module))
    assert one.weights_origin == "random, seed 3"


def test_a_new_head_is_a_function_of_its_seed_alone():
    network = build()
    before, weight = torch.random.get_rng_state(), network.module.get_parameter("fc.weight").clone()
    initialise_head(network.module, network.head_name, 9)
    other = network.module.get_parameter("fc.weight").clone()
    initialise_head(network.module, network.head_name, 0)
    assert torch.equal(network.module.get_parameter("fc.weight"), weight)
    assert not torch.equal(other, weight)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "head_name", "kind"),
    [
        (SMALL, "fc", nn.Linear),
        ("squeezenet1_1", "classifier.1", nn.Conv2d),
        ("mobilenet_v3_small", "classifier.3", nn.Linear),
    ],
)
def test_the_head_is_of_the_same_kind_for_the_users_classes(name: str, head_name: str, kind: type[nn.Module]):
    network = build(7, name=name)
    assert network.head_name == head_name
    assert isinstance(network.module.get_submodule(head_name), kind)
    assert network.module(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert not network.module.training


def test_its_arguments_rebuild_a_network_with_plain_torchvision():
    for name in (SMALL, "googlenet"):
        network = build(name=name)
        rebuilt = torchvision.models.get_model(name, **network.arguments).eval()
        rebuilt.load_state_dict(network.module.state_dict())
        images = torch.randn(2, 3, 64, 64)
        assert torch.equal(rebuilt(images), network.module(images))


def test_the_users_momentum_is_set_on_all_batchnorm_layers(caplog: pytest.LogCaptureFixture):
    network = build(batchnorm_momentum=0.02)
    layers = [layer for layer in network.module.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {layer.momentum for layer in layers} == {0.02}
    suffix = network.staged.suffix(1)
    assert {layer.momentum for layer in suffix.modules() if isinstance(layer, nn.BatchNorm2d)} == {0.02}
    build(name="alexnet", batchnorm_momentum=0.02)
    assert "batchnorm_momentum is ignored" in caplog.text


def test_preprocessing_is_that_of_the_weights():
    assert build(name="efficientnet_b0").preprocessing == Preprocessing(256, 224, interpolation="bicubic")
    assert build(name="efficientnet_lite0").preprocessing.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("fields", "key", "said"),
    [
        ({"name": "resnet51"}, "model.name", "Nearest are resnet50, resnet"),
        ({"name": "timm/resnet17"}, "model.name", "resnet1"),
        ({"weights": "IMAGENET1K_V9"}, "model.weights", "one of default, IMAGENET1K_V1, random"),
        ({"weights": "ResNet50_Weights.IMAGENET1K_V1"}, "model.weights", f"for {SMALL}"),
        ({"name": "efficientnet_lite0", "weights": "IMAGENET1K_V1"}, "model.weights", "one of default, random"),
        ({"weights": "missing/weights.pt"}, "model.weights", "no file or folder missing/weights.pt"),
        ({"factory": "package:function"}, "model.factory", "allow_code: true"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(fields: dict[str, Any], key: str, said: str):
    with pytest.raises(SpecError) as refusal:
        build(**fields)
    assert refusal.value.problems[0].key == key
    assert said in str(refusal.value)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Files that stand for published weights by their URL; others cannot be fetched."""
    files: dict[str, Path] = {}

    def fetch(url: str, file_name: str, sha256_prefix: str = "") -> Path:
        assert re.search(rf"-{sha256_prefix}\.", url)
        return files[url]

    monkeypatch.setattr(weights, "fetch", fetch)
    return files


@pytest.mark.parametrize("value", ["default", "IMAGENET1K_V1", "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"])
def test_published_weights_are_loaded_but_for_the_head(tmp_path: Path, published: dict[str, Path], value: str):
    theirs = build(1000, seed=1).module
    path = tmp_path / "published.pth"
    torch.save(theirs.state_dict(), path)
    published[torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.url] = path
    network = build(5, weights=value)
    ours = tensors(network.module)
    backbone = [name for name in ours if not name.startswith("fc.")]
    assert all(torch.equal(ours[name], tensors(theirs)[name]) for name in backbone)
    assert torch.equal(ours["fc.weight"], build(5).module.get_parameter("fc.weight"))
    assert network.weights_origin == "torchvision ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"
    assert network.notes == ()
    kept = build(1000, weights=value)
    assert same(tensors(kept.module), tensors(theirs))
    assert "1000 classes too" in kept.notes[0]


def test_auxiliary_heads_are_left_out_and_that_is_said(tmp_path: Path, published: dict[str, Path]):
    theirs = torchvision.models.get_model("googlenet", aux_logits=True, transform_input=True, init_weights=False).eval()
    torch.save(theirs.state_dict(), tmp_path / "published.pth")
    published[torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.url] = tmp_path / "published.pth"
    network = build(1000, name="googlenet", weights="default")
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(network.module(images), theirs(images))
    assert "auxiliary heads are left out" in network.notes[0]


def test_densenets_published_names_are_understood(tmp_path: Path, published: dict[str, Path]):
    theirs = build(1000, name="densenet121", seed=1).module
    old = {re.sub(r"(norm|conv)([12]\.)", r"\1.\2", name): tensor for name, tensor in tensors(theirs).items()}
    assert old.keys() != tensors(theirs).keys()
    torch.save(old, tmp_path / "published.pth")
    published[torchvision.models.DenseNet121_Weights.IMAGENET1K_V1.url] = tmp_path / "published.pth"
    assert same(tensors(build(1000, name="densenet121", weights="default").module), tensors(theirs))


def test_a_transformer_is_built_for_the_size_of_its_weights(tmp_path: Path, published: dict[str, Path]):
    theirs = torchvision.models.get_model("vit_b_16", image_size=384, num_classes=1000)
    torch.save(theirs.state_dict(), tmp_path / "published.pth")
    published[torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1.url] = tmp_path / "published.pth"
    network = build(5, name="vit_b_16", weights="IMAGENET1K_SWAG_E2E_V1")
    assert network.arguments == {"num_classes": 5, "image_size": 384}
    assert network.preprocessing.crop_size == 384


def test_a_file_and_a_url_are_weights_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    theirs = build(5, seed=1)
    path = tmp_path / "mine.safetensors"
    save_file(tensors(theirs.module), path)
    network = build(5, weights=str(path))
    assert same(tensors(network.module), tensors(theirs.module))
    assert network.weights_origin == str(path)
    monkeypatch.setattr(weights, "fetch", lambda url, file_name: path)
    assert same(tensors(build(5, weights="https://example.org/x.safetensors").module), tensors(theirs.module))


def test_weights_of_mnasnet_are_loaded_from_a_plain_file(tmp_path: Path):
    theirs = build(5, name="mnasnet0_5", seed=1)  # its own load_state_dict refuses states without a version
    save_file(tensors(theirs.module), tmp_path / "mine.safetensors")
    ours = build(5, name="mnasnet0_5", weights=str(tmp_path / "mine.safetensors"))
    assert same(tensors(ours.module), tensors(theirs.module))


def test_pretrain_fine_tune_and_fine_tune_again_is_a_chain(tmp_path: Path):
    mean = {**Preprocessing().to_dict(), "mean": [0.1, 0.2, 0.3]}
    first = build(5, seed=1)
    run = save_run(tmp_path / "first", first, list("abcde"), preprocessing=mean)
    second = build(3, seed=2, weights=str(run))
    assert torch.equal(tensors(second.module)["conv1.0.weight"], tensors(first.module)["conv1.0.weight"])
    assert torch.equal(tensors(second.module)["fc.weight"], tensors(build(3, seed=2).module)["fc.weight"])
    assert second.preprocessing.mean == (0.1, 0.2, 0.3)
    again = save_run(tmp_path / "second", second, list("xyz"))
    third = build(3, seed=3, weights=str(again / "model"))
    assert same(tensors(third.module), tensors(second.module))
    assert third.preprocessing == second.preprocessing


def test_a_run_of_another_network_is_refused(tmp_path: Path):
    run = save_run(tmp_path / "first", build(), list("abcde"))
    with pytest.raises(DataError, match="this run trained shufflenet_v2_x0_5, and the spec asks for resnet18"):
        build(name="resnet18", weights=str(run))


def test_a_finished_run_is_loaded_whole(tmp_path: Path):
    network = build(seed=1)
    run = save_run(tmp_path / "first", network, list("abcde"))
    for folder in (run, str(run / "model")):
        trained = load_trained(folder)
        assert same(tensors(trained.module), tensors(network.module))
        assert trained.classes == tuple("abcde")
        assert trained.preprocessing == network.preprocessing
        assert trained.staged.resolve_depth("stage2") == 2


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda model: (model / "model.json").unlink(), "no finished model"),
        (lambda model: (model / "model.safetensors").unlink(), "no finished model"),
        (lambda model: (model / "model.json").write_text("{"), "damaged"),
        (lambda model: (model / "model.safetensors").write_bytes(b"no"), "damaged"),
        (lambda model: (model / "model.json").write_text('{"classes": []}'), "lacks arguments, preprocessing"),
        (lambda model: (model / "model.json").write_text("[]"), "lacks"),
    ],
)
def test_a_damaged_run_is_refused(tmp_path: Path, damage: Any, said: str):
    run = save_run(tmp_path / "first", build(), list("abcde"))
    damage(run / "model")
    with pytest.raises(DataError, match=said):
        load_trained(run)


def test_an_image_size_that_a_network_does_not_take_is_refused():
    network = build(name="alexnet")
    check_image_size(network, 64)
    with pytest.raises(SpecError, match=r"data\.image_size: the network takes no images of 32 x 32"):
        check_image_size(network, 32)


def test_without_timm_its_networks_say_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SpecError, match=re.escape("pip install 'tltrain[timm]'")):
        build(name="timm/resnet18")


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", "stem layer1 layer2 layer3 layer4 head"),
        ("vit_tiny_patch16_224", " ".join(["patch_embedding", *(f"block{n}" for n in range(1, 13)), "head"])),
        ("convnext_atto", "stem block1 block2 block3 block4 head"),
    ],
)
def test_networks_of_timm_have_stages_and_exact_cuts(name: str, stages: str):
    pytest.importorskip("timm")
    network = build(name=f"timm/{name}")
    assert " ".join(stage.name for stage in network.staged.stages) == stages
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        tap = network.staged.prefix(0, 3)(images)
        assert torch.equal(network.staged.suffix(3)(tap), network.module(images))


FACTORY = """
from torch import nn

def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.Linear(8, num_classes))

def net(num_classes):
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, num_classes))

def fixed(num_classes):
    return net(10)

def broken(num_classes):
    return 1 / 0

def none(num_classes):
    pass
"""


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the program runs in, with a user's modules in it."""
    (tmp_path / "my_networks.py").write_text(FACTORY)
    (tmp_path / "my_broken.py").write_text("import torch\nimport no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    for name in ("my_networks", "my_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_users_network_is_built_where_code_is_allowed(user_code: Path):
    network = build(4, factory="my_networks:net", weights="default", allow_code=True)
    assert network.module(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    assert [stage.name for stage in network.staged.stages] == ["block1", "head"]
    again = build(4, factory="my_networks:net", weights="default", allow_code=True)
    assert same(tensors(network.module), tensors(again.module))
    run = save_run(user_code / "run", network, list("abcd"), name=None, factory="my_networks:net")
    assert same(tensors(load_trained(run, allow_code=True).module), tensors(network.module))
    with pytest.raises(SpecError, match="allow_code"):
        load_trained(run)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("my_networks", "package.module:function"),
        ("no_such_module:net", "importing no_such_module failed: ModuleNotFoundError"),
        ("my_broken:net", r"No module named 'no_such_package' \(.*my_broken.py:2\)"),
        ("my_networks:nett", "Did you mean net?"),
        ("my_networks:broken", r"ZeroDivisionError: division by zero \(.*my_networks.py:1\d\)"),
        ("my_networks:none", "returned a NoneType, not a torch.nn.Module"),
        ("my_networks:lazy", "layers whose sizes are not known yet"),
        ("my_networks:fixed", "its last layer, 4, has 10 outputs for 4 classes"),
    ],
)
def test_what_goes_wrong_in_a_users_code_is_shown_with_its_place(user_code: Path, factory: str, said: str):
    with pytest.raises(SpecError, match=said):
        build(4, factory=factory, weights="default", allow_code=True)
