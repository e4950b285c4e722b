"""Names known without importing torch agree with the packages that have them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from tltrain.spec import names
from tltrain.spec.checks import check
from tltrain.spec.schema import Spec


def spec_of(model: str) -> Spec:
    """Return a spec with this model."""
    return Spec.model_validate({"name": "x", "model": {"name": model}, "data": {"train": "a"}})


@pytest.fixture
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make torchvision look as if it were not installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names.model_names.cache_clear()
    yield
    names.model_names.cache_clear()


def test_models_are_those_that_torchvision_lists() -> None:
    import torchvision

    assert set(names.model_names()) == {*torchvision.models.list_models(torchvision.models), "efficientnet_lite0"}


def test_data_sets_are_classes_of_torchvision() -> None:
    from torchvision import datasets

    assert [name for name in names.TORCHVISION_DATA_SETS if not hasattr(datasets, name)] == []


@pytest.mark.parametrize("model", ["resnet50", "efficientnet_lite0", "timm/anything.in1k"])
def test_known_models_pass(model: str) -> None:
    assert check(spec_of(model)) == []


@pytest.mark.parametrize(
    ("model", "nearest"), [("ResNet50", "resnet50"), ("vit_b16", "vit_b_16"), ("timm/", ""), ("zzz", "resnet50")]
)
def test_unknown_models_get_the_nearest_names(model: str, nearest: str) -> None:
    (problem,) = check(spec_of(model))

    assert problem.key == "model.name"
    assert nearest in problem.action.partition(". Others")[0]


def test_without_torchvision_names_are_not_checked(no_torchvision: None) -> None:
    assert names.model_names() == ()
    assert check(spec_of("resnet5o")) == []
