"""A commented spec to start from, written from the schema's own descriptions and defaults."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from tltrain.spec.emit import scalar
from tltrain.spec.keys import bare, hints, is_section
from tltrain.spec.schema import Section, Spec
from tltrain.spec.yaml_text import KeyPath, dotted

WIDTH = 80

# What has no default, or where another value shows more.
_EXAMPLES = {
    "name": "my-first-run",
    "model.name": "resnet50",
    "data.train": "torchvision:FashionMNIST",
    "data.test": "torchvision:FashionMNIST",
}

# The settings that nearly everyone changes; all others are there behind a #, with their defaults.
_SHOWN = {
    *_EXAMPLES,
    "version",
    "model.weights",
    "model.freeze_depth",
    "data.val",
    "optim.name",
    "optim.learning_rate",
    "train.epochs",
    "train.batch_size",
    "resources.num_workers",
    "storage",
}
# The one section that is off by default and has many keys: shown as it might be, in comments.
_SWEEP_EXAMPLE = """\
# For example 16 trials, of which the poorer ones are stopped early:
#
# sweep:
#   space:
#     optim.learning_rate: {loguniform: [0.0001, 0.1]}
#     model.freeze_depth: {choice: [all, layer3, layer2]}
#   search: random
#   num_trials: 16
#   scheduler: asha
""".splitlines()
_HEADER = "A spec for tltrain. A setting behind a # shows its default: take the # away to change it."


def starter_text() -> str:
    """The starter spec. It is valid as it stands, and with every `#key` uncommented."""
    return "\n".join([*_comment(_HEADER, ""), *_lines(Spec, ())]) + "\n"


def _lines(section: type[Section], path: KeyPath) -> Iterator[str]:
    indent = "  " * len(path)
    for name, hint in hints(section).items():
        here = (*path, name)
        if not path or is_section(hint):
            yield ""
        yield from _comment(section.model_fields[name].description or "", indent)
        yield from _SWEEP_EXAMPLE if here == ("sweep",) else ()
        if is_section(hint):
            yield f"{indent}{_mark(here)}{name}:"
            yield from _lines(bare(hint), here)
        else:
            default = section.model_fields[name].get_default(call_default_factory=False)
            yield f"{indent}{_mark(here)}{name}: {scalar(_value(dotted(here), default))}"


def _mark(path: KeyPath) -> str:
    key = dotted(path)
    is_shown = key in _SHOWN or any(shown.startswith(f"{key}.") for shown in _SHOWN)
    return "" if is_shown else "#"


def _value(key: str, default: Any) -> Any:
    return _EXAMPLES.get(key, default)


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text.strip(), WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
