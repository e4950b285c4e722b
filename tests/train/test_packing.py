"""State goes into tensors and JSON and comes back exactly as it was."""

from __future__ import annotations

import json
import math
import re
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tltrain.train.packing import pack, unpack

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.uint8,
    torch.bool,
    torch.complex64,
)


def there_and_back(state: Any) -> Any:
    """The state after a trip through the bytes of both files."""
    tensors, skeleton = pack(state)
    text = json.dumps(skeleton, sort_keys=True, allow_nan=False)
    return unpack(safetensors.torch.load(safetensors.torch.save(tensors)), json.loads(text))


def same(a: Any, b: Any) -> bool:
    """Equal in type and in every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    return a == b


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 3), max_size=4))
    count = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    top = 1 if dtype == torch.bool else 255
    data = draw(st.lists(st.integers(0, top), min_size=count, max_size=count))
    tensor = torch.tensor(data, dtype=torch.uint8).view(dtype).reshape(shape)
    return tensor.transpose(0, -1) if tensor.dim() > 1 and draw(st.booleans()) else tensor


AWKWARD = st.sampled_from(["", "a.b", "a", "b", "0", "'", "__metadata__", "tensor", "dict", "\ud800", "é\n\0"])
KEYS = st.integers() | AWKWARD | st.text(max_size=4)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | AWKWARD | tensors()
STATES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(state=STATES)
def test_any_state_comes_back_exactly(state: Any) -> None:
    assert same(there_and_back(state), state)


@given(state=st.dictionaries(KEYS, STATES, max_size=4))
def test_the_order_of_keys_does_not_change_the_bytes(state: dict[Any, Any]) -> None:
    results = [pack(state), pack(dict(reversed(state.items())))]
    first, second = ((safetensors.torch.save(t), json.dumps(s, sort_keys=True)) for t, s in results)
    assert first == second


def test_paths_that_read_alike_stay_apart() -> None:
    state = {
        "a.b": torch.zeros(1),
        "a": {"b": torch.ones(1)},
        0: torch.full((1,), 2.0),
        "0": torch.full((1,), 3.0),
    }
    assert same(there_and_back(state), state)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adagrad", "RMSprop"])
def test_a_restored_optimiser_takes_the_same_step(name: str) -> None:
    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
        return network, getattr(torch.optim, name)(network.parameters(), lr=0.1, **options)

    def step(network: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        network(torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)).square().sum().backward()
        optimiser.step()

    network, optimiser = build()
    step(network, optimiser)
    saved = there_and_back({"model": network.state_dict(), "optimiser": optimiser.state_dict()})
    again, restored = build()
    again.load_state_dict(saved["model"])
    restored.load_state_dict(saved["optimiser"])
    step(network, optimiser)
    step(again, restored)
    assert same(dict(again.state_dict()), dict(network.state_dict()))
    assert same(there_and_back(restored.state_dict()), there_and_back(optimiser.state_dict()))


def test_packed_tensors_share_memory_with_nothing() -> None:
    base = torch.arange(6.0)
    views = {"whole": base, "again": base, "part": base[1:3], "wide": base[:1].expand(4)}
    packed, skeleton = pack(views)
    base.fill_(-1)
    packed["whole"].fill_(-2)
    restored = unpack(packed, skeleton)
    assert restored["again"].tolist() == [0, 1, 2, 3, 4, 5]
    assert restored["part"].tolist() == [1, 2]
    assert restored["wide"].tolist() == [0, 0, 0, 0]


def test_parameters_come_back_as_plain_tensors() -> None:
    restored = there_and_back([torch.nn.Parameter(torch.ones(2))])[0]
    assert type(restored) is torch.Tensor
    assert not restored.requires_grad


@pytest.mark.parametrize(
    "thing",
    [
        object(),
        {1, 2},
        b"bytes",
        1j,
        np.zeros(2),
        np.int64(1),
        torch.zeros(2, dtype=torch.complex128),
        torch.eye(2).to_sparse(),
        {(1, 2): 3},
        {None: 1},
        {True: 1},
        {1.5: 1},
    ],
    ids=lambda thing: re.sub(r" at 0x\w+", "", repr(thing)),
)
def test_what_cannot_be_kept_is_refused_with_its_place(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"a checkpoint.* \(lane\.0\)"):
        pack({"lane": [thing]})
