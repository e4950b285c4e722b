"""Tests of tltrain.models.state: reading weights without running code, fetching them, loading them key by key."""

from __future__ import annotations

import hashlib
import io
import logging
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tltrain.errors import DataError
from tltrain.models.state import cached_name, fetch, load_state, read_state


def network(num_classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, num_classes))


def state(num_classes: int = 3) -> dict[str, Tensor]:
    return {name: torch.rand(tensor.shape) for name, tensor in network(num_classes).state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {}},
        lambda s: {f"module.{name}": tensor for name, tensor in s.items()},
        lambda s: {"state_dict": {f"module.{name}": tensor for name, tensor in s.items()}},
    ],
)
def test_wrappers_are_taken_off(tmp_path: Path, wrap: Any):
    path, expected = tmp_path / "weights.pth", state()
    torch.save(wrap(expected), path)
    assert same(read_state(path), expected)


def test_a_safetensors_file_is_read(tmp_path: Path):
    path, expected = tmp_path / "weights.safetensors", state()
    save_file(expected, path)
    assert same(read_state(path), expected)


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("old_format", [False, True])
def test_code_in_a_pickle_never_runs(tmp_path: Path, suffix: str, old_format: bool):
    path, trace = tmp_path / f"weights{suffix}", tmp_path / "ran"
    torch.save({**state(), "canary": Canary(trace)}, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(DataError) as refusal:
        read_state(path)
    assert not trace.exists()
    assert str(path) in str(refusal.value)
    if suffix != ".safetensors":
        assert "safetensors.torch.save_file" in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04" + bytes(40), bytes(1000)])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, suffix: str):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="weights"):
        read_state(path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(2)], {"weight": [1.0, 2.0]}])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(DataError, match="no state dict"):
        read_state(path)


def test_all_weights_are_loaded_where_the_head_fits():
    module, weights = network(), state()
    assert load_state(module, weights, "3", "here")
    assert same({**module.state_dict()}, {n: t.to(module.state_dict()[n].dtype) for n, t in weights.items()})


@pytest.mark.parametrize("drop_head", [False, True])
def test_a_head_of_another_size_is_left_out_and_said(caplog: pytest.LogCaptureFixture, drop_head: bool):
    module, weights = network(), state(num_classes=5)
    head = module.get_parameter("3.weight").clone()
    if drop_head:
        del weights["3.weight"], weights["3.bias"]
    with caplog.at_level(logging.INFO):
        assert not load_state(module, weights, "3", "here")
    assert torch.equal(module.get_parameter("3.weight"), head)
    assert torch.equal(module.get_parameter("0.weight"), weights["0.weight"])
    assert "here: its head is left out" in caplog.text


def test_weights_from_before_batchnorm_counted_are_loaded():
    weights = state()
    del weights["1.num_batches_tracked"]
    assert load_state(network(), weights, "3", "here")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"0.weight": None}, "0.weight is missing"),
        ({"5.weight": torch.zeros(1)}, "5.weight is not in the network"),
        ({"0.weight": torch.zeros(4, 3, 5, 5)}, r"0.weight has shape \[4, 3, 5, 5\], not \[4, 3, 3, 3\]"),
        ({"3.weight": torch.zeros(3, 9)}, r"3.weight has shape \[3, 9\], not \[3, 4\]"),
        ({"3.weight": torch.zeros(5, 9), "0.bias": None}, "0.bias is missing"),
        ({f"extra{n}": torch.zeros(1) for n in range(12)}, "extra9 is not in the network, and 2 more"),
    ],
)
def test_weights_of_another_network_are_refused_with_the_keys(change: dict[str, Any], said: str):
    module = network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    weights = {name: tensor for name, tensor in {**state(), **change}.items() if tensor is not None}
    with pytest.raises(DataError, match=said):
        load_state(module, weights, "3", "here")
    assert same({**module.state_dict()}, before)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which torch keeps downloads, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes | Exception) -> list[str]:
    """Answer all requests with `content`; return the list of addresses that were asked for."""
    asked: list[str] = []

    def urlopen(request: urllib.request.Request, timeout: float) -> io.BytesIO:
        asked.append(request.full_url)
        if isinstance(content, Exception):
            raise content
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


URL = "https://example.org/weights/net-1234abcd.pth?version=2"


def test_offline_the_url_and_the_place_for_the_file_are_named(hub: Path, monkeypatch: pytest.MonkeyPatch):
    serve(monkeypatch, urllib.error.URLError("Name or service not known"))
    with pytest.raises(DataError) as refusal:
        fetch(URL, "net.pth")
    assert f"{URL} cannot be fetched: Name or service not known" in str(refusal.value)
    assert f"put it at {hub / 'net.pth'}" in str(refusal.value)
    (hub / "net.pth").write_bytes(b"brought along")
    assert fetch(URL, "net.pth") == hub / "net.pth"


@pytest.mark.parametrize("error", [TimeoutError("timed out"), ConnectionResetError("reset by peer")])
def test_a_connection_that_breaks_is_no_traceback(hub: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    serve(monkeypatch, error)
    with pytest.raises(DataError, match=str(error)):
        fetch(URL, "net.pth")
    assert [path.name for path in hub.iterdir() if not path.name.endswith(".lock")] == []


def test_a_file_is_fetched_once_however_many_ask(hub: Path, monkeypatch: pytest.MonkeyPatch):
    asked = serve(monkeypatch, b"weights")
    threads = [threading.Thread(target=fetch, args=(URL, "net.pth")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [URL]
    assert (hub / "net.pth").read_bytes() == b"weights"


def test_a_damaged_download_is_thrown_away(hub: Path, monkeypatch: pytest.MonkeyPatch):
    serve(monkeypatch, b"weights")
    with pytest.raises(DataError, match="damaged"):
        fetch(URL, "net.pth", "00000000")
    assert not (hub / "net.pth").exists()
    assert fetch(URL, "net.pth", hashlib.sha256(b"weights").hexdigest()[:8]).read_bytes() == b"weights"


def test_urls_that_end_alike_have_files_of_their_own():
    names = {cached_name(f"https://example.org/{folder}/model.pth?x=1") for folder in "abc"}
    assert len(names) == 3
    assert all(name.endswith("-model.pth") for name in names)
