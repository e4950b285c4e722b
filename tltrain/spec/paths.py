"""Paths in a spec made absolute: relative to the spec's file, or to where the program was started."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tltrain.spec.keys import SPACE
from tltrain.spec.names import HUGGINGFACE_PREFIX, PYTHON_PREFIX, TORCHVISION_PREFIX, source_parts
from tltrain.spec.schema import Spec, SweepSpec
from tltrain.spec.yaml_text import Document

_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*://")
_WEIGHT_SUFFIXES = (".pt", ".pth", ".safetensors")


def make_absolute(spec: Spec, document: Document, base: Path) -> Spec:
    """A copy of `spec` whose paths are absolute.

    Sources and weights from the file are relative to `base`, the file's folder; those from `--set`, and
    `storage`, are relative to the current directory. `~` is the home folder. Names and `scheme://` addresses
    stay as they are.
    """
    cwd = Path.cwd()

    def origin(section: str, key: str) -> Path:
        return cwd if document.place((section, key)).startswith("--set") else base

    sweep = spec.sweep and _search_absolute(spec.sweep, document, base)
    data = {
        key: _source(getattr(spec.data, key), origin("data", key))
        for key in ("train", "val", "test")
        if isinstance(getattr(spec.data, key), str)
    }
    weights = _weights(spec.model.weights, origin("model", "weights"))
    return spec.model_copy(
        update={
            "data": spec.data.model_copy(update={**data, "root": _absolute(spec.data.root, cwd)}),
            "model": spec.model.model_copy(update={"weights": weights}),
            "storage": _source(spec.storage, cwd),
            "sweep": sweep,
        }
    )


def _search_absolute(sweep: SweepSpec, document: Document, base: Path) -> SweepSpec:
    """A copy of `sweep` whose searched sources and weights are absolute as well."""
    space = dict(sweep.space)
    for key, to_absolute in (("data.train", _source), ("model.weights", _weights)):
        domain = space.get(key)
        if domain is None or domain.kind not in ("grid", "choice"):
            continue
        is_set = document.place((*SPACE, key, domain.kind)).startswith("--set")
        here = Path.cwd() if is_set else base
        space[key] = domain.model_copy(update={domain.kind: [to_absolute(text, here) for text in domain.values]})
    return sweep.model_copy(update={"space": space})


def is_address(text: str) -> bool:
    """Whether a source is `scheme://...`."""
    return _SCHEME.match(text) is not None


def _source(text: str, base: Path) -> str:
    prefix, path, split = source_parts(text)
    if prefix in (TORCHVISION_PREFIX, PYTHON_PREFIX) or is_address(path):
        return text
    if prefix == HUGGINGFACE_PREFIX and not path.startswith((".", "/", "~")) and not (base / path).is_dir():
        return text  # a name on the hub
    return f"{prefix}{_absolute(path, base)}{split}"


def _weights(text: str, base: Path) -> str:
    if text in ("default", "random") or is_address(text):
        return text
    is_path = "/" in text or os.sep in text or text.startswith("~") or text.endswith(_WEIGHT_SUFFIXES)
    return _absolute(text, base) if is_path or (base / text).is_dir() else text


def _absolute(text: str, base: Path) -> str:
    return os.path.abspath(base / os.path.expanduser(text))
