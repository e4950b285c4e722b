"""A real server: what it answers, many at once, and that nothing of it is left after Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from trained import train_tiny

from tltrain.engine.serve import serve_model
from tltrain.errors import ResourceError
from tltrain.inference.requests import ServeOptions

BOUNDARY = "x-boundary"


def ask(url: str, body: bytes | None = None, content_type: str = "image/png") -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def form(content: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="x.png"\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (3000, 2000)).save(buffer, "PNG")
    return buffer.getvalue()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def processes_of(session: int) -> list[str]:
    """Command lines of all processes that carry this test's mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"TLTRAIN_TEST_MARK={session}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().decode(errors="replace")[:100])
        except OSError:
            continue
    return [line for line in found if line]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_server_answers_and_leaves_nothing_behind(tmp_path: Path, end: signal.Signals) -> None:
    run, port = train_tiny(tmp_path), free_port()
    images = pq.read_table(tmp_path / "test.parquet").column("image").to_pylist()
    expected = pq.read_table(f"{run.uri}/predictions.parquet").to_pydict()
    mark, url = os.getpid() * 10 + end, f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tltrain", "serve", run.uri, "--port", str(port), "--max-upload-mb", "0.05"]
    environment = {**os.environ, "TLTRAIN_TEST_MARK": str(mark), "RAY_TMPDIR": str(tmp_path)}
    server = subprocess.Popen(
        [*command, "--max-megapixels", "1"], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert server.stderr is not None
        assert server.stderr.readline() == f"Serving tiny: POST an image to {url}/predict. Ctrl-C ends it.\n"
        assert ask(f"{url}/healthz") == (200, {"status": "ok", "model": "tiny", "classes": 10})
        with ThreadPoolExecutor(16) as executor:
            answers = list(executor.map(lambda image: ask(f"{url}/predict", image), images))
        assert {status for status, _ in answers} == {200}
        assert [body["top"][0]["class"] for _, body in answers] == expected["prediction"]
        shares = [body["top"][0]["probability"] for _, body in answers]
        assert shares == pytest.approx(expected["probability"], rel=1e-4)
        alone = ask(f"{url}/predict", images[0])  # the answers above came from batches, whose last digits are others
        assert alone[0] == 200
        assert ask(f"{url}/predict", form(images[0]), f"multipart/form-data; boundary={BOUNDARY}") == alone
        assert ask(f"{url}/predict", b"text")[0] == 422
        assert ask(f"{url}/predict", bomb())[0] == 422
        assert ask(f"{url}/predict", b"x" * 60_000)[0] == 413
        assert ask(f"{url}/predict", b"")[0] == 400
        assert ask(f"{url}/nothing")[0] == 404
    finally:
        if end == signal.SIGINT:
            os.killpg(server.pid, end)  # as a terminal does it: the whole group
        else:
            server.terminate()
        _, errors = server.communicate(timeout=60)
    assert (server.returncode, errors) == (0, "")
    deadline = time.monotonic() + 20
    while (left := processes_of(mark)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []


def test_a_taken_port_and_a_foreign_address_are_refused_before_anything_starts(tmp_path: Path) -> None:
    run = train_tiny(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"127.0.0.1:{port} cannot be listened at: Address already in use"):
            serve_model(run.uri, ServeOptions(port=port), print)
    with pytest.raises(ResourceError, match=r"203.0.113.7:8000 cannot be listened at"):
        serve_model(run.uri, ServeOptions(host="203.0.113.7"), print)


def test_what_is_missing_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ResourceError, match=r"pip install 'tltrain\[serve\]'"):
        serve_model("nowhere", ServeOptions(), print)
