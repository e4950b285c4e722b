"""Which layers form a stage, and its name: worked out from the structure of a network alone.

The units of a network are the children of its root in order of execution. A child that holds nearly all
layers (a `features` or `encoder` container) is replaced by its own children, and so on. Units become stages:

- normalisation and bare parameters belong to the unit before them;
- the first plain convolutions are the `stem` where blocks follow them; a patchify convolution that is the
  only convolution of all is the `patch_embedding`; a plain convolution after the last block is `last_conv`;
- numbered layers with poolings between them are grouped by the poolings (VGG);
- `inception4a`, `inception4b`, ... are one stage, `inception4`;
- a numbered unit with one layer between two blocks only changes the size and belongs to the one after it;
- numbered units are named `block1`, `block2`, ...; the others keep their own names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from tltrain.models.cuts import is_parameter

_DOMINANT = 0.9  # share of the layers above which a container is replaced by its children
_LARGE = 0.5  # the same while there are fewer than _FEW stages
_FEW = 4
_RESERVED = ("head", "all")

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Group:
    """The layers of a stage, by dotted name in order of execution, and its name."""

    name: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Pooling:
    """A pooling, by the dotted name of the module it is a child of, and how many layers run before it."""

    parent: str
    num_layers_before: int


@dataclass(frozen=True)
class _Unit:
    path: str
    first: int
    """Position of its first layer among all."""
    layers: tuple[str, ...]
    name: str = ""

    @property
    def parent(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def child(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def is_numbered(self) -> bool:
        return self.child.isdigit()

    def followed_by(self, other: _Unit) -> _Unit:
        return replace(self, layers=self.layers + other.layers)

    def is_sibling_of(self, other: _Unit) -> bool:
        return self.parent == other.parent and self.is_numbered == other.is_numbered and not other.name


def group_layers(module: nn.Module, layers: Sequence[str], poolings: Sequence[Pooling]) -> list[Group]:
    """Group the layers of a backbone into named stages.

    Args:
        module: the network.
        layers: dotted names of its layers with parameters in order of execution, without the head.
        poolings: its poolings.
    """
    structure = _Structure(module, layers, poolings)
    expanded = {""}
    while True:
        units = structure.units(expanded)
        groups = _named(structure.grouped(units))
        containers = [unit for unit in units if unit.path not in layers]
        largest = max(containers, key=lambda unit: len(unit.layers), default=None)
        if largest is None or not _is_dominant(len(largest.layers) / len(layers), len(groups)):
            return groups
        expanded.add(largest.path)


def _is_dominant(share: float, num_groups: int) -> bool:
    return share > _DOMINANT or (share > _LARGE and num_groups < _FEW)


class _Structure:
    """What is known of a backbone, and the rules that turn its units into stages."""

    def __init__(self, module: nn.Module, layers: Sequence[str], poolings: Sequence[Pooling]) -> None:
        self.module, self.layers, self.poolings = module, layers, poolings

    def units(self, expanded: set[str]) -> list[_Unit]:
        """Return the units when the containers `expanded` are replaced by their children."""
        units: list[_Unit] = []
        for position, layer in enumerate(self.layers):
            path = _first_path_outside(layer, expanded)
            units.append(_Unit(path, position, (layer,)))
            # A unit that runs again after others takes them in: what is between cannot be cut off.
            earlier = next(index for index, unit in enumerate(units) if unit.path == path)
            taken = [name for unit in units[earlier:] for name in unit.layers]
            units[earlier:] = [replace(units[earlier], layers=tuple(taken))]
        return units

    def grouped(self, units: list[_Unit]) -> list[_Unit]:
        """Return one unit per stage; those with a name have got it from a rule."""
        units = self._with_stem(self._without_extras(units))
        units = _with_common_names(_merged(units, self._are_pooled_together))
        return self._with_last_convolution(self._without_transitions(units))

    def _without_extras(self, units: list[_Unit]) -> list[_Unit]:
        """Hand normalisation and bare parameters to the unit before, the very first ones to the one after."""
        kept: list[_Unit] = []
        for unit in units:
            if kept and not self._weights(unit):
                kept[-1] = kept[-1].followed_by(unit)
            elif kept and not self._weights(kept[-1]):
                kept[-1] = replace(unit, first=kept[-1].first, layers=kept[-1].layers + unit.layers)
            else:
                kept.append(unit)
        return kept

    def _with_stem(self, units: list[_Unit]) -> list[_Unit]:
        """Name the plain convolutions in front: they are one unit if a block of convolutions follows."""
        convolutions = [layer for unit in units for layer in self._weights(unit) if self._is_convolution(layer)]
        length = next((i for i, unit in enumerate(units) if not self._is_plain_convolution(unit)), len(units))
        if length == 1 == len(convolutions) and self._is_patchify(convolutions[0]):
            return [replace(units[0], name="patch_embedding"), *units[1:]]
        if 0 < length < len(units) and self._is_convolutional_block(units[length]):
            layers = tuple(layer for unit in units[:length] for layer in unit.layers)
            return [replace(units[0], layers=layers, name="stem"), *units[length:]]
        return units

    def _are_pooled_together(self, before: _Unit, unit: _Unit) -> bool:
        poolings = [pooling.num_layers_before for pooling in self.poolings if pooling.parent == unit.parent]
        together = unit.is_numbered and unit.is_sibling_of(before)
        return together and len(poolings) >= 2 and unit.first not in poolings

    def _without_transitions(self, units: list[_Unit]) -> list[_Unit]:
        """Hand a numbered unit with one layer between two blocks to the block after it."""
        units = list(units)
        for index in range(len(units) - 2, 0, -1):
            before, unit, after = units[index - 1 : index + 2]
            blocks = [other for other in (before, after) if len(self._weights(other)) > 1 and unit.is_sibling_of(other)]
            if unit.is_numbered and len(self._weights(unit)) == 1 and len(blocks) == 2:
                units[index : index + 2] = [unit.followed_by(after)]
        return units

    def _with_last_convolution(self, units: list[_Unit]) -> list[_Unit]:
        """Name a numbered plain convolution that comes after the last block beside it."""
        nexts = [*units[1:], None]
        return [
            replace(unit, name="last_conv") if before and self._is_last_convolution(before, unit, after) else unit
            for before, unit, after in zip([None, *units], units, nexts, strict=False)
        ]

    def _is_last_convolution(self, before: _Unit, unit: _Unit, after: _Unit | None) -> bool:
        beside_block = unit.is_sibling_of(before) and self._is_convolutional_block(before)
        is_last = after is None or not unit.is_sibling_of(after)
        return unit.is_numbered and is_last and beside_block and self._is_plain_convolution(unit)

    def _weights(self, unit: _Unit) -> list[str]:
        return [name for name in unit.layers if not is_parameter(self.module, name) and not self._is_norm(name)]

    def _is_norm(self, layer: str) -> bool:
        # By its name, for many libraries bring normalisation layers of their own.
        return "norm" in type(self.module.get_submodule(layer)).__name__.lower()

    def _is_convolution(self, layer: str) -> bool:
        return isinstance(self.module.get_submodule(layer), _CONVOLUTIONS)

    def _is_plain_convolution(self, unit: _Unit) -> bool:
        weights = self._weights(unit)
        return len(weights) == 1 and self._is_convolution(weights[0])

    def _is_convolutional_block(self, unit: _Unit) -> bool:
        weights = self._weights(unit)
        return len(weights) > 1 and any(self._is_convolution(layer) for layer in weights)

    def _is_patchify(self, layer: str) -> bool:
        convolution = self.module.get_submodule(layer)
        assert isinstance(convolution, _CONVOLUTIONS)
        return convolution.kernel_size == convolution.stride and max(convolution.kernel_size) > 1


def _first_path_outside(layer: str, expanded: set[str]) -> str:
    """Return the shortest leading part of a dotted name that is not in `expanded`."""
    steps = layer.split(".")
    paths = (".".join(steps[:length]) for length in range(1, len(steps) + 1))
    return next(path for path in paths if path not in expanded)


def _merged(units: list[_Unit], together: Callable[[_Unit, _Unit], bool]) -> list[_Unit]:
    kept: list[_Unit] = []
    for unit in units:
        if kept and together(kept[-1], unit):
            kept[-1] = kept[-1].followed_by(unit)
        else:
            kept.append(unit)
    return kept


def _with_common_names(units: list[_Unit]) -> list[_Unit]:
    """Merge siblings whose names differ only in the letter after a number; the letter goes."""
    merged = _merged(units, lambda before, unit: unit.is_sibling_of(before) and bool(_common_name(before, unit)))
    alone = {unit.layers for unit in units}
    return [
        unit if unit.layers in alone else replace(unit, name=_common_name(unit, unit) or unit.name) for unit in merged
    ]


def _common_name(one: _Unit, other: _Unit) -> str:
    """Return `inception4` for `inception4a` and `inception4b`, and nothing for other pairs."""
    names = {re.sub(r"(?<=\d)[a-z]$", "", unit.child) for unit in (one, other)}
    return names.pop() if len(names) == 1 and one.child[-1].isalpha() and other.child[-1].isalpha() else ""


def _named(units: list[_Unit]) -> list[Group]:
    """Give every unit a name of its own."""
    numbered = [unit.parent for unit in units if unit.is_numbered and not unit.name]
    counts: Counter[str] = Counter()
    names: list[str] = []
    for unit in units:
        name = unit.name or unit.child
        if unit.is_numbered and not unit.name:
            counts[unit.parent] += 1
            name = f"block{counts[unit.parent]}"
            if len(set(numbered)) > 1:
                name = f"{_last_word(unit.parent)}{name}"
        names.append(name)
    return [Group(name, unit.layers) for name, unit in zip(_unique(names, units), units, strict=True)]


def _last_word(path: str) -> str:
    """Return `layer3_` for `trunk.layer3`, and nothing for the root or numbers."""
    words = [step for step in path.split(".") if step and not step.isdigit()]
    return f"{words[-1]}_" if words else ""


def _unique(names: list[str], units: list[_Unit]) -> list[str]:
    """Spell out the whole path where a name is used twice or has a meaning of its own."""
    counts = Counter(names)
    return [
        unit.path.replace(".", "_") + ("_layers" if unit.path in _RESERVED else "")
        if counts[name] > 1 or name in _RESERVED
        else name
        for name, unit in zip(names, units, strict=True)
    ]
