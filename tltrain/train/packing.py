"""Nested state as a flat dict of tensors (for safetensors) and a JSON skeleton, and back, without pickle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

State = Any
"""None, bool, int, float, str, Tensor, or a dict (str or int keys), list or tuple of State."""

_UNSUPPORTED = (torch.complex128,)
_RESERVED = "__metadata__"  # safetensors' own key


def pack(state: State) -> tuple[dict[str, Tensor], Any]:
    """Split nested state into tensors and a skeleton that `json.dumps` takes as it is.

    The tensors are contiguous copies on the CPU that share memory with nothing, so the state may change
    afterwards. They are named by their path (`state.0.momentum_buffer`). Dicts are taken in the order of
    their keys, so equal states give equal results. Gradients, memory formats and subclasses are not kept.
    Raises TypeError where the state holds anything else.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _pack(state, "", tensors)


def unpack(tensors: Mapping[str, Tensor], skeleton: Any) -> State:
    """The state that `pack` was given: equal in values, types, dtypes and shapes."""
    if isinstance(skeleton, list):
        return [unpack(tensors, item) for item in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    ((kind, value),) = skeleton.items()
    return _UNPACK[kind](tensors, value)


def _pack(value: State, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": _add(value, path, tensors)}
    if isinstance(value, Mapping):
        return _pack_dict(value, path, tensors)
    if isinstance(value, list | tuple):
        items = [_pack(item, _join(path, index), tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, float):
        # JSON's shortest decimal form gives the same bits back; it has no form for these three.
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__} ({path or 'the state itself'})")


def _pack_dict(value: Mapping[Any, State], path: str, tensors: dict[str, Tensor]) -> Any:
    for key in value:
        if type(key) not in (str, int):
            raise TypeError(f"a checkpoint's dict cannot have the key {key!r} ({path or 'the state itself'})")
    keys = sorted(value, key=lambda key: (isinstance(key, str), key))
    pairs = [(key, _pack(value[key], _join(path, key), tensors)) for key in keys]
    if any(isinstance(key, int) for key in keys):
        return {"pairs": [list(pair) for pair in pairs]}
    return {"dict": dict(pairs)}


def _add(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    if tensor.dtype in _UNSUPPORTED or tensor.layout != torch.strided:
        raise TypeError(f"a checkpoint cannot hold a {tensor.layout} tensor of {tensor.dtype} ({path})")
    name = path.encode("utf-8", "backslashreplace").decode() or "tensor"
    while name in tensors or name == _RESERVED:  # `a.b` may be one key or two
        name += "'"
    copy = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    tensors[name] = copy.contiguous()
    return name


def _join(path: str, key: str | int) -> str:
    return f"{path}.{key}" if path else str(key)


_UNPACK: dict[str, Any] = {
    "tensor": lambda tensors, name: tensors[name],
    "tuple": lambda tensors, items: tuple(unpack(tensors, item) for item in items),
    "float": lambda tensors, text: float(text),
    "pairs": lambda tensors, pairs: {key: unpack(tensors, item) for key, item in pairs},
    "dict": lambda tensors, items: {key: unpack(tensors, item) for key, item in items.items()},
}
