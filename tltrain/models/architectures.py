"""Building networks: torchvision's, EfficientNet-Lite0, timm's, and a user's own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torchvision
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tltrain.data.preprocessing import Preprocessing
from tltrain.errors import DataError, Problem, SpecError
from tltrain.models import lite
from tltrain.models.cuts import Leaves
from tltrain.models.weights import torchvision_preprocessing
from tltrain.user_code import imported, last_place

Build = Callable[[Mapping[str, Any], bool], nn.Module]

# Their weights were trained on images prepared in another way; `transform_input` turns the usual into that.
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
_AUXILIARY = re.compile(r"(aux1|aux2|AuxLogits)\.")
_WITHOUT_THEM = {"aux_logits": False, "init_weights": False, "transform_input": True}


@dataclass(frozen=True)
class Architecture:
    """How a kind of network is built, and what is known of it."""

    build: Build
    """Takes keyword arguments, and whether to load the weights it comes with."""
    arguments: Mapping[str, Any]
    """Keyword arguments besides the number of classes."""
    preprocessing: Callable[[nn.Module], Preprocessing]
    """How images are prepared for it by default."""
    adapt: Callable[[Mapping[str, Tensor], nn.Module], Mapping[str, Tensor]] = lambda state, _: state
    """Gives weights of older or other layouts the names of the network."""
    leaves: Leaves = field(default_factory=Leaves)
    notes: tuple[str, ...] = ()


def torchvision_names() -> list[str]:
    """Return the names of torchvision's image classifiers."""
    return torchvision.models.list_models(module=torchvision.models)


def find_architecture(name: str | None, factory: str | None, allow_code: bool) -> Architecture:
    """Return the architecture of a `model` section's `name` or `factory`.

    Raises:
        SpecError: there is none of that name, timm is missing, a factory is not allowed or cannot be imported.
    """
    if factory is not None:
        return _factory(factory, allow_code)
    assert name is not None
    if name == lite.NAME:
        return _lite()
    if name.startswith("timm/"):
        return _timm(name.removeprefix("timm/"))
    return _torchvision(name)


def _torchvision(name: str) -> Architecture:
    names = [*torchvision_names(), lite.NAME]
    if name not in names:
        raise _unknown(name, names, "or timm/NAME for timm's")
    notes = ("The auxiliary heads are left out: there is no auxiliary loss in training",)
    has_auxiliary_heads = name in _WITH_AUXILIARY_HEADS
    return Architecture(
        lambda arguments, _: torchvision.models.get_model(name, **arguments),
        _WITHOUT_THEM if has_auxiliary_heads else {},
        lambda _: torchvision_preprocessing(name),
        _adapted,
        notes=notes if has_auxiliary_heads else (),
    )


def _adapted(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Leave auxiliary heads out that the network lacks, and give old names in DenseNet's weights the new form."""
    own = module.state_dict()
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
    kept = {name: tensor for name, tensor in state.items() if name in own or not _AUXILIARY.match(name)}
    return {name if name in own else old.sub(r"\1\2", name): tensor for name, tensor in kept.items()}


def _lite() -> Architecture:
    return Architecture(
        lambda arguments, _: lite.efficientnet_lite0(**arguments),
        {},
        lambda _: lite.PREPROCESSING,
        lite.with_own_names,
    )


def _timm(name: str) -> Architecture:
    try:
        import timm
        from timm.layers._fx import get_notrace_functions, get_notrace_modules
    except ImportError as error:
        action = "pip install 'tltrain[timm]'"
        raise SpecError(
            Problem("networks of timm need timm, which is not installed", action, key="model.name")
        ) from error
    if not timm.is_model(name):
        raise _unknown(name, timm.list_models(), "all are in timm.list_models()")

    def build(arguments: Mapping[str, Any], pretrained: bool) -> nn.Module:
        try:
            return timm.create_model(name, pretrained=pretrained, **arguments)
        except Exception as error:  # its weights come through a hub client with errors of its own
            what = f"timm cannot build {name}: {error}"
            raise DataError(what, "Check the name and the network, or set model.weights to a file") from error

    leaves = Leaves(get_notrace_modules(), get_notrace_functions())
    return Architecture(build, {}, _timm_preprocessing, leaves=leaves)


def _timm_preprocessing(module: nn.Module) -> Preprocessing:
    from timm.data.config import resolve_model_data_config

    config = resolve_model_data_config(module)
    size = config["input_size"][1]
    known = config["interpolation"] in ("nearest", "bilinear", "bicubic")
    return Preprocessing(
        int(size / config["crop_pct"]),
        size,
        tuple(config["mean"]),
        tuple(config["std"]),
        config["interpolation"] if known else "bicubic",
    )


def _factory(factory: str, allow_code: bool) -> Architecture:
    if not allow_code:
        action = "Set allow_code: true in the spec if you trust that code"
        raise _factory_error(f"{factory} is Python code, and this spec allows none", action)
    function = imported(factory, "model.factory")

    def build(arguments: Mapping[str, Any], _: bool) -> nn.Module:
        try:
            module = function(**arguments)
        except Exception as error:  # the user's own code
            raise _factory_error(f"{factory}({arguments}) failed: {last_place(error)}") from error
        if not isinstance(module, nn.Module):
            raise _factory_error(f"{factory} returned a {type(module).__name__}, not a torch.nn.Module")
        if any(is_lazy(parameter) for parameter in module.parameters()):
            what = f"{factory} returned a network with lazy layers whose sizes are not known yet"
            raise _factory_error(what, "Run it once on images in the function, or use layers with sizes")
        return module

    return Architecture(build, {}, lambda _: Preprocessing())


def _unknown(name: str, names: list[str], others: str) -> SpecError:
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
    action = f"Nearest are {', '.join(nearest)}; {others}"
    return SpecError(Problem(f"there is no network {name!r}", action, key="model.name"))


def _factory_error(what: str, action: str = "") -> SpecError:
    return SpecError(Problem(what, action, key="model.factory"))
